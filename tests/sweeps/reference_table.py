"""LAION's table, as if it had a row for the built-in model, of the test set of its icons."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.data import open_data
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.files import read_json, write_json
from carft_sweep.tracking.report import published_zero_shot
from carft_sweep.tracking.report.published_zero_shot import ReferenceSplit, published_table

EXPECTED = 0.6


@functools.cache
def images(family: str) -> int:
    """How many the whole test set has."""
    return len(open_data(DataConfig(family=family)).measured()["id/test"])


def show_one_row(patch: pytest.MonkeyPatch, family: str = "icon_shift") -> None:
    """Let the product know this table and no other."""
    column = ReferenceSplit(family, "id/test/top1", images(family), templates="icon_shift")
    rows = {"builtin": [100 * EXPECTED]}
    table = published_table()._replace(columns=(column,), rows=rows)
    patch.setattr(published_zero_shot, "published_table", lambda: table)


def measure(folder: Path, top1: float, count: int | None = None) -> None:
    """Let a run have this accuracy on so many images, by default on the whole test set."""
    file = folder / "evaluations/unmerged/metrics.json"
    known: Any = read_json(file)
    family = read_json(folder / "config.json")["config"]["data"]["family"]
    known["metrics"]["id/test/top1"] = top1
    known["facts"]["images"] = {"id/test": images(family) if count is None else count}
    write_json(file, known)
