"""What a sweep runs after its file was changed and its driver died: what its ledger says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.ledger.ledger import Ledger, read_generations
from tests.sweeps import toy_core
from tests.sweeps.conftest import ALONE, ONE_RUN, SEARCH, ToySweep, toy_in
from tests.sweeps.scheduler.dying import dying

TWO: Mapping[str, Any] = {
    "algorithm.kl_weight": {"values": [0.1, 0.3]},
    "optim.lr": {"values": [1e-4, 1e-3, 1e-2]},
}
SWAPPED = dict(reversed([*TWO.items()]))
SHORT: Mapping[str, Any] = {**SEARCH, "run_cap": 3}


def points(ledger: Ledger) -> list[dict[str, Any]]:
    return [dict(trial.params) for trial in ledger.trials()]


def undisturbed(toy: ToySweep, **changes: Any) -> list[dict[str, Any]]:
    """The points of the sweep in a home of its own."""
    other = toy_in(toy.folder / "undisturbed", toy.monkeypatch)
    other.folder.mkdir(exist_ok=True)
    other.run(**changes)
    return points(other.ledger())


@pytest.mark.parametrize(
    ("method", "cap", "first_cap"),
    [("grid", None, None), ("grid", None, 3), ("random", 6, None), ("tpe", 6, 3), ("nsga2", 6, 3)],
)
def test_parameters_that_change_places_leave_the_points_as_they_are(
    toy: ToySweep, method: str, cap: int | None, first_cap: int | None
) -> None:
    goals = {"metrics": [{"name": "id/val/top1"}, {"name": "ood/mean/top1"}], "selection": "oracle"}
    search = {**ALONE, "method": method, **(goals if method == "nsga2" else {})}
    last = {**search, **({} if cap is None else {"run_cap": cap})}
    first = {**search, "run_cap": first_cap} if first_cap else last
    with dying("complete"):
        toy.run(**first, parameters=TWO)
    toy.run(**last, parameters=SWAPPED)
    assert toy.ledger().generation == 1
    assert points(toy.ledger()) == undisturbed(toy, **last, parameters=TWO)


@pytest.mark.parametrize(("method", "cap"), [("tpe", 11), ("nsga2", 4)])
def test_points_survive_a_crash_behind_a_new_seed(toy: ToySweep, method: str, cap: int) -> None:
    search = {**SEARCH, "method": method, "run_cap": cap}
    toy.run(**search)
    before = points(toy.ledger())
    for seeds in ([0, 1], [0, 1, 2]):  # the second one while most points wait for their turn
        with dying("complete"):
            toy.run(**{**search, "seeds": seeds})
    toy.run(**{**search, "seeds": [0, 1, 2]})
    assert points(toy.ledger()) == before
    assert max(toy.trained().values()) == toy_core.EPOCHS + 1


def test_what_is_to_run_is_in_the_line_that_begins_a_generation(toy: ToySweep) -> None:
    """No crash can part them. And what was spent before counts in the next generation too."""
    toy.run(**SHORT)
    before, trained = points(toy.ledger()), toy.trained()
    toy.run(**SHORT, selection={"within": 0.02})  # begins none
    assert (toy.ledger().generation, points(toy.ledger())) == (1, before)
    assert toy.trained() == trained
    spent = toy.ledger().recall("seconds")
    with dying("remember", before=True):
        toy.run(**{**SHORT, "seeds": [0, 1]})
    assert [dict(point) for point in toy.ledger().points()] == before
    toy.run(parameters=TWO, **ALONE)
    (begun,) = [ledger for ledger in read_generations(toy.ledger().file) if ledger.generation == 3]
    assert [dict(point) for point in begun.points()] == points(begun)
    assert toy.ledger().recall("seconds") > spent
    toy.run(**{**SHORT, "seed": 1, "time_budget": spent})
    assert (toy.ledger().generation, toy.ledger().trials()) == (4, [])
    toy.run(fresh=True, **{**SHORT, "seed": 1, "time_budget": 600})
    assert toy.ledger().recall("seconds") < 600


def test_neither_an_unreadable_line_nor_a_name_in_another_case_is_written(toy: ToySweep) -> None:
    toy.run(**ONE_RUN)
    ledger = toy.ledger()
    before = ledger.file.read_bytes()
    trial = ledger.trials()[0]
    setting = {"algorithm": "car_ft", "params": {}, "runs": dict(trial.runs)}
    with pytest.raises(RequestError, match=r"ledger\.jsonl: .*'halves@a/b' is no label"):
        ledger.add_trial(9, {**setting, "merges": ["halves@a/b"]})
    assert ledger.file.read_bytes() == before
    assert toy.run(**ONE_RUN).state == "done"
    with pytest.raises(RequestError, match="a sweep 'toy', which differs from 'TOY' in upper and"):
        toy.run(name="TOY")
    assert [path.name for path in toy.home.sweeps.iterdir()] == ["toy"]
