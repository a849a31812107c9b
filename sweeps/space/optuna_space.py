"""Points of a search space as Optuna stores them, and the samplers of Optuna's."""

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

from sweeps.space.distributions import (
    Choice,
    Dimension,
    FloatRange,
    IntRange,
    Law,
    Params,
    StepRange,
    assigned,
)
from sweeps.space.sampling import ends

if TYPE_CHECKING:
    from optuna.trial import Trial


STARTUP_TRIALS = 10
"""So many trials are drawn at random before TPE or a Gaussian process models what came of them."""
POPULATION = 20
"""Trials of a generation; Optuna's 50 would leave most sweeps in their first, random one."""


def distribution(dimension: Dimension) -> BaseDistribution:
    """What Optuna holds a dimension for; it contains every value of it."""
    match dimension:
        case Choice():
            return CategoricalDistribution(tuple(_stored(dimension, v) for v in dimension.values))
        case IntRange():
            return IntDistribution(dimension.low, dimension.high, step=dimension.step)
        case StepRange():
            return FloatDistribution(dimension.low, dimension.high, step=dimension.step)
        case FloatRange():
            return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        case Law():
            low, high = ends(dimension)
            return FloatDistribution(low, high, log=low > 0 and dimension.shape.startswith("log"))
        case _:
            assert_never(dimension)


def distributions(dimensions: Sequence[Dimension]) -> dict[str, BaseDistribution]:
    """The same for all dimensions, by parameter."""
    return {dimension.name: distribution(dimension) for dimension in dimensions}


def encode(dimensions: Sequence[Dimension], params: Mapping[str, Any]) -> dict[str, Any]:
    """A point, or a part of one, as Optuna stores it."""
    return {
        dimension.name: _stored(dimension, params[dimension.name])
        for dimension in dimensions
        if dimension.name in params
    }


def decode(dimensions: Sequence[Dimension], stored: Mapping[str, Any]) -> Params:
    """A point from what Optuna stored: the inverse of `encode`, and of `suggest`'s drawing."""
    return {
        dimension.name: _meant(dimension, stored[dimension.name])
        for dimension in dimensions
        if dimension.name in stored
    }


def suggest(dimensions: Sequence[Dimension], trial: Trial) -> Params:
    """Let Optuna choose a point: first what decides, then what is active by it."""

    def suggested(dimension: Dimension) -> Any:
        name = dimension.name
        match distribution(dimension):
            case CategoricalDistribution(choices=choices):
                return _meant(dimension, trial.suggest_categorical(name, choices))
            case IntDistribution(low=low, high=high, step=step):
                return trial.suggest_int(name, low, high, step=step)
            case FloatDistribution(low=low, high=high, step=step, log=log):
                return _meant(dimension, trial.suggest_float(name, low, high, step=step, log=log))
            case other:
                raise TypeError(f"nothing suggests from {other}")

    return assigned(dimensions, suggested)


def derived_seed(seed: int, point: int) -> int:
    """A seed in [0, 2**32) of its own for each point: the same after any restart."""
    digest = hashlib.sha256(f"{seed}:{point}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def sampler(method: Literal["tpe", "gp", "nsga2"], seed: int, point: int) -> BaseSampler:
    """The sampler that proposes a point; make a new one for each.

    A sampler that is made again with the sweep's own seed would propose the first points again.
    All options are stated, since Optuna's defaults change between releases.
    """
    derived = derived_seed(seed, point)
    with warnings.catch_warnings():
        # `group` is marked as experimental, and is what Optuna's guide wants for such spaces.
        warnings.simplefilter("ignore", ExperimentalWarning)
        match method:
            case "tpe":
                return TPESampler(
                    multivariate=True,
                    group=True,
                    constant_liar=True,
                    n_startup_trials=STARTUP_TRIALS,
                    n_ei_candidates=24,
                    seed=derived,
                )
            case "gp":
                return GPSampler(
                    n_startup_trials=STARTUP_TRIALS,
                    deterministic_objective=False,
                    independent_sampler=RandomSampler(seed=derived),
                    warn_independent_sampling=False,
                    seed=derived,
                )
            case "nsga2":
                return NSGAIISampler(
                    population_size=POPULATION,
                    crossover=UniformCrossover(swapping_prob=0.5),
                    crossover_prob=0.9,
                    swapping_prob=0.5,
                    mutation=None,
                    mutation_prob=None,
                    seed=derived,
                )
            case _:
                assert_never(method)


def _as_json(dimension: Choice) -> bool:
    return any(isinstance(value, (list, dict)) for value in dimension.values)


def _stored(dimension: Dimension, value: Any) -> Any:
    if isinstance(dimension, Choice) and _as_json(dimension):
        return json.dumps(value, sort_keys=True)
    return value


def _meant(dimension: Dimension, stored: Any) -> Any:
    if isinstance(dimension, Choice) and _as_json(dimension):
        return json.loads(stored)
    if isinstance(dimension, StepRange):
        # Optuna's low + k * step carries the noise of binary fractions; a grid's does not.
        return dimension.at(round((stored - dimension.low) / dimension.step))
    if isinstance(dimension, Law) and isinstance(dimension.q, int):
        return int(stored)  # Optuna keeps a float
    return stored
