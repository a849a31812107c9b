"""Histories give learning curves and cost; what cannot be read is left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.tracking.kept import keep_history
from tests.tracking.made_up import KL, metrics, run
from tracking.comparison.compare import compare
from tracking.comparison.runs import RunRecord
from tracking.comparison.spec import VAL
from tracking.evidence.data import LOSS, MOST_LEARNING, gather
from tracking.evidence.training import read_history


def trained(record: RunRecord, folder: Path, losses: list[float]) -> RunRecord:
    keep_history(folder, losses, [0.1 * epoch for epoch in range(len(losses) + 1)])
    return replace(record, folder=folder)


def test_a_curve_has_the_epochs_of_every_seed(tmp_path: Path) -> None:
    runs = [
        trained(run("fine_tune", 0, metrics(0.6, 0.3)), tmp_path / "0", [3.0, 2.0]),
        trained(run("fine_tune", 1, metrics(0.6, 0.3)), tmp_path / "1", [2.0, 1.0, 0.5]),
    ]
    evidence = gather(compare(runs, sweep="s"))
    curves = {curve.metric: curve for curve in evidence.learning}
    assert curves[LOSS].epochs == ((1, 2.5, 2.0, 3.0), (2, 1.5, 1.0, 2.0))
    assert [epoch for epoch, *_ in curves[VAL].epochs] == [0, 1, 2]
    (cost,) = evidence.cost
    assert cost.seconds == (7.0, 10.5)
    assert cost.epochs == 3
    assert cost.images_per_s == pytest.approx((101 + 102 + 101 + 102 + 103) / 5)


def test_the_best_settings_are_drawn_and_pruned_ones_apart(tmp_path: Path) -> None:
    runs = []
    for trial in range(20):
        record = run(
            "car_ft", 0, metrics(0.5 + trial / 100, 0.3), trial=trial, params={KL: trial + 1}
        )
        if trial < 3:
            record = replace(record, state="pruned")
        runs.append(trained(record, tmp_path / str(trial), [1.0]))
    evidence = gather(compare(runs, sweep="s"))
    standing: dict[str, list[int | None]] = {}
    for curve in evidence.learning:
        if curve.metric == VAL:
            standing.setdefault(curve.standing, []).append(curve.row.arm.trial)
    assert standing["shown"] == [19]
    assert standing["best"] == list(range(18, 19 - MOST_LEARNING, -1))
    assert standing["pruned"] == [0, 1, 2]


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", "[1]", '[{"metrics": {}}]', '[{"metrics": 3, "seconds": 1}]']
)
def test_a_history_that_is_none_is_a_missing_one(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "history.json").write_text(text)
    record = replace(run("fine_tune", 0, metrics(0.6, 0.3)), folder=tmp_path)
    assert read_history(record) is None
    evidence = gather(compare([record], sweep="s"))
    assert evidence.learning == evidence.cost == ()


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(
        '[{"seconds": 1, "metrics": {"a": NaN, "b": Infinity, "c": 1, "d": "x"}}]'
    )
    history = read_history(replace(run("fine_tune", 0, metrics(0.6, 0.3)), folder=tmp_path))
    assert history is not None
    assert list(history.metrics) == [{"c": 1.0}]
