"""A sweep that ends with soups of its runs; that it may be killed, `test_after.py` has."""

from __future__ import annotations

import json
from typing import Any

from tests.e2e.conftest import MakeTiny

SOUPS: dict[str, Any] = {
    "seeds": [0, 1],
    "baselines": ["zero_shot", "fine_tune"],
    "after": [
        {"algorithm": {"name": "uniform_soup"}, "of": {"algorithm": "fine_tune"}},
        {"algorithm": "model_stock", "of": {"algorithm": "car_ft", "settings": "all"}},
    ],
}


def test_a_sweep_makes_its_soups_and_compares_them(tiny: MakeTiny) -> None:
    sweep = tiny("souped", [1.0], epochs=1, **SOUPS)
    sweep.in_process("run")
    rows = {row["label"]: row for row in json.loads(sweep.in_process("compare", "--json"))["rows"]}
    for label in ("uniform_soup of=fine_tune", "model_stock of=car_ft settings=all"):
        row, merged = rows[label], rows[f"{label} + wise_ft@0.5"]
        assert (row["role"], row["n"], merged["n"]) == ("soup", 1, 1)
        assert 0 <= row["metrics"]["ood/mean/top1"]["mean"] <= 1
