"""When a sweep ends, and what it leaves: the page, the answer in MLflow, and its code."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.results.report import write_page
from carft_sweep.sweeps.scheduler.session import SweepResult
from carft_sweep.sweeps.scheduler.time_budget import TimeBudget
from carft_sweep.tracking.provenance import provenance_tags
from carft_sweep.tracking.store.base import RunKey
from tests.sweeps.conftest import ALONE, ToySweep
from tests.tracking.memory_store import MemoryRun

WIDE = {"algorithm.kl_weight": {"min": 0.0, "max": 3.0}}
RANDOM: dict[str, Any] = {**ALONE, "method": "random", "parameters": WIDE}
ONE: dict[str, Any] = {"parameters": {"algorithm.kl_weight": {"values": [0.3]}}, "seeds": [0]}
LINK = "[The report, with charts](artifact:report.html)"


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sweeps whose pages were made, with a page that takes no time."""
    made: list[str] = []

    def make(home: Home, sweep: Any, *_: object) -> Sequence[Path]:
        made.append(sweep.name)
        page = home.sweep(sweep.name) / "report.html"
        page.write_text("a page")
        return [page]

    monkeypatch.setattr("carft_sweep.sweeps.scheduler.session.write_page", make)
    return made


def parent(toy: ToySweep) -> MemoryRun:
    return toy.tracker.runs[RunKey("toy")]


def test_the_answer_and_its_page_are_made_when_it_is_new(toy: ToySweep, pages: list[str]) -> None:
    asked = {**ONE, "description": "Does the term help?"}
    ended = toy.run(**asked)
    assert ended.comparison.statistics == ()  # one seed: nothing is tested
    tracked = parent(toy)
    assert tracked.artifacts["report.html"] == b"a page"
    assert tracked.tags["mlflow.note.content"].split("\n\n") == [
        LINK,
        "\n".join(f"- {line}" for line in ended.comparison.answer.lines),
        "**Selected.** `car_ft kl_weight=0.3`, by id/val/top1.",
        "Does the term help?",
    ]
    toy.run(**asked)
    assert pages == ["toy"]
    assert LINK in parent(toy).tags["mlflow.note.content"]
    # Each start of a driver is in the ledger with its code.
    executions = toy.ledger().executions
    assert [execution["tags"] for execution in executions] == [provenance_tags()] * 2
    assert executions[0]["at"] < executions[1]["at"]
    toy.run(**{**asked, "seeds": [0, 1]})
    assert pages == ["toy", "toy"]


def test_a_page_that_fails_costs_nothing(toy: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr("carft_sweep.sweeps.scheduler.session.write_page", write_page)
    monkeypatch.setattr("carft_sweep.sweeps.results.report.page", broken)
    assert toy.run(**ONE).state == "done"
    assert any("the report was not written (RuntimeError: no font)" in line for line in toy.lines)
    assert "artifact:" not in parent(toy).tags["mlflow.note.content"]


def test_who_cannot_be_shown_the_answer_leaves_no_run_open_in_mlflow(toy: ToySweep) -> None:
    def show(_: SweepResult) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        toy.run(**ONE, ended=show)
    assert {run.state for run in toy.tracker.runs.values()} == {"finished"}


def test_no_trial_begins_once_one_is_as_good_as_the_target(toy: ToySweep) -> None:
    toy.run(run_cap=50, metric={"name": "id/val/top1", "target": 0.75}, **RANDOM)
    values = [trial.value or 0.0 for trial in toy.ledger().trials()]
    assert max(values[:-1], default=0.0) < 0.75 <= values[-1]
    assert len(values) < 50
    toy.run(run_cap=50, metric={"name": "id/val/top1", "target": 0.75}, **RANDOM)
    assert len(toy.ledger().trials()) == len(values)
    toy.run(run_cap=len(values) + 2, **RANDOM)
    assert len(toy.ledger().trials()) == len(values) + 2


def test_a_used_up_time_budget_starts_nothing_and_time_is_counted_over_all_drivers(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.run(run_cap=1, **RANDOM)
    toy.ledger().remember("seconds", 3600.0)
    ended = toy.run(run_cap=3, time_budget="1h", **RANDOM)
    assert len(toy.ledger().trials()) == 1
    assert (ended.state, ended.done) == ("done", 1)
    assert any("time budget is used up" in line for line in toy.lines)
    toy.run(run_cap=3, time_budget="2h", **RANDOM)
    ledger, now = toy.ledger(), [100.0]
    assert (len(ledger.trials()), ledger.generation) == (3, 1)
    ledger.remember("seconds", 0.0)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for spent in (40.0, 80.0):
        budget = TimeBudget(ledger, 100.0)
        now[0] += 40.0
        assert budget.spent == spent
        budget.count(now=True)
    budget = TimeBudget(ledger, 100.0)
    assert not budget.is_used_up
    now[0] += 20.0
    assert budget.is_used_up
