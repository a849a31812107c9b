"""A sweep over tasks runs every setting on each; what does not go with them is in broken.yaml."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec

DOMAINS = ["art", "cartoon", "photo"]
LR = {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-3}
GRID: dict[str, Any] = {
    "name": "domains",
    "tasks": "data.test_domain",
    "seeds": 2,
    "parameters": {"data.test_domain": {"values": DOMAINS}, "optim.lr": {"values": [1e-5, 1e-4]}},
    "baselines": ["zero_shot", "fine_tune"],
    "trial": {"algorithm": "car_ft"},
}
DRAWN = {**GRID["parameters"], "optim.lr": LR}
RANDOM = {**GRID, "method": "random", "run_cap": 9, "parameters": DRAWN}


def load(folder: Path, data: Mapping[str, Any], *more: str) -> SweepSpec:
    file = folder / "domains.yaml"
    file.write_text(json.dumps(dict(data)))
    return load_spec(file, more)


def drawn(spec: SweepSpec) -> list[Mapping[str, Any]]:
    return [spec.point(number) for number in range(spec.trial_count)]


def test_a_grid_runs_every_setting_on_every_task_one_setting_after_another(tmp_path: Path) -> None:
    spec = load(tmp_path, GRID)
    order = [(point["optim.lr"], point["data.test_domain"]) for point in spec.points()]
    assert order == [(lr, domain) for lr in (1e-5, 1e-4) for domain in DOMAINS]
    for trial, setting, domain in ((0, 0, "art"), (2, 0, "photo"), (3, 1, "art")):
        assert spec.setting_of(trial) == (setting, {"data.test_domain": domain})


def test_every_draw_and_a_point_that_is_tried_first_run_on_every_task(tmp_path: Path) -> None:
    points = drawn(load(tmp_path, RANDOM))
    assert [point["data.test_domain"] for point in points] == DOMAINS * 3
    rates = [point["optim.lr"] for point in points]
    assert rates == [rate for rate in rates[::3] for _ in DOMAINS]
    assert len(set(rates)) == 3
    alone = load(tmp_path, {**RANDOM, "tasks": None, "run_cap": 3, "parameters": {"optim.lr": LR}})
    assert [point["optim.lr"] for point in drawn(alone)] == rates[::3]
    points = drawn(load(tmp_path, {**RANDOM, "try_first": [{"optim.lr": 1e-4}]}))
    assert [point["optim.lr"] == 1e-4 for point in points] == [True] * 3 + [False] * 6
    assert [point["data.test_domain"] for point in points[:3]] == DOMAINS


def test_baselines_run_on_every_task(tmp_path: Path) -> None:
    for data, runs in ((GRID, 6), (RANDOM, 9)):
        baselines = load(tmp_path, data).baseline_configs()
        zero_shot = [point for point in baselines if point.algorithm == "zero_shot"]
        assert [point.config.data.test_domain for point in zero_shot] == DOMAINS
        tuned = [point for point in baselines if point.algorithm == "fine_tune"]
        assert {point.config.data.test_domain for point in tuned} == {*DOMAINS}
        assert (len(tuned), any(point.untuned for point in tuned)) == (runs, False)


def test_a_cap_that_cuts_a_setting_short_is_told(tmp_path: Path) -> None:
    assert load(tmp_path, RANDOM).warnings == ()
    (warning,) = load(tmp_path, {**RANDOM, "run_cap": 7}).warnings
    assert "7 trials are no multiple of the 3 tasks" in warning
    assert warning.endswith("lacks 2 of them; say run_cap: 9")
    (usual,) = load(tmp_path, {**RANDOM, "run_cap": None}).warnings
    assert "20 trials are no multiple" in usual
    assert load(tmp_path, GRID).warnings == ()
