"""What the benchmark of the search against the grid counts, and that it compares like with like."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.tpe_asha_against_grid import HERE, best_of, counted, epochs_to, table
from carft_sweep.sweeps.spec.spec import load_spec


def trial(value: float | None, epochs: int) -> dict[str, Any]:
    return {
        "state": "pruned" if value is None else "complete",
        "value": value,
        "epochs": epochs,
    }


FOUND = [trial(0.5, 6), trial(None, 1), trial(0.625, 6), trial(None, 3), trial(0.75, 6)]


@pytest.mark.parametrize(
    ("value", "sign", "epochs"),
    [(0.5, 1, 6), (0.6, 1, 13), (0.75, 1, 22), (0.8, 1, None), (0.5, -1, 6), (0.4, -1, None)],
)
def test_epochs_are_counted_up_to_the_first_trial_as_good_pruned_ones_included(
    value: float, sign: int, epochs: int | None
) -> None:
    assert epochs_to(FOUND, value, sign) == epochs


def test_the_best_is_by_the_direction_and_pruned_trials_have_no_value() -> None:
    assert best_of(FOUND, 1) == 0.75
    assert best_of(FOUND, -1) == 0.5
    assert best_of([trial(None, 1)], 1) is None


def test_a_search_that_never_reached_it_says_so() -> None:
    grid = counted([trial(0.875, 6)] * 6, 0.875, 1)
    search = {"seed": 0, **counted(FOUND, 0.875, 1)}
    assert (search["trials"], search["pruned"], search["epochs"]) == (5, 2, 22)
    told = table(
        {
            "metric": "id/val/top1",
            "machine": "paper",
            "minutes": 0,
            "grid": grid,
            "sweeps": [search],
            "median": {name: float("inf") for name in search["to_best"]},
        }
    )
    assert told.count("not reached") == 2 * len(search["to_best"])
    assert "6 (17%)" in told


def test_grid_and_search_differ_in_the_search_alone() -> None:
    grid, search = (
        load_spec(HERE / f"kl_weight_lr_{name}.yaml").as_dict() for name in ("grid", "tpe_asha")
    )
    alone = {"name", "method", "parameters", "early_terminate", "run_cap"}
    assert {key for key in grid if grid[key] != search.get(key)} <= alone


def test_the_grid_has_36_points_and_the_search_its_ranges() -> None:
    grid, search = (load_spec(HERE / f"kl_weight_lr_{name}.yaml") for name in ("grid", "tpe_asha"))
    assert grid.trial_count == 36
    assert grid.as_dict()["trial"]["data"]["family"] == "icon_shift_dev"
    for name, values in grid.as_dict()["parameters"].items():
        ends = search.as_dict()["parameters"][name]
        assert (min(values["values"]), max(values["values"])) == (ends["min"], ends["max"])
