"""The search space as Optuna sees it: distributions, suggestions, and a sampler for each trial.

Optuna stores plain scalars only, so choices that hold a list or a mapping stand there as JSON.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, assert_never

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import Trial

from sweeps.dimensions import Choice, Dimension, FloatRange, IntRange, Params, StepRange, applies

STARTUP_TRIALS = 10
"""So many trials are drawn at random before TPE models what came of them."""


def distribution(dimension: Dimension) -> BaseDistribution:
    """What Optuna draws from for one dimension."""
    match dimension:
        case Choice():
            return CategoricalDistribution(tuple(_stored(dimension, v) for v in dimension.values))
        case IntRange():
            return IntDistribution(dimension.low, dimension.high, step=dimension.step)
        case StepRange():
            return FloatDistribution(dimension.low, dimension.high, step=dimension.step)
        case FloatRange():
            return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        case _:
            assert_never(dimension)


def distributions(dimensions: Sequence[Dimension]) -> dict[str, BaseDistribution]:
    """The same for all dimensions, by parameter."""
    return {dimension.name: distribution(dimension) for dimension in dimensions}


def encode(dimensions: Sequence[Dimension], params: Mapping[str, Any]) -> dict[str, Any]:
    """A point as Optuna stores it, for `Study.enqueue_trial`."""
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
    """Let Optuna choose a point; a trial that was enqueued gets its own.

    Where `algorithm.name` is varied it is drawn first, and then only what that algorithm has.
    """
    first = [dimension for dimension in dimensions if dimension.name == "algorithm.name"]
    drawn: Params = {dimension.name: _suggested(dimension, trial) for dimension in first}
    algorithm = drawn.get("algorithm.name")
    for dimension in dimensions:
        if dimension not in first and (algorithm is None or applies(dimension.name, algorithm)):
            drawn[dimension.name] = _suggested(dimension, trial)
    return {item.name: drawn[item.name] for item in dimensions if item.name in drawn}


def derived_seed(seed: int, trial_number: int) -> int:
    """A seed in [0, 2**32) of its own for each trial: the same after any restart."""
    digest = hashlib.sha256(f"{seed}:{trial_number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def sampler(method: Literal["grid", "random", "tpe"], seed: int, trial_number: int) -> BaseSampler:
    """The sampler that proposes trial `trial_number`; make a new one for each.

    A sampler that is made again with the sweep's own seed would propose the first points again.
    TPE's options are all stated, since Optuna's defaults change between releases. A grid's points
    are enqueued, so its sampler draws nothing.
    """
    derived = derived_seed(seed, trial_number)
    if method != "tpe":
        return RandomSampler(seed=derived)
    with warnings.catch_warnings():
        # `group` is marked as experimental, and is what Optuna's guide wants for such spaces.
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(
            multivariate=True,
            group=True,
            constant_liar=True,
            n_startup_trials=STARTUP_TRIALS,
            seed=derived,
        )


def _suggested(dimension: Dimension, trial: Trial) -> Any:
    name = dimension.name
    match dimension:
        case Choice():
            choices = [_stored(dimension, value) for value in dimension.values]
            return _meant(dimension, trial.suggest_categorical(name, choices))
        case IntRange():
            return trial.suggest_int(name, dimension.low, dimension.high, step=dimension.step)
        case StepRange():
            low, high, step = dimension.low, dimension.high, dimension.step
            return _meant(dimension, trial.suggest_float(name, low, high, step=step))
        case FloatRange():
            return trial.suggest_float(name, dimension.low, dimension.high, log=dimension.log)
        case _:
            assert_never(dimension)


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
    return stored
