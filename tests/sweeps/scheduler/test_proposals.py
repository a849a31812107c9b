"""A proposal is a function of the sweep, what its ledger knows and the point: no restart shows."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial

from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.generations import planned_points
from carft_sweep.sweeps.ledger.ledger import Ledger, find_ledger
from carft_sweep.sweeps.ledger.optuna_copy import frozen_trial
from carft_sweep.sweeps.scheduler.proposer import GENERATION, Proposal, next_point
from carft_sweep.sweeps.space import RANDOM_TRIALS
from carft_sweep.sweeps.space.points import is_active
from carft_sweep.sweeps.spec.settings import METHODS
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec
from tests.sweeps.space.spaces import decode

SEARCHES = [method for method in METHODS if method != "grid"]
GOALS = [{"name": "id/val/top1"}, {"name": "id/val/nll"}]
GRID = {
    "optim.lr": {"values": [1e-4, 1e-3]},
    "optim.clip": {"values": [None, 1.0]},
    "optim.warmup": {"values": [0.0, 0.1], "when": {"optim.clip": 1.0}},
}
PARAMETERS = {
    "optim.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
    "optim.epochs": {"min": 2, "max": 10, "q": 4},
    "optim.clip": {"values": [None, 1.0]},
    "optim.warmup": {"min": 0.0, "max": 0.5, "when": {"optim.clip": 1.0}},
}

Value = Callable[[dict[str, Any]], float]


def closeness(params: dict[str, Any]) -> float:
    """The best rate is 3e-4."""
    return -abs(math.log(params["optim.lr"] / 3e-4))


def too_fast(params: dict[str, Any]) -> float:
    """By how much a rate passes 1e-4, where the best one is not allowed."""
    return math.log(params["optim.lr"] / 1e-4)


class Search:
    """A sweep's trials, any of which may follow on a restart."""

    def __init__(self, folder: Path, **keys: Any) -> None:
        folder.mkdir()
        file = folder / "x.yaml"
        data = {"name": "x", "parameters": PARAMETERS, "trial": {"algorithm": "car_ft"}}
        file.write_text(yaml.safe_dump({**data, **keys}, sort_keys=False))
        self.spec: SweepSpec = load_spec(file)
        self.home = Home(folder)
        plain = json.loads(json.dumps(self.spec.as_dict()))
        points = planned_points(self.spec, ())
        self.ledger = Ledger.create(self.home.sweep("x"), 1, plain, {}, points=points)

    def restart(self) -> None:
        """Forget everything but the files."""
        self.ledger = find_ledger(self.home, "x")

    def frozen(self) -> list[FrozenTrial]:
        """The trials as samplers have them."""
        trials = self.ledger.proposals()
        return [frozen_trial(t, self.spec.parameters, len(self.spec.goals)) for t in trials]

    def begin(self, point: int) -> tuple[Proposal, int]:
        """Propose a point, and let its trial run."""
        proposal = next_point(self.spec, self.ledger, point)
        return proposal, self.keep(point, proposal)

    def keep(self, point: int, proposal: Proposal) -> int:
        setting = {"params": dict(proposal.params), "algorithm": "car_ft", "runs": {}, "merges": []}
        return self.ledger.add_trial(point, setting, proposal.sampler).number

    def run(self, points: range, value: Value = closeness, *, restarts: bool = False) -> list[Any]:
        """One trial after another."""
        proposed = []
        for point in points:
            if restarts:
                self.restart()
            proposal, number = self.begin(point)
            self.end(number, value(dict(proposal.params)))
            proposed.append(dict(proposal.params))
        return proposed

    def fill(self, points: Iterable[int]) -> None:
        """Trials at points that are drawn, which takes no fit of any model."""
        drawn = Search(self.home.path / "drawn", method="random", run_cap=100)
        for point in points:
            proposal = next_point(drawn.spec, drawn.ledger, point)
            self.end(self.keep(point, Proposal(proposal.params)), closeness(dict(proposal.params)))

    def end(self, number: int, value: float) -> None:
        self.ledger.complete(number, [value, -value / 2][: len(self.spec.goals)])


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Search]:
    numbers = itertools.count()
    return lambda **keys: Search(tmp_path / str(next(numbers)), **keys)


def keys_of(method: str, goals: int) -> dict[str, Any]:
    several = {"metrics": GOALS} if goals > 1 else {}
    return {"method": method, "run_cap": 100, **several}


@pytest.mark.parametrize("goals", [1, 2])
@pytest.mark.parametrize("method", SEARCHES)
def test_with_a_restart_before_each_proposal_the_same_points_come(
    search: Callable[..., Search], method: str, goals: int
) -> None:
    keys = keys_of(method, goals)
    first = search(**keys, seed=7).run(range(12))
    assert search(**keys, seed=7).run(range(12), restarts=True) == first
    assert search(**keys, seed=8).run(range(2)) != first[:2]
    assert len({point["optim.lr"] for point in first}) == 12


@pytest.mark.parametrize("method", METHODS)
def test_a_proposal_is_what_is_active_in_order(search: Callable[..., Search], method: str) -> None:
    made = search(method=method, parameters=GRID if method == "grid" else PARAMETERS)
    for point in range(6):
        proposal, number = made.begin(point)
        active = [item.name for item in made.spec.parameters if is_active(item, proposal.params)]
        assert [*proposal.params] == active
        assert decode(made.spec.parameters, made.frozen()[number].params) == proposal.params
        made.end(number, 0.0)
        made.spec.config_for(proposal.params)
        assert method != "grid" or proposal.params == made.spec.points()[point]
    if method == "grid":
        with pytest.raises(ValueError, match="the points of a grid sweep are planned"):
            next_point(made.spec, made.ledger, 6)


def test_a_random_point_does_not_depend_on_what_is_known(search: Callable[..., Search]) -> None:
    for method in ("random", "qmc"):
        made = search(method=method)
        alone = next_point(made.spec, made.ledger, 9)
        made.run(range(9))
        assert next_point(made.spec, made.ledger, 9) == alone


@pytest.mark.parametrize("method", SEARCHES)
def test_points_to_try_first_are_completed(search: Callable[..., Search], method: str) -> None:
    whole = {"optim.lr": 5e-4, "optim.epochs": 6, "optim.clip": 1.0, "optim.warmup": 0.125}
    first = [whole, {"optim.lr": 2e-4}, {"optim.clip": None}]
    made = search(method=method, try_first=first)
    points = made.run(range(12))
    assert points[0] == whole
    assert points[1]["optim.lr"] == 2e-4
    assert set(points[1]) >= {"optim.lr", "optim.epochs", "optim.clip"}
    assert points[2]["optim.clip"] is None
    assert "optim.warmup" not in points[2]
    other = search(method=method, try_first=first, seed=1)
    assert other.run(range(2))[1] != points[1]
    if method in ("random", "qmc"):
        assert search(method=method).run(range(12))[3:] == points[3:]


@pytest.mark.parametrize(("method", "goals"), [("tpe", 2), ("gp", 1), ("nsga2", 2)])
def test_trials_that_run_were_pruned_or_have_failed_do_not_disturb(
    search: Callable[..., Search], method: str, goals: int
) -> None:
    made = search(**keys_of(method, goals))
    # The model of `gp` takes long to fit.
    drawn = search(method="random", run_cap=100) if method == "gp" else made
    for point in range(30):
        proposal = next_point(drawn.spec, drawn.ledger, point)
        number = made.keep(point, proposal)
        if point % 5 == 1:
            made.ledger.report(number, 1, -1.0)
            made.ledger.report(number, 2, -2.0)
            made.ledger.prune(number, "asha", "below the others")
        elif point % 5 == 2:
            made.ledger.fail(number, "nan", "the loss")
        elif point % 5 != 3:
            made.end(number, closeness(dict(proposal.params)))
    states = Counter(trial.state for trial in made.frozen())
    assert {state.name for state in states} == {"RUNNING", "PRUNED", "FAIL", "COMPLETE"}
    assert next_point(made.spec, made.ledger, 30) == next_point(made.spec, made.ledger, 30)


@pytest.mark.parametrize("method", ["tpe", "gp"])
def test_a_running_trial_is_kept_away_from(search: Callable[..., Search], method: str) -> None:
    made = search(method=method)
    made.fill(range(12))
    proposal, _ = made.begin(12)
    assert next_point(made.spec, made.ledger, 13).params != proposal.params


def test_each_goal_is_followed_in_its_direction(search: Callable[..., Search]) -> None:
    made = search(**keys_of("tpe", 2), parameters={"optim.lr": PARAMETERS["optim.lr"]}, seed=1)
    value = [closeness(point) for point in made.run(range(30))]
    assert sum(value[20:]) / 10 > sum(value[:10]) / 10


@pytest.mark.parametrize("method", ["tpe", "random", "qmc", "nsga2"])
def test_a_small_space_is_proposed_again(search: Callable[..., Search], method: str) -> None:
    made = search(method=method, run_cap=24, parameters={"optim.clip": {"values": [None, 1.0]}})
    points = made.run(range(24), lambda params: params["optim.clip"] or 0.0)
    assert {point["optim.clip"] for point in points} == {None, 1.0}


def test_generations_with_restarts_are_optunas(search: Callable[..., Search]) -> None:
    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_float("lr", 1e-5, 1e-2, log=True)

    sampler = NSGAIISampler(population_size=RANDOM_TRIALS["nsga2"], seed=0)
    undisturbed = optuna.create_study(sampler=sampler)
    undisturbed.optimize(objective, n_trials=45)
    made = search(**keys_of("nsga2", 2))
    points = made.run(range(45), restarts=True)
    assert generations(made) == [t.system_attrs[GENERATION] for t in undisturbed.get_trials()]
    assert Counter(generations(made)) == {0: 20, 1: 20, 2: 5}
    assert search(**keys_of("nsga2", 2)).run(range(45)) == points


def test_a_trial_that_is_tried_again_stays_in_its_generation(search: Callable[..., Search]) -> None:
    made = search(**keys_of("nsga2", 1))
    assert len(made.run(range(25))) == 25
    proposal, number = made.begin(25)
    made.ledger.fail(number, "crashed", "a worker")
    # As a later execution does it: the same parameters at the same point.
    made.end(made.keep(25, Proposal(proposal.params)), 0.0)
    more = [generations(made)[-2], *(next_point(made.spec, made.ledger, 26).sampler.values())]
    assert more == [1, 1]
    made.run(range(26, 40))
    assert next_point(made.spec, made.ledger, 40).sampler == {GENERATION: 2}


def test_points_carried_over_are_a_population_too(search: Callable[..., Search]) -> None:
    made, later = (search(**keys_of("nsga2", 1)) for _ in range(2))
    points = made.run(range(30))
    for point, params in enumerate(points):
        later.end(later.keep(point, Proposal(params)), closeness(params))
    assert next_point(later.spec, later.ledger, 30) == next_point(made.spec, made.ledger, 30)


def generations(made: Search) -> list[int | None]:
    return [trial.system_attrs.get(GENERATION) for trial in made.frozen()]


FITTED = pytest.param("gp", 35, marks=pytest.mark.slow)  # its model is fitted 70 times


@pytest.mark.parametrize(("method", "points"), [("tpe", 45), FITTED, ("nsga2", 80)])
def test_a_search_meets_its_constraint(
    search: Callable[..., Search], method: str, points: int
) -> None:
    shares = []
    for is_constrained in (False, True):
        made, missed = search(method=method, run_cap=points), dict[int, float]()
        for point in range(points):
            proposal = next_point(made.spec, made.ledger, point, missed if is_constrained else {})
            number = made.keep(point, proposal)
            made.end(number, closeness(dict(proposal.params)))
            missed[number] = too_fast(dict(proposal.params))
        late = range(points // 2, points)
        shares.append(sum(missed[number] < 0.1 for number in late) / len(late))
    assert shares[0] + 0.2 < shares[1]
    assert shares[1] > 0.5
