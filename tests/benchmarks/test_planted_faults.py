"""The faults of the benchmark: planned for a run, drawn by chance, and named as they happen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.chaos.planted_faults import PLAN, by_chance, go_wrong, name_of, planned_fault
from carft_sweep.carft_core.files import write_json
from carft_sweep.sweeps.engines.entry import classify

CAR_FT = {"algorithm": {"name": "car_ft", "kl_weight": 0.3}}


def test_a_plan_says_what_each_attempt_at_a_run_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert name_of(CAR_FT, 1) == "0.3/1"
    assert name_of({"algorithm": {"name": "fine_tune"}}, 0) == "fine_tune/0"
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"runs": {"0.3/1": ["nan", "hang@end"]}, "rates": {"data": 1.0}}))
    monkeypatch.setenv(PLAN, str(plan))
    for attempt, fault in ((1, "nan"), (2, "hang@end"), (3, "")):
        write_json(tmp_path / "run.json", {"attempts": attempt})
        assert planned_fault(CAR_FT, 1, tmp_path) == fault
        assert planned_fault(CAR_FT, 0, tmp_path) == ("data" if attempt == 1 else "")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("nan", "nan"),
        ("data", "data"),
        ("crash", "crashed"),
        ("cuda-memory", "out_of_memory"),
        ("cpu-memory", "out_of_memory"),
    ],
)
def test_a_fault_has_the_class_that_the_policy_knows(fault: str, kind: str) -> None:
    with pytest.raises((RuntimeError, ValueError)) as raised:
        go_wrong(fault)
    assert classify(raised.value)[0] == kind


def test_chance_is_the_same_each_time_and_as_often_as_asked() -> None:
    rates = {"nan": 0.02, "crash": 0.02, "killed": 0.005}
    drawn = [by_chance(rates, f"{number}") for number in range(5000)]
    assert drawn == [by_chance(rates, f"{number}") for number in range(5000)]
    share = sum(map(bool, drawn)) / len(drawn)
    assert share == pytest.approx(sum(rates.values()), abs=0.01)
