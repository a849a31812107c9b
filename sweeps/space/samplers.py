"""Points of a search space as Optuna stores them, and Optuna's samplers."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, assert_never

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.samplers.nsgaii import UniformCrossover

from carft_sweep.sweeps.space import RANDOM_TRIALS
from carft_sweep.sweeps.space.distributions import (
    Categorical,
    Distribution,
    LogUniform,
    Params,
    Uniform,
)

if TYPE_CHECKING:
    from optuna.trial import Trial


def optuna_distributions(space: Sequence[Distribution]) -> dict[str, BaseDistribution]:
    """Return each parameter as an Optuna distribution that contains all its values."""
    return {item.name: _optuna_distribution(item) for item in space}


def _optuna_distribution(item: Distribution) -> BaseDistribution:
    match item:
        case Categorical():
            return CategoricalDistribution(tuple(_to_stored(item, v) for v in item.values))
        case Uniform(low=int(low), high=int(high), step=int(step)):
            return IntDistribution(low, high, step=step)
        case Uniform():
            return FloatDistribution(item.low, item.high, step=item.step)
        case LogUniform():
            least, most = item.nearest(item.low), item.nearest(item.high)
            return FloatDistribution(least, most, log=least > 0)
        case _:
            assert_never(item)


def encode(space: Sequence[Distribution], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a point, or a part of one, with values as Optuna stores them."""
    return {item.name: _to_stored(item, params[item.name]) for item in space if item.name in params}


def suggest(space: Sequence[Distribution], trial: Trial) -> Params:
    """Return a point that Optuna chooses: deciding parameters first, then those they activate."""
    # This loads torch, which a report does not need.
    from carft_sweep.sweeps.space.points import sample_point

    def suggested(item: Distribution) -> Any:
        match _optuna_distribution(item):
            case CategoricalDistribution(choices=choices):
                stored = trial.suggest_categorical(item.name, choices)
            case IntDistribution(low=low, high=high, step=step):
                stored = trial.suggest_int(item.name, low, high, step=step)
            case FloatDistribution(low=low, high=high, step=step, log=log):
                stored = trial.suggest_float(item.name, low, high, step=step, log=log)
        return from_stored(item, stored)

    return sample_point(space, suggested)


def derived_seed(seed: int, point: int) -> int:
    """Return a seed in [0, 2**32) from the sweep's `seed` and a point's number alone."""
    digest = hashlib.sha256(f"{seed}:{point}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def sampler(method: Literal["tpe", "gp", "nsga2"], seed: int, point: int) -> BaseSampler:
    """Return a new sampler, which proposes point number `point` alone: one that is seeded again
    with the sweep's `seed` after a restart would propose the first points again. All options are
    set here, since Optuna's defaults change between releases."""
    derived = derived_seed(seed, point)
    with warnings.catch_warnings():
        # `group` is marked as experimental, and is what Optuna's guide recommends for such spaces.
        warnings.simplefilter("ignore", ExperimentalWarning)
        match method:
            case "tpe":
                return TPESampler(
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                    n_startup_trials=RANDOM_TRIALS[method],
                    n_ei_candidates=24,
                    seed=derived,
                )
            case "gp":
                return GPSampler(
                    n_startup_trials=RANDOM_TRIALS[method],
                    deterministic_objective=False,
                    independent_sampler=RandomSampler(seed=derived),
                    warn_independent_sampling=False,
                    seed=derived,
                )
            case "nsga2":
                return NSGAIISampler(
                    population_size=RANDOM_TRIALS[method],
                    crossover=UniformCrossover(swapping_prob=0.5),
                    crossover_prob=0.9,
                    swapping_prob=0.5,
                    mutation=None,
                    mutation_prob=None,
                    seed=derived,
                )
            case _:
                assert_never(method)


def from_stored(item: Distribution, stored: Any) -> Any:
    """Return the sweep's value for one that Optuna stores or suggests: the inverse of `encode`."""
    if isinstance(item, Categorical):
        return json.loads(stored) if _is_json(item) else stored
    # Optuna's low + k * step carries the noise of binary fractions; a grid's does not.
    return item.nearest(stored)


def _to_stored(item: Distribution, value: Any) -> Any:
    if isinstance(item, Categorical) and _is_json(item):
        return json.dumps(value, sort_keys=True)
    return value


def _is_json(item: Categorical) -> bool:
    """Return whether some value is a list or mapping: Optuna then stores all values as JSON."""
    return any(isinstance(value, (list, dict)) for value in item.values)
