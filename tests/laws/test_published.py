"""What is quoted goes by names that the product and open_clip know, and states what it is of."""

from __future__ import annotations

import re
from typing import Any

import open_clip
import pytest
import yaml

from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.tracking.report.published import FILE, published

DATA: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", DATA["families"])
def test_a_family_and_its_shifts_are_registered(name: str) -> None:
    assert {*DATA["families"][name]} <= {*FAMILIES[name].folders}


@pytest.mark.parametrize("name", DATA["backbones"])
def test_a_backbone_is_one_that_open_clip_has_weights_of(name: str) -> None:
    backbone = DATA["backbones"][name]
    pairs = {(model, tag) for model in backbone["names"] for tag in backbone["pretrained"]}
    assert pairs <= {*open_clip.list_pretrained()}


def test_every_row_states_its_source_shifts_runs_alpha_and_recipe_and_is_a_share() -> None:
    rows = published()
    assert len(rows) > 90
    for row in rows:
        assert row.source
        assert row.recipe
        assert row.run_by
        assert row.alpha_selection
        assert {*row.shifts} <= {*DATA["families"][row.family]} != set()
        assert row.shifts
        assert row.backbone.names
        assert row.values
        assert all(0.2 < value < 1 for value in row.values.values()), row
        shifts = {*DATA["families"][row.family], "id", "mean"}
        assert set(row.values) <= shifts
    assert {row.method for row in rows} >= {"CAR-FT", "FT", "zero-shot", "FLYP", "Lipsum-FT"}


def test_every_source_can_be_found() -> None:
    """A paper with its table, or an address: no "a paper of that year"."""
    for table in DATA["tables"]:
        assert re.search(r"arXiv|NeurIPS|CVPR|ICML|github\.com", table["source"]), table["source"]
        assert re.search(
            r"Table \d|README|issue|result files|leaderboards|reading note", table["source"]
        ), table["source"]
