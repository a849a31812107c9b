"""The `parameters:` of a sweep file, in W&B's words, read into dimensions."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from carft_core.errors import Route, unknown
from sweeps.space.distributions import (
    SHAPES,
    Choice,
    Condition,
    Dimension,
    FloatRange,
    IntRange,
    Law,
    Shape,
    StepRange,
    canonical,
)
from sweeps.space.sampling import ends

Report = Callable[[Route, str], None]
"""Takes a mistake: its place below the parameter, and what is wrong."""

MAX_VALUES = 1000
MAX_EXPONENT = 700
"""exp(700) is about the greatest number there is."""
MAX_STEPS = 2**53
"""Up to here a float knows every integer."""

DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values", "probabilities"),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "inv_log_uniform": ("min", "max"),
    "inv_log_uniform_values": ("min", "max"),
    "q_log_uniform": ("min", "max", "q"),
    "q_log_uniform_values": ("min", "max", "q"),
    "normal": ("mu", "sigma"),
    "q_normal": ("mu", "sigma", "q"),
    "log_normal": ("mu", "sigma"),
    "q_log_normal": ("mu", "sigma", "q"),
    "beta": ("a", "b"),
    "q_beta": ("a", "b", "q"),
}
"""Each distribution, and the keys that describe it."""
DEFAULTS: Mapping[str, int] = {"q": 1, "mu": 0, "sigma": 1, "a": 1, "b": 1}
"""What a key is when it is left out, as in W&B; `probabilities` may be left out too."""
EXPONENTS = ("log_uniform", "inv_log_uniform", "q_log_uniform")
"""The distributions whose `min` and `max` are exponents of e."""
KEYS = (
    *("distribution", "value", "values", "probabilities", "min", "max", "q"),
    *("mu", "sigma", "a", "b", "when"),
)


def dimension(name: str, data: object, report: Report) -> Dimension | None:
    """The dimension that a parameter describes, or None after reporting what is wrong.

    Its conditions have the names that the file has, and may be on fields that are fixed.
    """
    if not isinstance(data, Mapping):
        form = "{values: [...]}" if isinstance(data, list) else "{values: [...]} or {value: ...}"
        report((), f"must be a mapping such as {form}, got {_shown(data)}")
        return None
    strange = [key for key in data if key not in KEYS]
    for key in strange:
        report((key,), unknown("key", key, (*KEYS, "parameters")))
    kind = None if strange else _distribution(data, report)
    when = _conditions(data["when"], report) if "when" in data else ()
    if kind is None or when is None or not _is_whole(kind, data, report):
        return None
    found = _of_kind(name, kind, data, report)
    return None if found is None else dataclasses.replace(found, when=when)


def _distribution(data: Mapping[str, Any], report: Report) -> str | None:
    """What is stated, or what the keys say."""
    kind = data.get("distribution")
    if kind is not None:
        if isinstance(kind, str) and kind in DISTRIBUTIONS:
            return kind
        report(("distribution",), unknown("distribution", kind, DISTRIBUTIONS))
        return None
    if "value" in data:
        return "constant"
    if "values" in data:
        return "categorical"
    numbers = [key for key in ("mu", "sigma", "a", "b") if key in data]
    if numbers:
        kinds = [name for name, keys in DISTRIBUTIONS.items() if numbers[0] in keys]
        report((numbers[0],), f"wants a distribution beside it: {', '.join(kinds)}")
        return None
    if "min" not in data and "max" not in data:
        report((), "give values, value, or min and max")
        return None
    if "q" in data:
        return "q_uniform"
    given = [data.get("min"), data.get("max")]
    return "int_uniform" if all(type(end) is int for end in given) else "uniform"


def _is_whole(kind: str, data: Mapping[str, Any], report: Report) -> bool:
    """Whether all keys of the distribution are there, and no others."""
    wanted = DISTRIBUTIONS[kind]
    stray = [key for key in data if key not in (*wanted, "distribution", "when")]
    free = {*DEFAULTS, "probabilities"} if kind == "categorical" else DEFAULTS
    missing = [key for key in wanted if key not in data and key not in free]
    for key in stray:
        *some, last = (f"{key}" for key in wanted)
        listed = f"{', '.join(some)} and {last}" if some else last
        report((key,), f"does not go with {kind}, which has {listed}")
    if missing:
        report((), f"{kind} wants {' and '.join(missing)}")
    return not stray and not missing


def _of_kind(name: str, kind: str, data: Mapping[str, Any], report: Report) -> Dimension | None:
    if kind == "constant":
        return Choice(name, (data["value"],))
    if "values" in data:
        return _choice(name, data, report)
    given = {key: data.get(key, DEFAULTS.get(key)) for key in DISTRIBUTIONS[kind]}
    wrong = {key: reason for key, value in given.items() if (reason := _not_a(kind, key, value))}
    for key, reason in wrong.items():
        report((key,), reason)
    if wrong:
        return None
    return _range(name, kind, given, report) if "min" in given else _law(name, kind, given, report)


def _not_a(kind: str, key: str, value: object) -> str | None:
    """Why a value cannot be that number of a distribution."""
    if kind == "int_uniform" and type(value) is not int:
        return f"must be a whole number for int_uniform, got {_shown(value)}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"must be a number, got {_shown(value)}"
    if not math.isfinite(value):
        return f"must be finite, got {value}"
    if key in ("q", "sigma", "a", "b") and value <= 0:
        return f"must be greater than 0, got {value}"
    if kind in EXPONENTS and key != "q" and abs(value) > MAX_EXPONENT:
        return (
            f"is an exponent of e and must be from -{MAX_EXPONENT} to {MAX_EXPONENT}, got {value}"
        )
    return None


def _choice(name: str, data: Mapping[str, Any], report: Report) -> Choice | None:
    values = data["values"]
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_VALUES:
        shown = f"{len(values)} of them" if isinstance(values, list) else _shown(values)
        report(("values",), f"must be a list of 1 to {MAX_VALUES} values, got {shown}")
        return None
    seen: set[str] = set()
    for index, value in enumerate(values):
        if canonical(value) in seen:
            report(("values", index), f"{_shown(value)} stands in the list twice")
        seen.add(canonical(value))
    if "probabilities" not in data:
        return Choice(name, tuple(values)) if len(seen) == len(values) else None
    wrong = _no_probabilities(data["probabilities"], len(values))
    if wrong is not None:
        report(("probabilities",), wrong)
    if wrong is not None or len(seen) < len(values):
        return None
    return Choice(name, tuple(values), tuple(map(float, data["probabilities"])))


def _no_probabilities(given: object, count: int) -> str | None:
    """Why these are not the probabilities of so many values."""
    if not isinstance(given, list) or len(given) != count:
        shown = f"{len(given)} of them" if isinstance(given, list) else _shown(given)
        return f"must be a list with one number for each of the {count} values, got {shown}"
    strange = [
        item
        for item in given
        if isinstance(item, bool) or not isinstance(item, (int, float)) or not 0 <= item <= 1
    ]
    if strange:
        return f"must be numbers from 0 to 1, got {_shown(strange[0])}"
    total = math.fsum(given)
    return None if abs(total - 1) < 1e-6 else f"must sum to 1, got {total:g}"


def _range(name: str, kind: str, given: Mapping[str, Any], report: Report) -> Dimension | None:
    low, high = given["min"], given["max"]
    if low >= high:
        report((), f"min must be less than max, got {low} and {high}; for one value, use value")
        return None
    if kind.endswith("log_uniform_values") and low <= 0:
        report(("min",), f"must be greater than 0 for {kind}, got {low}")
        return None
    if kind == "int_uniform":
        return IntRange(name, low, high)
    if kind == "q_uniform":
        return _stepped(name, low, high, given["q"], report)
    if kind == "inv_log_uniform":
        low, high = -high, -low  # log(1/X) = -log(X)
    if kind in EXPONENTS:
        low, high = math.exp(low), math.exp(high)
    if kind.startswith("q_"):
        return _checked(Law(name, "log_uniform_values", (low, high), given["q"]), report)
    return FloatRange(name, float(low), float(high), log=kind != "uniform")


def _stepped(name: str, low: Any, high: Any, step: Any, report: Report) -> Dimension | None:
    """A range with a step; its upper end is the last number that a step reaches."""
    if step > high - low:
        report(("q",), f"must be greater than 0 and at most max - min, got {step}")
        return None
    if all(type(value) is int for value in (low, high, step)):
        return IntRange(name, low, low + (high - low) // step * step, step)
    count = int((Decimal(repr(high)) - Decimal(repr(low))) / Decimal(repr(step))) + 1
    if count > MAX_VALUES:
        report(("q",), f"makes more than {MAX_VALUES} steps; use uniform instead")
        return None
    wide = StepRange(name, float(low), float(high), float(step))
    return StepRange(name, wide.low, wide.at(wide.count - 1), wide.step)


def _law(name: str, kind: str, given: Mapping[str, Any], report: Report) -> Law | None:
    shape: Shape = next(shape for shape in SHAPES if shape == kind.removeprefix("q_"))
    first, second = (given[key] for key in SHAPES[shape])
    furthest = abs(first) + 4 * second
    if shape == "log_normal" and furthest > MAX_EXPONENT:
        report((), f"mu and sigma are of a logarithm, and exp({furthest:g}) is too large a number")
        return None
    return _checked(Law(name, shape, (first, second), given.get("q")), report)


def _checked(law: Law, report: Report) -> Law | None:
    """The law, if numbers of some use come of it."""
    exact = dataclasses.replace(law, q=None)
    if not all(map(math.isfinite, ends(exact))):
        report((), "draws numbers that are too large")
    elif law.q is not None and max(map(abs, ends(exact))) / law.q >= MAX_STEPS:
        report(("q",), f"is too small a step for such large numbers, got {law.q}")
    elif ends(law)[0] == ends(law)[1]:
        report((), f"draws {ends(law)[0]} and nothing else; use value")
    else:
        return law
    return None


def _conditions(given: object, report: Report) -> tuple[Condition, ...] | None:
    if not isinstance(given, Mapping) or not given:
        report(
            ("when",), f"must be a mapping such as {{algorithm.name: car_ft}}, got {_shown(given)}"
        )
        return None
    found = []
    for name, value in given.items():
        values = tuple(value) if isinstance(value, list) else (value,)
        if not values:
            report(("when", name), "can never hold: give a value or a list of values")
        found.append(Condition(name, values))
    return tuple(found) if all(condition.values for condition in found) else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
