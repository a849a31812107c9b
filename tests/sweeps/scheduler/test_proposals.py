"""A proposal is a function of the sweep, what its ledger knows and the point: no restart shows."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.samplers import NSGAIISampler
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.generations import planned_points
from carft_sweep.sweeps.ledger.study import frozen_trial
from carft_sweep.sweeps.ledger.trials import Ledger, find_ledger
from carft_sweep.sweeps.scheduler.proposer import GENERATION, Proposal, propose
from carft_sweep.sweeps.space.points import grid, is_active
from carft_sweep.sweeps.space.samplers import POPULATION
from carft_sweep.sweeps.spec import spec as spec_module
from carft_sweep.sweeps.spec.settings import METHODS
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec
from tests.sweeps.space.spaces import decode

SEARCHES = [method for method in METHODS if method != "grid"]
ADAPTIVE = ["tpe", "gp", "nsga2"]
GOALS = [{"name": "id/val/top1"}, {"name": "id/val/nll"}]
PARAMETERS = {
    "optim.lr": {"distribution": "log_uniform_values", "min": 1e-5, "max": 1e-2},
    "optim.epochs": {"min": 2, "max": 10, "q": 4},
    "optim.clip": {"values": [None, 1.0]},
    "optim.warmup": {"min": 0.0, "max": 0.5, "when": {"optim.clip": 1.0}},
}
DRAWN = {
    "algorithm.kl_weight": {"distribution": "log_uniform_values", "min": 0.5, "max": 2},
    "optim.batch_size": {"distribution": "q_log_uniform_values", "min": 32, "max": 256, "q": 8},
    "optim.clip": {"values": [None, 1.0]},
}

Value = Callable[[dict[str, Any]], float]


def closeness(params: dict[str, Any]) -> float:
    """The best rate is 3e-4."""
    return -abs(math.log(params["optim.lr"] / 3e-4))


class Search:
    """A sweep's trials, any of which may follow on a restart."""

    def __init__(self, folder: Path, **keys: Any) -> None:
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
        found = propose(self.spec, self.ledger, point)
        return found, self.keep(point, found)

    def keep(self, point: int, found: Proposal) -> int:
        setting = {"params": dict(found.params), "algorithm": "car_ft", "runs": {}, "merges": []}
        return self.ledger.propose(point, setting, found.sampler).number

    def run(self, points: range, value: Value = closeness, *, restarts: bool = False) -> list[Any]:
        """One trial after another."""
        found = []
        for point in points:
            if restarts:
                self.restart()
            one, number = self.begin(point)
            self.end(number, value(dict(one.params)))
            found.append(dict(one.params))
        return found

    def end(self, number: int, value: float) -> None:
        self.ledger.complete(number, [value, -value / 2][: len(self.spec.goals)])


@pytest.fixture
def search(tmp_path: Path) -> Callable[..., Search]:
    made = Counter[str]()

    def make(**keys: Any) -> Search:
        made["searches"] += 1
        folder = tmp_path / str(made["searches"])
        folder.mkdir()
        return Search(folder, **keys)

    return make


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
    assert search(**keys, seed=8).run(range(12)) != first
    assert len({point["optim.lr"] for point in first}) == 12


@pytest.mark.parametrize("goals", [1, 2])
@pytest.mark.parametrize("method", SEARCHES)
def test_asking_again_changes_neither_the_answer_nor_the_ledger(
    search: Callable[..., Search], method: str, goals: int
) -> None:
    made = search(**keys_of(method, goals))
    made.run(range(12))
    before = made.ledger.file.read_bytes()
    answers = [propose(made.spec, made.ledger, 12) for _ in range(2)]
    assert answers[0] == answers[1]
    assert made.ledger.file.read_bytes() == before
    assert propose(made.spec, made.ledger, 13) != answers[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_proposal_is_an_active_part_of_the_space_in_its_order(
    search: Callable[..., Search], method: str
) -> None:
    parameters = (
        PARAMETERS
        if method != "grid"
        else {
            "optim.lr": {"values": [1e-4, 1e-3]},
            "optim.clip": {"values": [None, 1.0]},
            "optim.warmup": {"values": [0.0, 0.1], "when": {"optim.clip": 1.0}},
        }
    )
    made = search(method=method, parameters=parameters)
    for point in range(6):
        found, number = made.begin(point)
        assert [*found.params] == [
            item.name for item in made.spec.parameters if is_active(item, found.params)
        ]
        assert decode(made.spec.parameters, made.frozen()[number].params) == found.params
        made.end(number, 0.0)
        made.spec.config_for(found.params)


def test_a_random_point_does_not_depend_on_what_is_known(search: Callable[..., Search]) -> None:
    for method in ("random", "qmc"):
        made = search(method=method)
        alone = propose(made.spec, made.ledger, 9)
        made.run(range(9))
        assert propose(made.spec, made.ledger, 9) == alone


def test_a_quasi_random_point_is_the_quantiles_at_scipys_sobol_numbers(
    search: Callable[..., Search],
) -> None:
    made = search(method="qmc", parameters=DRAWN, seed=3)
    numbers = qmc.Sobol(3, scramble=True, bits=30, seed=3).random(8)
    for point, row in enumerate(numbers):
        assert propose(made.spec, made.ledger, point).params == {
            item.name: item.quantile(u) for item, u in zip(made.spec.parameters, row, strict=True)
        }


@pytest.mark.parametrize("method", ["random", "qmc"])
def test_what_only_we_draw_is_stored_as_optuna_can(
    search: Callable[..., Search], method: str
) -> None:
    made = search(method=method, parameters=DRAWN)
    made.run(range(5), lambda params: params["algorithm.kl_weight"])
    made.restart()
    for trial in made.frozen():
        size = trial.user_attrs["params"]["optim.batch_size"]
        assert type(size) is int
        assert trial.params["optim.batch_size"] == size
        assert trial.state == TrialState.COMPLETE


@pytest.mark.parametrize("method", SEARCHES)
def test_the_first_points_are_those_to_try_first_and_what_they_leave_open_is_proposed(
    search: Callable[..., Search], method: str
) -> None:
    whole = {"optim.lr": 5e-4, "optim.epochs": 6, "optim.clip": 1.0, "optim.warmup": 0.125}
    first = [whole, {"optim.lr": 2e-4}, {"optim.clip": None}]
    made = search(method=method, try_first=first)
    points = made.run(range(14))
    assert points[0] == whole
    assert points[1]["optim.lr"] == 2e-4
    assert set(points[1]) >= {"optim.lr", "optim.epochs", "optim.clip"}
    assert points[2]["optim.clip"] is None
    assert "optim.warmup" not in points[2]
    other = search(method=method, try_first=first, seed=1)
    assert other.run(range(2))[1] != points[1]
    if method in ("random", "qmc"):
        assert search(method=method).run(range(14))[3:] == points[3:]


@pytest.mark.parametrize("goals", [1, 2])
@pytest.mark.parametrize("method", ADAPTIVE)
def test_trials_that_run_were_pruned_or_have_failed_do_not_disturb(
    search: Callable[..., Search], method: str, goals: int
) -> None:
    made = search(**keys_of(method, goals))
    for point in range(30):
        found, number = made.begin(point)
        if point % 5 == 1:
            made.ledger.report(number, 1, -1.0)
            made.ledger.report(number, 2, -2.0)
            made.ledger.prune(number, "asha", "below the others")
        elif point % 5 == 2:
            made.ledger.fail(number, "nan", "the loss")
        elif point % 5 != 3:
            made.end(number, closeness(dict(found.params)))
    states = Counter(trial.state for trial in made.frozen())
    assert {state.name for state in states} == {"RUNNING", "PRUNED", "FAIL", "COMPLETE"}
    assert propose(made.spec, made.ledger, 30) == propose(made.spec, made.ledger, 30)


@pytest.mark.parametrize("method", ["tpe", "gp"])
def test_a_running_trial_is_kept_away_from(search: Callable[..., Search], method: str) -> None:
    made = search(method=method)
    made.run(range(12))
    found, _ = made.begin(12)
    assert propose(made.spec, made.ledger, 13).params != found.params


@pytest.mark.parametrize("method", ["tpe", "gp"])
def test_a_model_finds_a_better_rate_than_its_random_start(
    search: Callable[..., Search], method: str
) -> None:
    made = search(method=method, parameters={"optim.lr": PARAMETERS["optim.lr"]}, seed=1)
    value = [closeness(point) for point in made.run(range(25))]
    assert max(value[10:]) > max(value[:10])
    assert sum(value[15:]) / 10 > sum(value[:10]) / 10


def test_several_goals_are_each_followed_in_their_own_direction(
    search: Callable[..., Search],
) -> None:
    made = search(**keys_of("tpe", 2), parameters={"optim.lr": PARAMETERS["optim.lr"]}, seed=1)
    value = [closeness(point) for point in made.run(range(30))]
    assert sum(value[20:]) / 10 > sum(value[:10]) / 10


def test_a_model_sees_a_conditional_space_as_groups(search: Callable[..., Search]) -> None:
    def value(params: dict[str, Any]) -> float:
        """Best with clipping, and then with a warm-up of 0.3."""
        return 1 - abs(params["optim.warmup"] - 0.3) if "optim.warmup" in params else 0.0

    made = search(method="tpe", seed=2)
    points = made.run(range(40), value)
    with_warmup = [point["optim.warmup"] for point in points[20:] if "optim.warmup" in point]
    assert len(with_warmup) > 12
    assert sorted(abs(warmup - 0.3) for warmup in with_warmup)[len(with_warmup) // 2] < 0.1


@pytest.mark.parametrize("method", ["tpe", "random", "qmc", "nsga2"])
def test_a_small_space_that_is_used_up_is_proposed_from_again(
    search: Callable[..., Search], method: str
) -> None:
    made = search(method=method, run_cap=24, parameters={"optim.clip": {"values": [None, 1.0]}})
    points = made.run(range(24), lambda params: params["optim.clip"] or 0.0)
    assert {point["optim.clip"] for point in points} == {None, 1.0}


def test_with_five_hundred_trials_a_proposal_is_still_one_of_the_space(
    search: Callable[..., Search],
) -> None:
    made = search(method="tpe", run_cap=1000)
    random = search(method="random").spec
    for point in range(500):
        found = Proposal(random.point(point))
        made.end(made.keep(point, found), closeness(dict(found.params)))
    rates = [propose(made.spec, made.ledger, point).params["optim.lr"] for point in range(500, 505)]
    assert all(1e-4 < rate < 1e-3 for rate in rates)


def test_generations_with_restarts_are_those_of_an_undisturbed_optimisation(
    search: Callable[..., Search],
) -> None:
    def objective(trial: optuna.Trial) -> float:
        return trial.suggest_float("lr", 1e-5, 1e-2, log=True)

    sampler = NSGAIISampler(population_size=POPULATION, seed=0)
    undisturbed = optuna.create_study(sampler=sampler)
    undisturbed.optimize(objective, n_trials=45)
    made = search(**keys_of("nsga2", 2))
    points = made.run(range(45), restarts=True)
    assert generations(made) == [t.system_attrs[GENERATION] for t in undisturbed.get_trials()]
    assert Counter(generations(made)) == {0: 20, 1: 20, 2: 5}
    assert search(**keys_of("nsga2", 2)).run(range(45)) == points


def test_a_generation_is_as_many_complete_trials_and_its_parents_are_optunas(
    search: Callable[..., Search],
) -> None:
    made = search(**keys_of("nsga2", 2))
    for point in range(50):
        found, number = made.begin(point)
        if point % 10 == 4:
            made.ledger.fail(number, "crashed", "a worker")
        else:
            made.end(number, closeness(dict(found.params)))
    trials = made.frozen()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert [trial.system_attrs[GENERATION] for trial in complete] == [0] * 20 + [1] * 20 + [2] * 5
    study = optuna.create_study(directions=["maximize", "minimize"])
    study.add_trials(trials)
    parents = NSGAIISampler(population_size=POPULATION).get_parent_population(study, 1)
    genes = {parent.params["optim.clip"] for parent in parents}
    assert len(parents) == POPULATION
    rates = {parent.params["optim.lr"] for parent in parents}
    children = [trial for trial in trials if trial.system_attrs[GENERATION] == 1]
    # Each parameter of a child is a parent's, but for one in three or so, which has mutated.
    assert sum(child.params["optim.lr"] in rates for child in children) > len(children) / 2
    assert {child.params["optim.clip"] for child in children} <= genes | {None, 1.0}


def test_a_trial_that_is_tried_again_stays_in_its_generation(search: Callable[..., Search]) -> None:
    made = search(**keys_of("nsga2", 1))
    points = made.run(range(25))
    found, number = made.begin(25)
    made.ledger.fail(number, "crashed", "a worker")
    # As a later execution does it: the same parameters at the same point.
    made.end(made.keep(25, Proposal(found.params)), 0.0)
    more = [generations(made)[-2], *(propose(made.spec, made.ledger, 26).sampler.values())]
    assert more == [1, 1]
    made.run(range(26, 40))
    assert propose(made.spec, made.ledger, 40).sampler == {GENERATION: 2}
    assert len(points) == 25


def test_points_taken_over_from_an_earlier_ledger_are_a_population_too(
    search: Callable[..., Search],
) -> None:
    made = search(**keys_of("nsga2", 1))
    points = made.run(range(30))
    later = search(**keys_of("nsga2", 1))
    for point, params in enumerate(points):
        later.end(later.keep(point, Proposal(params)), closeness(params))
    assert propose(later.spec, later.ledger, 30) == propose(made.spec, made.ledger, 30)


def test_a_sweep_of_the_shipped_kind_has_its_grid_in_order(search: Callable[..., Search]) -> None:
    made = search(method="grid", parameters={"optim.lr": {"values": [1e-3, 1e-4]}})
    points = [propose(made.spec, made.ledger, point).params for point in range(2)]
    assert points == made.spec.points() == [{"optim.lr": 1e-3}, {"optim.lr": 1e-4}]
    with pytest.raises(ValueError, match="the points of a grid sweep are planned"):
        propose(made.spec, made.ledger, 2)


def generations(made: Search) -> list[int | None]:
    return [trial.system_attrs.get(GENERATION) for trial in made.frozen()]


def test_a_grid_is_expanded_once_however_many_points_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a sweep of N points expands and sorts N points N times."""
    parameters = {"optim.lr": {"values": [1e-4, 1e-3]}, "optim.epochs": {"values": [2, 3, 4]}}
    search = Search(tmp_path, method="grid", parameters=parameters)
    expansions: list[int] = []

    def counted(dimensions: Any) -> Any:
        expansions.append(1)
        return grid(dimensions)

    monkeypatch.setattr(spec_module, "grid", counted)
    found = [
        propose(search.spec, search.ledger, point).params
        for point in range(search.spec.trial_count)
    ]
    assert found == grid(search.spec.parameters)
    assert len(expansions) <= 1
