"""Several sweeps as one, and some of their runs."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tracking.comparison import caveats
from tracking.comparison.compare import REFERENCE, Comparison
from tracking.comparison.runs import RunRecord, Scalar, group, params_key, tells_apart
from tracking.comparison.spec import Judging, agreed, common_seeds
from tracking.comparison.tasks import check_equal, compared_by
from tracking.errors import TrackingError, unknown_name

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


def filter_runs(
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


def filter_seeds(
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
    told = unknown_name("field", written, [*OWN, *short, *names])
    raise TrackingError(f"--where: {told} Fields in which no two runs differ are not among them.")


def _nobody(
    one: Condition, name: str, records: Sequence[RunRecord], sweeps: Mapping[str, Sequence[str]]
) -> str:
    """What to say of a condition `field=value` whose value no run has."""
    there = {value for record in records for value in _values(record, name, sweeps)}
    if one.operator != "=" or any(_equal(value, text) for value in there for text in one.values):
        return ""
    shown = sorted(f"{v:.6g}" if isinstance(v, float) else str(v) for v in there)
    return f"--where {one}: {unknown_name(name, ','.join(one.values), shown)}"


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


SWEEP = "sweep"
"""The field that tells two runs apart which differ in nothing that a config says."""
SPLIT_SEED = "data.split_seed"
_SAME = frozenset({"trial", "baseline"})
"""Roles in which a run may stand twice and count once."""


@dataclass(frozen=True)
class Part:
    """The runs of one sweep, and how it judges them."""

    sweep: str
    records: Sequence[RunRecord]
    judging: Judging = field(default_factory=Judging)
    fields: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    """By digest every field of a run (see `comparison.runs`); wanted of several sweeps only."""
    warnings: tuple[str, ...] = ()
    """What a reader must know of how it was read."""


def compared(
    parts: Sequence[Part],
    *,
    judging: Judging | None = None,
    conditions: Sequence[Condition] = (),
    reference: str = REFERENCE,
    with_images: bool = False,
) -> Comparison:
    """The comparison of one sweep, or of several as if they were one.

    `judging` goes before that of the sweeps. Raises TrackingError when the sweeps judge
    differently, no run is left by the conditions, or no run is of the algorithm `reference`.
    """
    chosen = judging or agreed({part.sweep: part.judging for part in parts})
    records = list(parts[0].records) if len(parts) == 1 else unified(parts)
    kept = filter_runs(records, conditions, sweeps_of(parts)) if conditions else records
    if reference != REFERENCE:
        _check_reference(reference, kept)
    plain = [_without_sweep(record) for record in kept]
    told_apart = any(SWEEP in record.params for record in kept)
    if chosen.tasks is not None:
        check_equal(chosen.tasks, {part.sweep: part.records for part in parts})
    found = compared_by(chosen.tasks)(
        kept,
        sweep=" + ".join(part.sweep for part in parts),
        rule=chosen.rule,
        seeds=filter_seeds(chosen.seeds, conditions),
        reference=reference,
        terms=chosen.terms,
        confirm_seeds=filter_seeds(chosen.confirm_seeds, conditions),
        untuned=caveats.untuned(group(plain)) if told_apart else None,
        with_images=with_images,
    )
    said = (*_filtered(conditions, len(kept), len(records)), *_seeds(parts))
    said += tuple(warning for part in parts for warning in part.warnings)
    return replace(found, warnings=(*said, *found.warnings)) if said else found


def unified(parts: Sequence[Part]) -> list[RunRecord]:
    """The runs of all sweeps, each once; its params are the fields in which the runs differ.

    Where two finished runs have equal fields and the same seed and yet are two (other code, other
    data under the same name), the name of the sweep tells them apart.
    """
    pairs = [(record, known) for part in parts for record, known in _known(part)]
    differing = _differing([known for _, known in pairs])
    differing |= {name for record, _ in pairs for name in record.params if tells_apart(name)}
    once: dict[tuple[str, str], RunRecord] = {}
    for record, known in pairs:
        params = {name: value for name, value in known.items() if name in differing}
        key = (record.digest, "" if record.role in _SAME else record.role)
        new = replace(record, params=params)
        once[key] = new if key not in once else _as_one(once[key], new)
    return _told_apart(list(once.values()), sweeps_of(parts))


def sweeps_of(parts: Sequence[Part]) -> dict[str, tuple[str, ...]]:
    """Which sweeps have a run, by its digest."""
    found: dict[str, dict[str, None]] = {}
    for part in parts:
        for record in part.records:
            found.setdefault(record.digest, {})[part.sweep] = None
    return {digest: tuple(names) for digest, names in found.items()}


def _known(part: Part) -> Iterator[tuple[RunRecord, Mapping[str, Scalar]]]:
    """Every run with its fields; one that left no config takes those that its siblings share."""
    shared: dict[str, dict[str, Scalar]] = {}
    follows = _follows_seed(part)
    for record in part.records:
        own = part.fields.get(record.digest)
        if own is None:
            continue
        if record.algorithm not in shared:
            shared[record.algorithm] = dict(own)
            continue
        common = shared[record.algorithm]
        for name in [name for name in common if name not in own or own[name] != common[name]]:
            del common[name]
    for record in part.records:
        known = part.fields.get(record.digest, shared.get(record.algorithm, {}))
        varied = {name: value for name, value in record.params.items() if tells_apart(name)}
        fields = {**known, **varied}
        if not record.trains:  # Nothing is trained, whatever the optimiser would have been.
            fields = {name: v for name, v in fields.items() if not name.startswith("optim.")}
        yield record, {**fields, SPLIT_SEED: "seed"} if follows else fields


def _follows_seed(part: Part) -> bool:
    """Whether every run's split is that of its own seed: then it parts no two of a setting."""
    known = [
        (record.seed, own.get(SPLIT_SEED))
        for record in part.records
        if record.seed is not None and (own := part.fields.get(record.digest)) is not None
    ]
    return len(set(known)) > 1 and all(seed == split for seed, split in known)


def _differing(every: Sequence[Mapping[str, Scalar]]) -> set[str]:
    values: dict[str, set[str]] = {}
    for known in every:
        for name, value in known.items():
            values.setdefault(name, set()).add(params_key({name: value}))
    return {name for name, found in values.items() if len(found) > 1}


def _as_one(one: RunRecord, other: RunRecord) -> RunRecord:
    """The same run as two sweeps know it: finished where one says so, with the merges of both."""
    ranked = sorted((one, other), key=lambda run: (run.state != "done", run.role != "trial"))
    return replace(ranked[0], merges={**ranked[1].merges, **ranked[0].merges})


def _told_apart(
    records: Sequence[RunRecord], sweeps: Mapping[str, Sequence[str]]
) -> list[RunRecord]:
    keys = [
        (record.algorithm, params_key(record.params), record.role in _SAME) for record in records
    ]
    seeds = Counter(
        (key, record.seed)
        for key, record in zip(keys, records, strict=True)
        if record.state == "done"
    )
    twice = {key for (key, _), count in seeds.items() if count > 1}
    return [
        replace(record, params={**record.params, SWEEP: ", ".join(sweeps[record.digest])})
        if key in twice
        else record
        for key, record in zip(keys, records, strict=True)
    ]


def _without_sweep(record: RunRecord) -> RunRecord:
    if SWEEP not in record.params:
        return record
    params = {name: value for name, value in record.params.items() if name != SWEEP}
    return replace(record, params=params)


def _check_reference(reference: str, records: Sequence[RunRecord]) -> None:
    algorithms = sorted({record.algorithm for record in records})
    if reference not in algorithms:
        raise TrackingError(f"--reference: {unknown_name('algorithm', reference, algorithms)}")


def _filtered(conditions: Sequence[Condition], left: int, of: int) -> tuple[str, ...]:
    if not conditions:
        return ()
    where = " and ".join(map(str, conditions))
    return (f"only the runs where {where}: {left} of {of}; choice and verdict are of these",)


def _seeds(parts: Sequence[Part]) -> tuple[str, ...]:
    """One sentence where a setting of one sweep has seeds that another's has not."""
    told = {part.sweep: part.judging.seeds for part in parts}
    if len(set(told.values())) < 2:
        return ()
    each = "; ".join(f"{name}: {_numbers(seeds)}" for name, seeds in told.items())
    whole = common_seeds([*told.values()])
    ones = "those of all, since none is common" if whole is None else "the common ones"
    return (f"the sweeps have different seeds ({each}); a setting is whole with {ones}",)


def _numbers(seeds: Sequence[int] | None) -> str:
    return "any" if seeds is None else ", ".join(map(str, seeds)) or "none"
