"""Which runs enter a comparison: conditions on their fields, as `compare --where` takes them."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tracking.base import TrackingError
from tracking.names import unknown
from tracking.records import RunRecord, Scalar

OWN = ("algorithm", "role", "seed", "state", "sweep", "trial")
"""What every run has besides its varied fields."""
_WRITTEN = re.compile(r"\s*([\w.\-/]+)\s*(!=|<=|>=|==?|<|>)\s*(.*?)\s*")
_ORDER: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True)
class Condition:
    """`field operator value`; several values after a comma are alternatives."""

    field: str
    operator: str
    values: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.field}{self.operator}{','.join(self.values)}"

    def holds(self, found: Sequence[Scalar]) -> bool:
        """Of one of the values that a run has there; of none, of a run that lacks the field.

        What a run lacks says nothing of it: `kl_weight>=0.3` leaves fine-tuning in.
        """
        if not found:
            return True
        if self.operator == "!=":
            return not any(_equal(value, text) for value in found for text in self.values)
        if self.operator == "=":
            return any(_equal(value, text) for value in found for text in self.values)
        bound = float(self.values[0])
        numbers = (_number(value) for value in found)
        return any(n is not None and _ORDER[self.operator](n, bound) for n in numbers)


def condition(text: str) -> Condition:
    """`kl_weight>=0.3`. Raises TrackingError that says how conditions are written."""
    written = _WRITTEN.fullmatch(text)
    if written is None or not written[3]:
        raise TrackingError(
            f"--where {text!r}: write FIELD=VALUE, with =, !=, <, <=, > or >=, such as "
            "algorithm=car_ft, kl_weight>=0.3 or optim.lr=1e-4"
        )
    sign = "=" if written[2] == "==" else written[2]
    values = tuple(part.strip() for part in written[3].split(","))
    if sign in _ORDER and (len(values) > 1 or _number(values[0]) is None):
        raise TrackingError(f"--where {text!r}: {sign} wants one number behind it")
    return Condition(written[1], sign, values)


def chosen(
    records: Sequence[RunRecord],
    conditions: Sequence[Condition],
    sweeps: Mapping[str, Sequence[str]],
) -> list[RunRecord]:
    """The runs of which every condition holds; `sweeps` names, by digest, those that have it.

    Raises TrackingError for a field that no run has, or when no run is left.
    """
    names = sorted({name for record in records for name in record.params})
    by_field = [(one, _field(one.field, names)) for one in conditions]
    for one, name in by_field:
        if one.operator in _ORDER:
            _check_order(one, name, records)
    kept = [
        record
        for record in records
        if all(one.holds(_values(record, name, sweeps)) for one, name in by_field)
    ]
    if records and not kept:
        told = (_nobody(one, name, records, sweeps) for one, name in by_field)
        left = f"no run is left where {' and '.join(map(str, conditions))}"
        raise TrackingError("; ".join([left, *filter(None, told)]))
    return kept


def seeds(
    wanted: tuple[int, ...] | None, conditions: Iterable[Condition]
) -> tuple[int, ...] | None:
    """The seeds that a whole setting still has."""
    if wanted is None:
        return None
    ours = [one for one in conditions if one.field == "seed"]
    return tuple(seed for seed in wanted if all(one.holds([seed]) for one in ours))


def _field(written: str, names: Sequence[str]) -> str:
    """The full name of a field that may be given by its last part, as labels give it."""
    if written in OWN or written in names:
        return written
    ends = [name for name in names if name.rsplit(".", 1)[-1] == written]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise TrackingError(f"--where: {written!r} may be {' or '.join(ends)}; say which")
    short = [name.rsplit(".", 1)[-1] for name in names]
    told = unknown("field", written, [*OWN, *short, *names])
    raise TrackingError(f"--where: {told} Fields in which no two runs differ are not among them.")


def _nobody(
    one: Condition, name: str, records: Sequence[RunRecord], sweeps: Mapping[str, Sequence[str]]
) -> str:
    """What to say of a condition `field=value` whose value no run has."""
    there = {value for record in records for value in _values(record, name, sweeps)}
    if one.operator != "=" or any(_equal(value, text) for value in there for text in one.values):
        return ""
    shown = sorted(f"{v:.6g}" if isinstance(v, float) else str(v) for v in there)
    return f"--where {one}: {unknown(name, ','.join(one.values), shown)}"


def _check_order(one: Condition, name: str, records: Sequence[RunRecord]) -> None:
    found = [value for record in records for value in _values(record, name, {})]
    if found and all(_number(value) is None for value in found):
        raise TrackingError(f"--where {str(one)!r}: {name} is no number; use = or !=")


def _values(record: RunRecord, name: str, sweeps: Mapping[str, Sequence[str]]) -> Sequence[Scalar]:
    if name == "sweep":
        return tuple(sweeps.get(record.digest, ()))
    if name in OWN:
        value: Scalar = getattr(record, name)
        return () if value is None else (value,)
    return (record.params[name],) if name in record.params else ()


def _number(value: Scalar) -> float | None:
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _equal(value: Scalar, text: str) -> bool:
    """As a table shows the value: with six digits, `true`, `none`."""
    if value is None or isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, str):
        return value == text
    number = _number(text)
    return number is not None and f"{number:.6g}" == f"{value:.6g}"
