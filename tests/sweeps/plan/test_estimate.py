"""Sweeps over sets of domains: a plan counts steps and balanced batches as training does."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.engines.resources import Hardware
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.plan import estimate
from carft_sweep.sweeps.plan.estimate import RunTimes, TimedRun, estimate_sweep, times_of
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec
from tests import domain_bed_tree
from tests.sweeps.conftest import SEARCH, Carft, ToySweep


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return domain_bed_tree.make(tmp_path_factory.mktemp("pacs"), "pacs", per_domain=50)


def written(folder: Path, root: Path, model: Path, optim: Any, **data: Any) -> Path:
    place = {"family": "pacs", "root": str(root)}
    training = {"algorithm": "car_ft", "optim": optim, "device": "cpu"}
    trial = {"model": {"name": str(model)}, "data": place | data, **training}
    file = folder / "sweep.yaml"
    file.write_text(json.dumps({"name": "domains", "seeds": [0, 1], "trial": trial}))
    return file


def test_a_plan_counts_steps_as_training_does_and_asks_which_domain_is_held_out(
    root: Path, tiny_clip_files: Path, tmp_path: Path, carft: Carft
) -> None:
    message = carft("check", written(tmp_path, root, tiny_clip_files, {}), code=2).err
    assert "data.test_domain: which domain is held out? pacs has art_painting, cartoon" in message
    assert "Traceback" not in message
    cases: list[tuple[dict[str, int], dict[str, Any], tuple[int, int]]] = [
        ({}, {}, (5000, 17)),
        ({"steps": 7, "steps_per_epoch": 3}, {}, (7, 3)),
        # 120 images of three domains: 30 in a batch of ten each.
        ({"epochs": 2, "batch_size": 10}, {}, (8, 2)),
        ({"epochs": 2, "batch_size": 10}, {"balanced": False}, (24, 2)),
    ]
    for optim, data, expected in cases:
        file = written(tmp_path, root, tiny_clip_files, optim, test_domain="sketch", **data)
        plan = estimate_sweep(load_spec(file), Home(tmp_path / "home"), Hardware(1))
        assert [(work.steps, work.epochs) for work in plan.work] == [expected] * 2


def test_balanced_runs_tell_no_time_of_others(
    root: Path, tiny_clip_files: Path, tmp_path: Path
) -> None:
    def config(*, balanced: bool) -> TrialConfig:
        data = {"test_domain": "sketch", "balanced": balanced}
        return load_spec(written(tmp_path, root, tiny_clip_files, {}, **data)).config_for({})

    balanced, plain = config(balanced=True), config(balanced=False)
    run = TimedRun(plain.as_dict(), RunTimes(1.0, 0.0, 0.0))
    assert [times_of(config, [run]) for config in (plain, balanced)] == [run.times, None]


def test_an_earlier_run_whose_epochs_lack_their_times_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "0123456789ab"
    folder.mkdir()
    (folder / "trained.json").write_text('{"seconds": 1.0}')
    epoch = {"epoch": 1, "epochs": 2, "step": 1, "steps": 2, "metrics": {}, "timestamp": 1_700_000}
    (folder / "history.json").write_text(json.dumps([epoch, {**epoch, "epoch": 2}]))
    with pytest.raises(RequestError, match=r"history\.json .*seconds"):
        estimate.timed_runs(RunStore(tmp_path))


def test_a_long_search_is_counted_without_a_config_for_each_of_its_runs(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[TrialConfig] = []
    original = SweepSpec.typical_config

    def counted(spec: SweepSpec) -> TrialConfig:
        made.append(original(spec))
        return made[-1]

    monkeypatch.setattr(SweepSpec, "typical_config", counted)
    monkeypatch.setattr(estimate, "open_data", lambda _: SimpleNamespace(train=range(100)))
    changes = {**SEARCH, "method": "qmc", "run_cap": 3_000}
    plan = estimate_sweep(load_spec(toy.file(**changes)), toy.home, Hardware(1))
    assert (plan.unknown, len(plan.work)) == (3_000, 3_000)
    assert len(made) < 10
