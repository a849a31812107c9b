"""A sweep that ends with soups of its runs, from the shell, killed and gone on with."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.e2e.conftest import LIMIT, MakeTiny, Tiny

SOUPS: dict[str, Any] = {
    "seeds": [0, 1],
    "baselines": ["zero_shot", "fine_tune"],
    "after": [
        {"algorithm": {"name": "uniform_soup"}, "of": {"algorithm": "fine_tune"}},
        {"algorithm": "model_stock", "of": {"algorithm": "car_ft", "settings": "all"}},
    ],
}


def rows(tiny: Tiny) -> dict[str, Any]:
    found = json.loads(tiny.call("compare", "--json")[0])
    return {row["label"]: row for row in found["rows"]}


def test_a_killed_sweep_makes_its_soups_when_it_goes_on_and_compares_them(tiny: MakeTiny) -> None:
    sweep = tiny("souped", [1.0], epochs=1, **SOUPS)
    process = sweep.start()
    until = time.monotonic() + LIMIT
    while len(list(sweep.home.glob("runs/*/trained.json"))) < 4 and time.monotonic() < until:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    sweep.call("resume")
    found = rows(sweep)
    for label in ("uniform_soup of=fine_tune", "model_stock of=car_ft settings=all"):
        row, merged = found[label], found[f"{label} + wise_ft@0.5"]
        assert (row["role"], row["n"], merged["n"]) == ("soup", 1, 1)
        assert 0 <= row["metrics"]["ood/mean/top1"]["mean"] <= 1
    tracked = {run["tags"]["mlflow.runName"]: run for run in sweep.mlflow()}
    soup = tracked["of=fine_tune uniform_soup"]
    assert (soup["status"], soup["tags"]["carft.role"]) == ("FINISHED", "soup")
