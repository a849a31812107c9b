"""What a sweep's own records say: of runs that others measured, and of several goals."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import optuna
from hypothesis import given, settings
from hypothesis import strategies as st

from carft_sweep.carft_core.files import read_json, write_json
from carft_sweep.sweeps.ledger.runs import RunStore, measured
from carft_sweep.sweeps.results.records import comparison, front
from tests.sweeps.conftest import ToySweep

GOALS = st.integers(2, 4).flatmap(
    lambda count: st.tuples(
        st.lists(st.booleans(), min_size=count, max_size=count),
        st.lists(
            st.lists(st.integers(-3, 3).map(float), min_size=count, max_size=count), max_size=25
        ),
    )
)


def amend(runs: RunStore, digests: Iterable[str], label: str, **facts: str) -> None:
    """Change facts of an evaluation of runs."""
    for digest in digests:
        file = runs.folder(digest) / "evaluations" / label / "metrics.json"
        plain = read_json(file)
        write_json(file, {**plain, "facts": {**plain["facts"], **facts}})


def test_what_was_measured_otherwise_is_told_and_a_merge_has_its_marks(toy: ToySweep) -> None:
    toy.run()
    ledger, runs = toy.ledger(), RunStore(toy.home.runs)
    number, trained = ledger.trials()[0].number, [*ledger.trials()[0].runs.values()]

    def warnings_with(result: str) -> list[str]:
        amend(runs, trained, "unmerged", result=result)
        compared = comparison(ledger, runs)
        return [warning for warning in compared.warnings if "measured runs" in warning]

    assert warnings_with("last") == []
    (note,) = warnings_with("best_val")
    assert "anew with keep.result: best_val, where this one asks for last" in note
    amend(runs, trained, "wise_ft@0.5", merge_mark="transductive")
    rows = comparison(ledger, runs).rows
    marked = [(row.arm.trial, row.arm.merge) for row in rows if "transductive" in row.marks]
    assert marked == [(number, "wise_ft@0.5")]


def test_the_seconds_of_training_are_a_metric_of_the_unmerged_model(tmp_path: Path) -> None:
    evaluation = {"digest": "d", "label": "", "step": 0, "values": {}, "facts": {}}
    for label in ("unmerged", "wise_ft@0.5"):
        file = tmp_path / "evaluations" / label / "metrics.json"
        write_json(file, {**evaluation, "metrics": {"id/val/top1": 0.5}})

    def seconds(label: str) -> float | None:
        return (measured(tmp_path, label) or {})["metrics"].get("system/train_seconds")

    write_json(tmp_path / "trained.json", {"seconds": 12.5})
    assert (seconds("unmerged"), seconds("wise_ft@0.5")) == (12.5, None)
    (tmp_path / "trained.json").write_text("torn")  # its results are there all the same
    assert seconds("unmerged") is None


@settings(max_examples=60, deadline=None)
@given(goals=GOALS)
def test_the_front_is_optunas(goals: tuple[list[bool], list[list[float]]]) -> None:
    maximized, points = goals
    known = optuna.study.StudyDirection
    directions = [known.MAXIMIZE if more else known.MINIMIZE for more in maximized]
    study = optuna.create_study(directions=directions)
    for point in points:
        study.add_trial(optuna.trial.create_trial(values=point))
    expected = {trial.number for trial in study.best_trials}
    assert front(dict(enumerate(points)), maximized) == expected
