"""What the tracker is told of a sweep, and what is remembered of having told it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sweeps.tracked import TrackedSweep
from tests.sweeps.conftest import ToySweep
from tracking import curves
from tracking.base import RunKey
from tracking.memory import MemoryTracker

PNG = b"\x89PNG"
ONE = {"algorithm.kl_weight": {"values": [0.3]}}


def test_each_run_with_a_merge_has_its_curve_and_the_sweep_has_one(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("sweeps.tracked", "sweeps.session"):
        monkeypatch.setattr(f"{module}.plot", curves.plot)
    toy.run(parameters=ONE, seeds=[0], baselines=["zero_shot", "fine_tune"])
    children = toy.tracked()
    assert children["car_ft kl_weight=0.3 seed 0"].artifacts["wise_ft.png"].startswith(PNG)
    assert "wise_ft.png" not in children["zero_shot"].artifacts
    assert toy.tracker.runs[RunKey("toy")].artifacts["wise_ft.png"].startswith(PNG)


def test_data_and_weights_are_named_in_every_run(toy: ToySweep) -> None:
    toy.run(parameters=ONE, seeds=[0], baselines=[])
    (child,) = toy.tracked().values()
    (dataset,) = child.datasets
    assert (dataset.name, dataset.source) == ("icon_shift", "builtin")
    assert dataset.context == "train,val,test,shift/dark"
    assert child.tags["carft.weights"] == "m" * 64
    assert child.tags["carft.version.python"]


def test_a_torn_line_of_the_book_costs_one_telling_and_no_run(toy: ToySweep) -> None:
    toy.run(parameters=ONE, seeds=[0], baselines=[])
    book = toy.home.sweep("toy") / "told.jsonl"
    lines = book.read_text().splitlines()
    child = next(i for i, line in enumerate(lines) if json.loads(line)[0] and i > 0)
    ended = next(i for i, line in enumerate(lines) if i > child and json.loads(line)[0])
    lines[ended] = lines[ended][:40]
    book.write_text("\n".join(lines) + "\n")
    before = str(toy.tracked()["car_ft kl_weight=0.3 seed 0"].history)
    toy.run(parameters=ONE, seeds=[0], baselines=[])
    (run,) = toy.tracked().values()
    assert (run.state, str(run.history)) == ("finished", before)


def test_a_sweep_in_which_nothing_is_new_opens_no_run(tmp_path: Path) -> None:
    result = tmp_path / "comparison.json"
    result.write_text("{}")
    for expected in (1, 0):
        tracker = MemoryTracker()
        tracked = TrackedSweep(tracker, "toy", tmp_path)
        tracked.begin(result, {})
        tracked.end("finished", {}, [result])
        assert len(tracker.runs) == expected
