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


def amend(runs: RunStore, digests: Iterable[str], label: str, **facts: object) -> None:
    """Change facts of an evaluation of runs."""
    for digest in digests:
        file = runs.folder(digest) / "evaluations" / label / "metrics.json"
        plain = read_json(file)
        write_json(file, {**plain, "facts": {**plain["facts"], **facts}})


def test_what_was_measured_otherwise_is_told_and_a_merge_has_its_marks(toy: ToySweep) -> None:
    toy.run()
    ledger, runs = toy.ledger(), RunStore(toy.home.runs)
    number, trained = ledger.trials()[0].number, [*ledger.trials()[0].runs.values()]

    def warnings_with(**asked: object) -> list[str]:
        usual: dict[str, object] = {
            "keep_result": "last",
            "data_shifts": None,
            "eval_retention": [],
        }
        fields = {name.replace("_", "."): value for name, value in (usual | asked).items()}
        amend(runs, trained, "unmerged", asked=fields)
        compared = comparison(ledger, runs)
        return [warning for warning in compared.warnings if "run toy again" in warning]

    assert warnings_with() == []
    for field, value, words in (
        ("keep_result", "best_val", "keep.result: last, and another sweep has measured 2 runs of"),
        ("data_shifts", ["night", "day"], "data.shifts: all, and another sweep has measured 2"),
        ("data_shifts", [], "it anew with none; run toy again, and they are measured as it asks"),
        ("eval_retention", ["digits"], "eval.retention: none, and another sweep has measured 2"),
    ):
        (warning,) = warnings_with(**{field: value})
        assert words in warning
    assert "anew with day, night; run toy" in warnings_with(data_shifts=["night", "day"])[0]
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
