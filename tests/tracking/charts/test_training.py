"""Learning curves; damaged histories are left out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.tracking.charts import CHARTS
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.training import read_history
from carft_sweep.tracking.comparison.compare import compare
from carft_sweep.tracking.comparison.runs import RunRecord
from tests.tracking.charts.drawn import Spec, data_of, spec_of
from tests.tracking.kept import keep_history
from tests.tracking.made_up import KL, metrics, run


def trained(record: RunRecord, folder: Path, losses: list[float]) -> RunRecord:
    keep_history(folder, losses, [0.1 * epoch for epoch in range(len(losses) + 1)])
    return replace(record, folder=folder)


def test_a_curve_has_the_epochs_of_every_seed(tmp_path: Path) -> None:
    runs = [
        trained(run("fine_tune", 0, metrics(0.6, 0.3)), tmp_path / "0", [3.0, 2.0]),
        trained(run("fine_tune", 1, metrics(0.6, 0.3)), tmp_path / "1", [2.0, 1.0, 0.5]),
    ]
    data = ChartData(compare(runs, sweep="s"))
    loss, accuracy = panels_of(spec_of("learning", data))
    assert [
        (row["epoch"], row["mean"], row["lowest seed"], row["highest seed"]) for row in loss
    ] == [
        (1, 2.5, 2.0, 3.0),
        (2, 1.5, 1.0, 2.0),
    ]
    assert [row["epoch"] for row in accuracy] == [0, 1, 2]


def panels_of(spec: Spec) -> list[list[dict[str, Any]]]:
    """Return the rows of each panel."""
    return [spec["datasets"][panel["data"]["name"]] for panel in spec["concat"]]


def test_only_the_settings_on_show_are_drawn(tmp_path: Path) -> None:
    runs = []
    for trial in range(3):
        record = run("car_ft", 0, metrics(0.5 + trial / 100, 0.3), trial=trial, params={KL: trial})
        runs.append(trained(record, tmp_path / str(trial), [1.0]))
    data = ChartData(compare(runs, sweep="s"))
    rows = data_of(spec_of("learning", data), "epoch", "mean")
    assert {row["setting"] for row in rows} == {"car_ft kl_weight=2"}


@pytest.mark.parametrize(
    "text", [None, "", "[]", "{}", "[1]", '[{"epoch": 1}]', '[{"metrics": 3, "seconds": 1}]']
)
def test_a_history_that_is_none_is_a_missing_one(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "history.json").write_text(text)
    record = replace(run("fine_tune", 0, metrics(0.6, 0.3)), folder=tmp_path)
    assert not read_history(record)
    data = ChartData(compare([record], sweep="s"))
    assert CHARTS["learning"].draw(data) is None


def test_what_is_no_number_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "history.json").write_text(
        '[{"seconds": 1, "metrics": {"a": NaN, "b": Infinity, "c": 1, "d": "x"}}]'
    )
    history = read_history(replace(run("fine_tune", 0, metrics(0.6, 0.3)), folder=tmp_path))
    assert history == [{"c": 1.0}]


def test_learning_is_the_mean_and_range_over_seeds(everything: ChartData) -> None:
    spec = spec_of("learning", everything)
    rows = [
        row
        for row in data_of(spec, "epoch", "mean")
        if row["setting"] == "fine_tune lr=0.0001" and row["mean"] < 2
    ]
    assert [
        (row["epoch"], row["mean"], row["lowest seed"], row["highest seed"]) for row in rows
    ] == [
        (1, 1.8, 1.8, 1.8),
        (2, 1.2, 1.2, 1.2),
        (3, pytest.approx(1.01), 1.0, 1.02),
    ]
