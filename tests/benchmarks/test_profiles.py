"""The parts of a run and of a sweep add up to the whole."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.profiles import Work, read_work, shares, shares_of_sweep


def test_the_parts_of_a_run_add_up_to_it() -> None:
    names = {"train": 10.0, "_train_epoch": 6.0, "_update": 5.0, "closure": 4.0, "_validate": 1.0}
    times = {("carft_core/train.py", name): seconds for name, seconds in names.items()}
    times["carft_core/teacher.py", "encode"] = 1.5
    times["carft_core/evaluate.py", "measure"] = 2.0
    assert sum(shares(times).values()) == pytest.approx(10)


def test_the_parts_of_a_sweep_add_up_to_it() -> None:
    times = {
        ("sweeps/api.py", "perform"): 20.0,
        ("sweeps/api.py", "_keep_model"): 3.0,
        ("scheduler/session.py", "_run"): 12.0,
        ("scheduler/driver.py", "next_job"): 0.5,
        ("scheduler/session.py", "_end"): 2.0,
        ("results/ending.py", "make"): 1.5,
    }
    parts = shares_of_sweep(times, "ray", Work(first_wait=2.0, at_work=8.0))
    assert sum(parts.values()) == pytest.approx(20)
    assert parts["runs at work"] == 8
    assert parts["waiting for the first worker"] == 2
    assert parts["between runs"] == 1.5
    assert parts["comparing, tables"] == 0.5
    assert parts["the rest"] == 3


def test_runs_side_by_side_are_at_work_once(tmp_path: Path) -> None:
    for name, began, ended in (("a", 100, 104), ("b", 102, 103), ("c", 103, 106), ("d", 110, 111)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"created": 97, "ended": ended}))
        (folder / "config.json").write_text("{}")
        os.utime(folder / "config.json", (began, began))
    assert read_work(tmp_path) == Work(first_wait=3, at_work=7)
