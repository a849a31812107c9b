"""The `parameters:` of a sweep file, in W&B's words, read into dimensions."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from carft_core.errors import unknown
from sweeps.dimensions import Choice, Dimension, FloatRange, IntRange, StepRange
from sweeps.yaml_lines import Route

Report = Callable[[Route, str], None]
"""Takes a mistake: its place below the parameter, and what is wrong."""

MAX_VALUES = 1000

DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
}
"""Each distribution, and the keys that describe it. `q` is 1 when left out, as in W&B."""
DISTRIBUTIONS_LATER = (
    *("normal", "q_normal", "log_normal", "q_log_normal", "beta", "q_beta"),
    *("inv_log_uniform", "inv_log_uniform_values", "q_log_uniform", "q_log_uniform_values"),
    "categorical_w_probabilities",
)
KEYS = ("distribution", "value", "values", "min", "max", "q")
KEYS_LATER = ("mu", "sigma", "a", "b", "probabilities", "when")


def dimension(name: str, data: object, report: Report) -> Dimension | None:
    """The dimension that a parameter describes, or None after reporting what is wrong."""
    if not isinstance(data, Mapping):
        form = "{values: [...]}" if isinstance(data, list) else "{values: [...]} or {value: ...}"
        report((), f"must be a mapping such as {form}, got {_shown(data)}")
        return None
    known = True
    for key in data:
        if key in KEYS_LATER:
            report((key,), f"{key} is known, but not available in this version")
        elif key not in KEYS:
            report((key,), unknown("key", key, (*KEYS, "parameters")))
        known &= key in KEYS
    kind = _distribution(data, report) if known else None
    if kind is None:
        return None
    wanted = DISTRIBUTIONS[kind]
    stray = [key for key in data if key not in (*wanted, "distribution")]
    missing = [key for key in wanted if key not in data and key != "q"]
    for key in stray:
        report((key,), f"does not go with {kind}, which has {' and '.join(wanted)}")
    if missing:
        report((), f"{kind} wants {' and '.join(missing)}")
    if stray or missing:
        return None
    if kind == "constant":
        return Choice(name, (data["value"],))
    if kind == "categorical":
        return _choice(name, data["values"], report)
    return _range(name, kind, data, report)


def _distribution(data: Mapping[str, Any], report: Report) -> str | None:
    """What is stated, or what the keys say."""
    kind = data.get("distribution")
    if kind in DISTRIBUTIONS_LATER:
        report(("distribution",), f"{kind} is known, but not available in this version")
        return None
    if kind is not None:
        if isinstance(kind, str) and kind in DISTRIBUTIONS:
            return kind
        report(("distribution",), unknown("distribution", kind, DISTRIBUTIONS))
        return None
    if "value" in data:
        return "constant"
    if "values" in data:
        return "categorical"
    if "min" not in data and "max" not in data:
        report((), "give values, value, or min and max")
        return None
    if "q" in data:
        return "q_uniform"
    ends = [data.get("min"), data.get("max")]
    return "int_uniform" if all(type(end) is int for end in ends) else "uniform"


def _choice(name: str, values: object, report: Report) -> Choice | None:
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_VALUES:
        shown = f"{len(values)} of them" if isinstance(values, list) else _shown(values)
        report(("values",), f"must be a list of 1 to {MAX_VALUES} values, got {shown}")
        return None
    seen: dict[str, int] = {}
    for index, value in enumerate(values):
        # 1 and 1.0 are one value, 1 and true are two.
        whole = isinstance(value, float) and value.is_integer()
        key = json.dumps(int(value) if whole else value, sort_keys=True)
        if key in seen:
            report(("values", index), f"{_shown(value)} stands in the list twice")
        seen[key] = index
    return Choice(name, tuple(values)) if len(seen) == len(values) else None


def _range(name: str, kind: str, data: Mapping[str, Any], report: Report) -> Dimension | None:
    low, high, step = data["min"], data["max"], data.get("q", 1)
    given = {"min": low, "max": high, **({"q": step} if kind == "q_uniform" else {})}
    wrong = {key: reason for key, value in given.items() if (reason := _not_a(kind, value))}
    for key, reason in wrong.items():
        report((key,), reason)
    if wrong:
        return None
    if low >= high:
        report((), f"min must be less than max, got {low} and {high}; for one value, use value")
        return None
    if kind == "int_uniform":
        return IntRange(name, low, high)
    if kind == "q_uniform":
        return _stepped(name, low, high, step, report)
    if kind == "log_uniform":
        return FloatRange(name, math.exp(low), math.exp(high), log=True)
    if kind == "log_uniform_values" and low <= 0:
        report(("min",), f"must be greater than 0 for {kind}, got {low}")
        return None
    return FloatRange(name, float(low), float(high), log=kind == "log_uniform_values")


def _not_a(kind: str, value: object) -> str | None:
    """Why a value is no end of a range of this kind."""
    if kind == "int_uniform" and type(value) is not int:
        return f"must be a whole number for int_uniform, got {_shown(value)}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return f"must be a number, got {_shown(value)}"
    if not math.isfinite(value):
        return f"must be finite, got {value}"
    if kind == "log_uniform" and abs(value) > 700:
        return f"is an exponent of e and must be from -700 to 700, got {value}"
    return None


def _stepped(name: str, low: Any, high: Any, step: Any, report: Report) -> Dimension | None:
    """A range with a step; its upper end is the last number that a step reaches."""
    if step <= 0 or step > high - low:
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


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
