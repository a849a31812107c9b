"""The `parameters:` of a sweep file in W&B's words: a model for each kind of distribution."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from carft_sweep.carft_core.errors import InvalidConfig, Problem, unknown
from carft_sweep.carft_core.fields import Section, error_of, explained
from carft_sweep.sweeps.space.distributions import (
    Categorical,
    Condition,
    Distribution,
    FloatUniform,
    IntUniform,
    Parametric,
    Shape,
    SteppedUniform,
    canonical,
)

MAX_VALUES = 1000
MAX_EXPONENT = 700
"""exp(700) is about the greatest number there is."""
MAX_STEPS = 2**53
"""Up to here a float knows every integer."""


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"must be a number, got {_shown(value)}")
    if not math.isfinite(value):
        raise ValueError(f"must be finite, got {value}")
    return value


def _exponent(value: object) -> int | float:
    if abs(_number(value)) > MAX_EXPONENT:
        raise ValueError(
            f"is an exponent of e and must be from -{MAX_EXPONENT} to {MAX_EXPONENT}, got {value}"
        )
    return _number(value)


def _whole(value: object) -> int:
    if type(value) is not int:
        raise ValueError(f"must be a whole number for int_uniform, got {_shown(value)}")
    return value


def _values(value: object) -> object:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_VALUES:
        shown = f"{len(value)} of them" if isinstance(value, (list, tuple)) else _shown(value)
        raise ValueError(f"must be a list of 1 to {MAX_VALUES} values, got {shown}")
    texts = list(map(canonical, value))
    twice = [
        Problem((index,), f"{_shown(value[index])} is in the list twice")
        for index, text in enumerate(texts)
        if text in texts[:index]
    ]
    if twice:
        raise error_of(twice)
    return tuple(value)


def _probabilities(value: object) -> object:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"must be a list with one number for each value, got {_shown(value)}")
    for item in value:
        if isinstance(item, bool) or not isinstance(item, (int, float)) or not 0 <= item <= 1:
            raise ValueError(f"must be numbers from 0 to 1, got {_shown(item)}")
    total = math.fsum(value)
    if abs(total - 1) >= 1e-6:
        raise ValueError(f"must sum to 1, got {total:g}")
    return tuple(map(float, value))


def _conditions(value: object) -> object:
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"must be a mapping such as {{algorithm.name: car_ft}}, got {_shown(value)}"
        )
    lists = {name: tuple(v) if isinstance(v, list) else (v,) for name, v in value.items()}
    empty = [name for name, values in lists.items() if not values]
    if empty:
        raise error_of(
            Problem((name,), "can never hold; list at least one value") for name in empty
        )
    return tuple(Condition(name, values) for name, values in lists.items())


_NUMBER: dict[str, Any] = {"type": "number"}
Number = Annotated[float, PlainValidator(_number), WithJsonSchema(_NUMBER)]
Positive = Annotated[
    float,
    PlainValidator(_number),
    Field(gt=0),
    WithJsonSchema({**_NUMBER, "exclusiveMinimum": 0}),
]
Exponent = Annotated[float, PlainValidator(_exponent), WithJsonSchema(_NUMBER)]
Whole = Annotated[int, PlainValidator(_whole), WithJsonSchema({"type": "integer"})]


class Parameter(Section):
    """What varies: one distribution in the file's words."""

    distribution: str
    when: Annotated[
        tuple[Any, ...],
        PlainValidator(_conditions),
        WithJsonSchema({"type": "object", "minProperties": 1}),
    ] = ()
    """It varies where these fields have these values."""

    @abstractmethod
    def build(self, name: str) -> Distribution:
        """Make the distribution, without its conditions."""

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong with keys that are right one by one."""
        return iter(())

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = list(self.problems())
        if problems:
            raise error_of(problems)
        return self


class Constant(Parameter):
    """The only value."""

    distribution: Literal["constant"] = "constant"
    value: Any

    def build(self, name: str) -> Distribution:
        return Categorical(name, (self.value,))


class Choice(Parameter):
    """One of some values."""

    distribution: Literal["categorical", "categorical_w_probabilities"] = "categorical"
    values: Annotated[
        tuple[Any, ...],
        PlainValidator(_values),
        WithJsonSchema({"type": "array", "minItems": 1, "maxItems": MAX_VALUES}),
    ]
    probabilities: Annotated[
        tuple[float, ...] | None,
        PlainValidator(_probabilities),
        WithJsonSchema({"type": "array", "items": {**_NUMBER, "minimum": 0, "maximum": 1}}),
    ] = None
    """One for each value."""

    def build(self, name: str) -> Distribution:
        return Categorical(name, self.values, self.probabilities)

    def problems(self) -> Iterator[Problem]:
        count, given = len(self.values), self.probabilities
        if given is None and self.distribution != "categorical":
            yield Problem(("probabilities",), "is required")
        if given is not None and len(given) != count:
            yield Problem(
                ("probabilities",),
                f"must be a list with one number for each of the {count} values, got {len(given)}",
            )


class _Stepped(Parameter):
    """Numbers, which some distributions round to multiples of `q`."""

    q: Positive | None = None
    """The step; left out, 1."""

    @property
    def step(self) -> int | float | None:
        """The step; None where the distribution has none."""
        if not self.distribution.startswith("q_"):
            return None
        return 1 if self.q is None else self.q

    def problems(self) -> Iterator[Problem]:
        if self.q is not None and self.step is None:
            yield Problem(("q",), f"does not go with {self.distribution}")
            return
        own = self.build("")
        if not isinstance(own, Parametric):
            return
        exact = dataclasses.replace(own, q=None).ends
        if not all(map(math.isfinite, exact)):
            yield Problem((), "draws numbers that are too large")
        elif own.q is not None and max(map(abs, exact)) / own.q >= MAX_STEPS:
            yield Problem(("q",), f"is too small a step for such large numbers, got {own.q}")
        elif own.ends[0] == own.ends[1]:
            yield Problem((), f"draws {own.ends[0]} and nothing else; use value")


class _Between(_Stepped):
    """Numbers from `min` to `max`."""

    min: Number
    max: Number

    def problems(self) -> Iterator[Problem]:
        if self.min >= self.max:
            ends = f"got {self.min} and {self.max}"
            yield Problem((), f"min must be less than max, {ends}; for one value, use value")
        else:
            yield from super().problems()


class Integers(_Between):
    """Integers, all alike."""

    distribution: Literal["int_uniform"] = "int_uniform"
    min: Whole
    max: Whole

    def build(self, name: str) -> Distribution:
        return IntUniform(name, self.min, self.max)


class Uniform(_Between):
    """Numbers, all alike."""

    distribution: Literal["uniform", "q_uniform"] = "uniform"

    def build(self, name: str) -> Distribution:
        # The upper end is the last number that a step reaches.
        low, high, step = self.min, self.max, self.step
        if step is None:
            return FloatUniform(name, float(low), float(high))
        if isinstance(low, int) and isinstance(high, int) and isinstance(step, int):
            return IntUniform(name, low, low + (high - low) // step * step, step)
        wide = SteppedUniform(name, float(low), float(high), float(step))
        return dataclasses.replace(wide, high=wide.at(wide.count - 1))

    def problems(self) -> Iterator[Problem]:
        step, width = self.step, self.max - self.min
        if step is not None and 0 < width < step:
            yield Problem(("q",), f"must be greater than 0 and at most max - min, got {step}")
        elif step is not None and width > 0 and not isinstance(self.build(""), IntUniform):
            count = int((Decimal(repr(self.max)) - Decimal(repr(self.min))) / Decimal(repr(step)))
            if count >= MAX_VALUES:
                yield Problem(("q",), f"makes more than {MAX_VALUES} steps; use uniform instead")
        else:
            yield from super().problems()


class LogUniform(_Between):
    """Numbers whose logarithms are all alike."""

    distribution: Literal[
        "log_uniform_values", "inv_log_uniform_values", "q_log_uniform_values"
    ] = "log_uniform_values"
    min: Positive
    max: Positive
    rounding: Literal["nearest", "down"] = "nearest"
    """To which multiple of `q`."""

    def build(self, name: str) -> Distribution:
        down = self.rounding == "down"
        return _log_uniform(name, self.min, self.max, self.step, down=down)


class LogUniformExponents(_Between):
    """The same, with exponents of e as ends."""

    distribution: Literal["log_uniform", "inv_log_uniform", "q_log_uniform"] = "log_uniform"
    min: Exponent
    max: Exponent

    def build(self, name: str) -> Distribution:
        low, high = self.min, self.max
        if self.distribution == "inv_log_uniform":
            low, high = -high, -low  # log(1/X) = -log(X)
        return _log_uniform(name, math.exp(low), math.exp(high), self.step)


def _log_uniform(
    name: str, low: float, high: float, step: int | float | None, *, down: bool = False
) -> Distribution:
    if step is None:
        return FloatUniform(name, float(low), float(high), log=True)
    return Parametric(name, "log_uniform_values", (low, high), step, down)


class Normal(_Stepped):
    """Numbers, or their logarithms, that are normally distributed."""

    distribution: Literal["normal", "log_normal", "q_normal", "q_log_normal"] = "normal"
    mu: Number = 0
    sigma: Positive = 1

    def build(self, name: str) -> Distribution:
        shape: Shape = "log_normal" if self.distribution.endswith("log_normal") else "normal"
        return Parametric(name, shape, (self.mu, self.sigma), self.step)

    def problems(self) -> Iterator[Problem]:
        furthest = abs(self.mu) + 4 * self.sigma
        if self.distribution.endswith("log_normal") and furthest > MAX_EXPONENT:
            message = f"mu and sigma are of a logarithm, and exp({furthest:g}) is too large"
            yield Problem((), message)
        else:
            yield from super().problems()


class Beta(_Stepped):
    """Numbers from 0 to 1 that are beta distributed."""

    distribution: Literal["beta", "q_beta"] = "beta"
    a: Positive = 1
    b: Positive = 1

    def build(self, name: str) -> Distribution:
        return Parametric(name, "beta", (self.a, self.b), self.step)


_MODELS = (Constant, Choice, Integers, Uniform, LogUniform, LogUniformExponents, Normal, Beta)
AnyParameter = (
    Constant | Choice | Integers | Uniform | LogUniform | LogUniformExponents | Normal | Beta
)
DISTRIBUTIONS: Mapping[str, type[Parameter]] = {
    name: model
    for model in _MODELS
    for name in get_args(model.model_fields["distribution"].annotation)
}
"""The model of each distribution of W&B's."""
KEYS = tuple(dict.fromkeys(key for model in _MODELS for key in model.model_fields))


def parse_parameter(name: str, data: object) -> Distribution:
    """Read what a parameter varies over. Raises InvalidConfig with the place of each mistake.

    Its conditions have the names that the file has, and may be on fields that are fixed.
    """
    if not isinstance(data, Mapping):
        form = "{values: [...]}" if isinstance(data, list) else "{values: [...]} or {value: ...}"
        raise InvalidConfig([Problem((), f"must be a mapping such as {form}, got {_shown(data)}")])
    strange = [key for key in data if key not in KEYS]
    if strange:
        known = (*KEYS, "parameters")
        raise InvalidConfig(Problem((key,), unknown("key", key, known)) for key in strange)
    kind = _distribution_of(data)
    model = DISTRIBUTIONS[kind]
    own = [key for key in model.model_fields if key not in ("distribution", "when")]
    if not kind.startswith("q_"):
        own = [key for key in own if key not in ("q", "rounding")]
    stray = [key for key in data if key not in (*own, "distribution", "when")]
    if stray:
        *some, last = own
        listed = f"{', '.join(some)} and {last}" if some else last
        message = f"does not go with {kind}, which has {listed}"
        raise InvalidConfig(Problem((key,), message) for key in stray)
    try:
        parameter = model.model_validate({**data, "distribution": kind})
    except ValidationError as error:
        raise InvalidConfig(explained(error, model)) from None
    return dataclasses.replace(parameter.build(name), when=parameter.when)


def _distribution_of(data: Mapping[str, Any]) -> str:
    """Return the distribution that is stated, or that the keys imply."""
    kind = data.get("distribution")
    if kind is not None:
        if isinstance(kind, str) and kind in DISTRIBUTIONS:
            return kind
        message = unknown("distribution", kind, DISTRIBUTIONS)
        raise InvalidConfig([Problem(("distribution",), message)])
    if "value" in data:
        return "constant"
    if "values" in data:
        return "categorical"
    for key in ("mu", "sigma", "a", "b"):
        if key in data:
            kinds = [name for name, model in DISTRIBUTIONS.items() if key in model.model_fields]
            message = f"needs a distribution beside it: {', '.join(kinds)}"
            raise InvalidConfig([Problem((key,), message)])
    if "min" not in data and "max" not in data:
        raise InvalidConfig([Problem((), "give values, value, or min and max")])
    if "q" in data:
        return "q_uniform"
    ends = [data.get("min"), data.get("max")]
    return "int_uniform" if all(type(end) is int for end in ends) else "uniform"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
