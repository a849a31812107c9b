"""The `parameters:` of a sweep file in W&B's words: a model for each kind of distribution."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, PlainValidator, ValidationError, WithJsonSchema, model_validator

from carft_sweep.carft_core.config.fields import Section, error_of, explained
from carft_sweep.carft_core.errors import InvalidConfig, Problem, unknown
from carft_sweep.sweeps.space import distributions
from carft_sweep.sweeps.space.distributions import Categorical, Condition, Distribution, canonical

MAX_VALUES = 1000
MAX_STEPS = 2**53
"""Up to here a float represents every integer."""


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"must be a number, got {_shown(value)}")
    if not math.isfinite(value):
        raise ValueError(f"must be finite, got {value}")
    return value


def _values(value: object) -> object:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_VALUES:
        text = f"{len(value)} of them" if isinstance(value, (list, tuple)) else _shown(value)
        raise ValueError(f"must be a list of 1 to {MAX_VALUES} values, got {text}")
    texts = list(map(canonical, value))
    twice = [
        Problem((index,), f"{_shown(value[index])} is in the list twice")
        for index, text in enumerate(texts)
        if text in texts[:index]
    ]
    if twice:
        raise error_of(twice)
    return tuple(value)


def _conditions(value: object) -> object:
    if not isinstance(value, Mapping) or not value:
        form = "{algorithm.name: car_ft}"
        raise ValueError(f"must be a mapping such as {form}, got {_shown(value)}")
    lists = {name: tuple(v) if isinstance(v, list) else (v,) for name, v in value.items()}
    if empty := [name for name, values in lists.items() if not values]:
        message = "can never hold; list at least one value"
        raise error_of(Problem((name,), message) for name in empty)
    return tuple(Condition(name, values) for name, values in lists.items())


_NUMBER: dict[str, Any] = {"type": "number"}
Number = Annotated[float, PlainValidator(_number), WithJsonSchema(_NUMBER)]
Positive = Annotated[
    float, PlainValidator(_number), Field(gt=0), WithJsonSchema({**_NUMBER, "exclusiveMinimum": 0})
]


class Parameter(Section):
    """One entry of `parameters:`, the distribution of a field."""

    distribution: str
    when: Annotated[
        tuple[Any, ...],
        PlainValidator(_conditions),
        WithJsonSchema({"type": "object", "minProperties": 1}),
    ] = ()
    """It varies where these fields have these values."""

    @abstractmethod
    def build(self, name: str) -> Distribution:
        """Return the distribution of the parameter `name`, without its conditions."""


class Constant(Parameter):
    """A single value, which does not vary."""

    distribution: Literal["constant"] = "constant"
    value: Any

    def build(self, name: str) -> Distribution:
        return Categorical(name, (self.value,))


class Choice(Parameter):
    """One of some values."""

    distribution: Literal["categorical"] = "categorical"
    values: Annotated[
        tuple[Any, ...],
        PlainValidator(_values),
        WithJsonSchema({"type": "array", "minItems": 1, "maxItems": MAX_VALUES}),
    ]

    def build(self, name: str) -> Distribution:
        return Categorical(name, self.values)


class _Range(Parameter):
    """Numbers from `min` to `max`."""

    min: Number
    max: Number

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.min >= self.max:
            ends = f"got {self.min} and {self.max}"
            message = f"min must be less than max, {ends}; for one value, use value"
            raise error_of([Problem((), message)])
        if problems := list(self.problems()):
            raise error_of(problems)
        return self

    def problems(self) -> Iterator[Problem]:
        """Yield the problems of keys that are valid separately but not together."""
        return iter(())


class Integers(_Range):
    """Integers, equally likely."""

    distribution: Literal["int_uniform"] = "int_uniform"
    min: int
    max: int

    def build(self, name: str) -> Distribution:
        return distributions.Uniform(name, self.min, self.max, 1)


class Uniform(_Range):
    """Numbers, equally likely."""

    distribution: Literal["uniform"] = "uniform"

    def build(self, name: str) -> Distribution:
        return distributions.Uniform(name, float(self.min), float(self.max))


class SteppedUniform(_Range):
    """Numbers in steps from `min`, equally likely."""

    distribution: Literal["q_uniform"] = "q_uniform"
    q: Positive = 1
    """The step."""

    def build(self, name: str) -> Distribution:
        ends = (self.min, self.max, self.q)
        is_integer = all(isinstance(number, int) for number in ends)
        low, high, step = ends if is_integer else map(float, ends)
        wide = distributions.Uniform(name, low, high, step)
        # The upper end is the last number that a step reaches.
        return dataclasses.replace(wide, high=wide.at(wide.count - 1))

    def problems(self) -> Iterator[Problem]:
        own = distributions.Uniform("", self.min, self.max, self.q)
        if own.count < 2:
            yield Problem(("q",), f"must be greater than 0 and at most max - min, got {self.q}")
        elif own.count > MAX_VALUES and not own.is_integer:
            yield Problem(("q",), f"makes more than {MAX_VALUES} steps; use uniform instead")


class LogUniform(_Range):
    """Numbers whose logarithms are uniformly distributed."""

    distribution: Literal["log_uniform_values"] = "log_uniform_values"
    min: Positive
    max: Positive

    def build(self, name: str) -> Distribution:
        return distributions.LogUniform(name, float(self.min), float(self.max))


class SteppedLogUniform(_Range):
    """As `log_uniform_values`, rounded to multiples of `q`."""

    distribution: Literal["q_log_uniform_values"] = "q_log_uniform_values"
    min: Positive
    max: Positive
    q: Positive = 1
    """The step."""
    rounding: Literal["nearest", "down"] = "nearest"
    """To which multiple of `q`."""

    def build(self, name: str) -> Distribution:
        down = self.rounding == "down"
        return distributions.LogUniform(name, self.min, self.max, self.q, down)

    def problems(self) -> Iterator[Problem]:
        if self.max / self.q >= MAX_STEPS:
            yield Problem(("q",), f"is too small a step for such large numbers, got {self.q}")


AnyParameter = (
    Constant | Choice | Integers | Uniform | SteppedUniform | LogUniform | SteppedLogUniform
)
DISTRIBUTIONS: Mapping[str, type[Parameter]] = {
    model.model_fields["distribution"].default: model for model in get_args(AnyParameter)
}
"""The model of each distribution, by W&B's name."""
INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(("log_uniform", "inv_log_uniform", "loguniform"), "log_uniform_values"),
    "inv_log_uniform_values": "log_uniform_values",
    "q_log_uniform": "q_log_uniform_values",
    **dict.fromkeys(("normal", "beta"), "uniform"),
    **dict.fromkeys(("q_normal", "q_beta"), "q_uniform"),
    "log_normal": "log_uniform_values",
    "q_log_normal": "q_log_uniform_values",
    "categorical_w_probabilities": "categorical",
}
"""Distributions of other programs that are not supported -> the nearest that is."""
KEYS = tuple(dict.fromkeys(key for model in DISTRIBUTIONS.values() for key in model.model_fields))


def parse_parameter(name: str, data: object) -> Distribution:
    """Return the distribution of the parameter `name` from `data`, its value in the file. Raises
    InvalidConfig with each mistake's route. Whether its conditions can hold is not checked."""
    if not isinstance(data, Mapping):
        form = "{values: [...]}" if isinstance(data, list) else "{values: [...]} or {value: ...}"
        raise InvalidConfig([Problem((), f"must be a mapping such as {form}, got {_shown(data)}")])
    kind = data.get("distribution")
    if isinstance(kind, str) and kind in INSTEAD:
        message = f"{kind} is not available; the nearest is {INSTEAD[kind]}"
        raise InvalidConfig([Problem(("distribution",), message)])
    if strange := [key for key in data if key not in KEYS]:
        raise InvalidConfig(Problem((key,), unknown("key", key, KEYS)) for key in strange)
    kind = _distribution_of(data)
    model = DISTRIBUTIONS[kind]
    try:
        parameter = model.model_validate({**data, "distribution": kind})
    except ValidationError as error:
        raise InvalidConfig(explained(error, model)) from None
    return dataclasses.replace(parameter.build(name), when=parameter.when)


def _distribution_of(data: Mapping[str, Any]) -> str:
    """Return the name of the distribution that `data` names, else the one that its keys imply."""
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
    if "min" not in data and "max" not in data:
        raise InvalidConfig([Problem((), "give values, value, or min and max")])
    if "q" in data:
        return "q_uniform"
    ends = [data.get("min"), data.get("max")]
    return "int_uniform" if all(type(end) is int for end in ends) else "uniform"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
