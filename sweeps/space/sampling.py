"""Drawing points of a search space, and how Optuna stores them."""

from __future__ import annotations

import bisect
import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from statistics import NormalDist
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
from sweeps.spec.document import Route

if TYPE_CHECKING:
    from optuna.trial import Trial


TAIL = 0.001
"""What is cut from each end of a law that has tails: so the ends of all its draws are known, and
are checked, before the sweep begins."""
SOBOL_BITS = 30


def quantile(dimension: Dimension, u: float) -> Any:
    """The value below which the share `u` (0 to 1) of a dimension's draws lies."""
    match dimension:
        case Choice():
            return _choice(dimension, u)
        case IntRange():
            return dimension.low + dimension.step * _index(dimension.count, u)
        case StepRange():
            return dimension.at(_index(dimension.count, u))
        case FloatRange():
            return _between(dimension.low, dimension.high, u, log=dimension.log)
        case Law():
            return rounded(_of_law(dimension, u), dimension.q)
        case _:
            assert_never(dimension)


def ends(law: Law) -> tuple[int | float, int | float]:
    """The least and the greatest number that a law gives."""
    return quantile(law, 0.0), quantile(law, 1.0)


def probes(dimension: Dimension) -> list[tuple[Route, Any]]:
    """The values whose validity decides on the whole dimension, each with its place in it."""
    if isinstance(dimension, Choice):
        return [(("values", index), value) for index, value in enumerate(dimension.values)]
    if isinstance(dimension, Law):
        return [(("distribution",), end) for end in ends(dimension)]
    return [(("min",), dimension.low), (("max",), dimension.high)]


def drawn(
    dimensions: Sequence[Dimension],
    number: Callable[[str], float],
    given: Mapping[str, Any],
) -> Params:
    """A point with what is `given`, and else the quantile at the `number` of each parameter."""
    return assigned(
        dimensions,
        lambda dimension: (
            given[dimension.name]
            if dimension.name in given
            else quantile(dimension, number(dimension.name))
        ),
    )


def hashed(seed: int, point: int, name: str) -> float:
    """A number in (0, 1) for each parameter of each point: the same on every machine.

    It depends on no other parameter, so that one more changes nothing for the others.
    """
    digest = hashlib.sha256(f"{seed}:{point}:{name}".encode()).digest()
    return ((int.from_bytes(digest[:8], "big") >> 12) + 0.5) / (1 << 52)


def sobol(seed: int, point: int, names: Sequence[str]) -> dict[str, float]:
    """The element `point` of a Sobol sequence, scrambled with the seed: a number for each name."""
    from scipy.stats.qmc import Sobol

    sequence = Sobol(len(names), scramble=True, bits=SOBOL_BITS, seed=seed)
    if point:  # scipy cannot go forward by nothing
        sequence.fast_forward(point)
    return dict(zip(names, map(float, sequence.random(1)[0]), strict=True))


def rounded(value: float, q: int | float | None) -> int | float:
    """W&B's `round(X / q) * q`, in decimal; an integer where `q` is one."""
    if q is None:
        return value
    steps = round(value / q)
    return steps * q if isinstance(q, int) else float(steps * Decimal(repr(q)))


def _choice(choice: Choice, u: float) -> Any:
    if choice.probabilities is None:
        return choice.values[_index(len(choice.values), u)]
    sums = list(itertools.accumulate(choice.probabilities))
    possible = bisect.bisect_left(sums, sums[-1])
    return choice.values[min(bisect.bisect_right(sums, u * sums[-1]), possible)]


def _index(count: int, u: float) -> int:
    return min(int(u * count), count - 1)


def _between(low: float, high: float, u: float, *, log: bool) -> float:
    if log:
        start, end = math.log(low), math.log(high)
        value = math.exp(start + u * (end - start))
    else:
        value = low + u * (high - low)
    return min(max(value, low), high)


def _of_law(law: Law, u: float) -> float:
    first, second = law.numbers
    if law.shape == "log_uniform_values":
        return _between(first, second, u, log=True)
    share = TAIL + (1 - 2 * TAIL) * u
    if law.shape == "beta":
        from scipy.special import betaincinv

        return float(betaincinv(first, second, share))
    value = first + second * NormalDist().inv_cdf(share)
    return math.exp(value) if law.shape == "log_normal" else value


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
