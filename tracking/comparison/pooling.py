"""Several sweeps as one, and some of their runs."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import (
    RunRecord,
    Scalar,
    group,
    params_key,
    tells_apart,
)
from carft_sweep.tracking.comparison.selection import SWEEP, budgets
from carft_sweep.tracking.comparison.spec import (
    REFERENCE,
    USUAL,
    ComparisonSpec,
    agreed,
    common_seeds,
)
from carft_sweep.tracking.comparison.tasks import (
    compare_tasks,
    split_by_task,
    task_of,
    without_left_out,
)
from carft_sweep.tracking.errors import TrackingError, unknown_name

RUN_FIELDS = ("algorithm", "role", "seed", "state", "sweep", "trial")
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

    def holds(self, values: Sequence[Scalar]) -> bool:
        """Whether it holds of one of the values that a run has there, or the run has none.

        What a run lacks says nothing of it: `kl_weight>=0.3` leaves fine-tuning in.
        """
        if not values:
            return True
        if self.operator in _ORDER:
            bound, numbers = float(self.values[0]), map(_number, values)
            return any(n is not None and _ORDER[self.operator](n, bound) for n in numbers)
        equal = any(_equal(value, text) for value in values for text in self.values)
        return equal == (self.operator == "=")


def parse_condition(text: str) -> Condition:
    """Parse `kl_weight>=0.3`. Raises TrackingError that says how conditions are written."""
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


@dataclass(frozen=True)
class RunFilter:
    """Conditions that all hold of the runs that are compared."""

    conditions: tuple[Condition, ...] = ()

    @classmethod
    def parse(cls, texts: Sequence[str]) -> RunFilter:
        """Parse each condition. Raises TrackingError."""
        return cls(tuple(map(parse_condition, texts)))

    def __str__(self) -> str:
        return " and ".join(map(str, self.conditions))

    def seeds(self, required: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Return the seeds that a complete setting still has."""
        if required is None:
            return None
        own = [one for one in self.conditions if one.field == "seed"]
        return tuple(seed for seed in required if all(one.holds([seed]) for one in own))


def filter_runs(
    records: Sequence[RunRecord], chosen: RunFilter, sweeps: Mapping[str, Sequence[str]]
) -> list[RunRecord]:
    """Return the runs of which every condition holds; `sweeps` names, by digest, who has a run.

    Raises TrackingError for a field that no run has, or when no run is left.
    """
    names = sorted({name for record in records for name in record.params})
    by_field = [(one, _field(one.field, names)) for one in chosen.conditions]
    for one, name in by_field:
        values = [value for record in records for value in _values(record, name, {})]
        if one.operator in _ORDER and values and all(_number(value) is None for value in values):
            raise TrackingError(f"--where {str(one)!r}: {name} is no number; use = or !=")
    filtered = [
        record
        for record in records
        if all(one.holds(_values(record, name, sweeps)) for one, name in by_field)
    ]
    if records and not filtered:
        raise TrackingError(
            "; ".join([f"no run is left where {chosen}", *unmet(records, chosen, sweeps)])
        )
    return filtered


def unmet(
    records: Sequence[RunRecord], chosen: RunFilter, sweeps: Mapping[str, Sequence[str]]
) -> Iterator[str]:
    """Name the conditions that hold of no run that has their field, with the values that exist."""
    names = sorted({name for record in records for name in record.params})
    for one in chosen.conditions:
        name = _field(one.field, names)
        every = {value for record in records for value in _values(record, name, sweeps)}
        if not every or any(one.holds([value]) for value in every):
            continue
        texts = sorted(f"{v:.6g}" if isinstance(v, float) else str(v) for v in every)
        if one.operator == "=":
            yield f"--where {one}: {unknown_name(name, ','.join(one.values), texts)}"
        else:
            yield f"--where {one}: holds of no {name}; Known: {', '.join(texts)}."


def _field(written: str, names: Sequence[str]) -> str:
    """Return the full name of a field that may be given by its last part, as labels give it."""
    if written in RUN_FIELDS or written in names:
        return written
    ends = [name for name in names if name.rsplit(".", 1)[-1] == written]
    if len(ends) == 1:
        return ends[0]
    if ends:
        raise TrackingError(f"--where: {written!r} may be {' or '.join(ends)}; say which")
    short = [name.rsplit(".", 1)[-1] for name in names]
    hint = unknown_name("field", written, [*RUN_FIELDS, *short, *names])
    raise TrackingError(f"--where: {hint} Fields in which no two runs differ are not among them.")


def _values(record: RunRecord, name: str, sweeps: Mapping[str, Sequence[str]]) -> Sequence[Scalar]:
    if name == "sweep":
        return tuple(sweeps.get(record.digest, ()))
    if name in RUN_FIELDS:
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
    """Compare as a table shows the value: with six digits, `true`, `none`."""
    if value is None or isinstance(value, bool):
        return text.lower() == str(value).lower()
    if isinstance(value, str):
        return value == text
    number = _number(text)
    return number is not None and f"{number:.6g}" == f"{value:.6g}"


SPLIT_SEED = "data.split_seed"
_SAME = frozenset({"trial", "baseline"})
"""Roles in which a run may stand twice and count once."""


@dataclass(frozen=True)
class SweepRuns:
    """The runs of one sweep, and how it compares them."""

    sweep: str
    records: Sequence[RunRecord]
    spec: ComparisonSpec = USUAL
    fields: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    """By digest every field of a run (see `comparison.runs`): of all runs where there are several
    sweeps, else of zero-shot models."""
    warnings: tuple[str, ...] = ()
    """What a reader must know of how it was read."""


def compare_sweeps(
    sweeps: Sequence[SweepRuns],
    spec: ComparisonSpec | None = None,
    *,
    chosen: RunFilter = RunFilter(),
    with_images: bool = False,
) -> Comparison:
    """Compare the runs of one sweep, or of several as if they were one.

    Args:
        sweeps: At least one.
        spec: Goes before that of the sweeps.
        chosen: The runs to compare; settings without such a run still count as tried.
        with_images: Add bootstrap intervals over images.

    Raises:
        TrackingError: The sweeps compare differently, no run is left by the filter, or no run is
            of the reference algorithm.
    """
    spec = spec or agreed({part.sweep: part.spec for part in sweeps})
    records = list(sweeps[0].records) if len(sweeps) == 1 else unified(sweeps)
    filtered = filter_runs(records, chosen, owners(sweeps)) if chosen.conditions else records
    algorithms = sorted({record.algorithm for record in filtered})
    if spec.reference != REFERENCE and spec.reference not in algorithms:
        raise TrackingError(f"--reference: {unknown_name('algorithm', spec.reference, algorithms)}")
    if spec.tasks is not None:
        _check_tasks(spec.tasks, sweeps)
    if chosen.conditions:
        seeds, fresh = chosen.seeds(spec.seeds), chosen.seeds(spec.confirm_seeds)
        spec = spec.model_copy(update={"seeds": seeds, "confirm_seeds": fresh})
    compared = (compare if spec.tasks is None else compare_tasks)(
        filtered,
        spec,
        sweep=" + ".join(part.sweep for part in sweeps),
        with_images=with_images,
        tried=_tried(records, spec.tasks) if chosen.conditions else None,
    )
    warnings = [*_differing_seeds(sweeps), *(text for part in sweeps for text in part.warnings)]
    if chosen.conditions:
        counts = f"{len(filtered)} of {len(records)}"
        warnings[:0] = [
            f"only the runs where {chosen}: {counts}; choice and verdict are of these",
            *(
                f"{text} Only runs without such a field are left."
                for text in unmet(records, chosen, owners(sweeps))
            ),
        ]
    return replace(compared, warnings=(*warnings, *compared.warnings))


def _tried(records: Sequence[RunRecord], task: str | None) -> dict[str, int]:
    """Count the settings of each algorithm; of several tasks, those of the task with the most."""
    tasks = [records] if task is None else split_by_task(without_left_out(records), task).values()
    counts: dict[str, int] = {}
    for budget in (budget for own in tasks for budget in budgets(group(own))):
        counts[budget.algorithm] = max(budget.settings, counts.get(budget.algorithm, 0))
    return counts


def _check_tasks(field: str, sweeps: Sequence[SweepRuns]) -> None:
    """Raise TrackingError where sweeps have other tasks than the first."""
    tasks = [dict.fromkeys(task_of(run, field) for run in part.records) for part in sweeps]
    for part, others in zip(sweeps, tasks, strict=True):
        if {*others} != {*tasks[0]}:
            raise TrackingError(
                f"{sweeps[0].sweep} and {part.sweep} cannot be compared as one: the tasks "
                f"({field}) of one are {', '.join(tasks[0])}, of the other {', '.join(others)}; "
                "look at each by itself"
            )


def owners(sweeps: Sequence[SweepRuns]) -> dict[str, tuple[str, ...]]:
    """Map each run's digest to the names of the sweeps that have it."""
    names: dict[str, dict[str, None]] = {}
    for part in sweeps:
        for record in part.records:
            names.setdefault(record.digest, {})[part.sweep] = None
    return {digest: tuple(of) for digest, of in names.items()}


def unified(sweeps: Sequence[SweepRuns]) -> list[RunRecord]:
    """Return the runs of all sweeps, each once, with the fields in which they differ as params.

    Where two finished runs have equal fields and the same seed and yet are two (other code, other
    data under the same name), the name of the sweep tells them apart.
    """
    pairs = [pair for part in sweeps for pair in _with_fields(part)]
    values: dict[str, set[str]] = {}
    for _, fields in pairs:
        for name, value in fields.items():
            values.setdefault(name, set()).add(params_key({name: value}))
    differing = {name for name, keys in values.items() if len(keys) > 1}
    differing |= {name for record, _ in pairs for name in record.params if tells_apart(name)}
    once: dict[tuple[str, str], RunRecord] = {}
    for record, fields in pairs:
        params = {name: value for name, value in fields.items() if name in differing}
        key = (record.digest, "" if record.role in _SAME else record.role)
        new = replace(record, params=params)
        once[key] = new if key not in once else _as_one(once[key], new)
    return _with_sweeps(list(once.values()), owners(sweeps))


def _with_fields(part: SweepRuns) -> Iterator[tuple[RunRecord, Mapping[str, Scalar]]]:
    """Yield every run with its fields; one that left no config has those of its setting."""
    of_setting = {
        record.setting: part.fields[record.digest]
        for record in part.records
        if record.digest in part.fields
    }
    splits = [
        (record.seed, part.fields[record.digest].get(SPLIT_SEED))
        for record in part.records
        if record.seed is not None and record.digest in part.fields
    ]
    # Where every split is that of its run's seed, it tells no two runs of a setting apart.
    follows = len({*splits}) > 1 and all(seed == split for seed, split in splits)
    for record in part.records:
        own = part.fields.get(record.digest) or of_setting.get(record.setting, {})
        varied = {name: value for name, value in record.params.items() if tells_apart(name)}
        fields = {**own, **varied}
        if not record.trains:  # Nothing is trained, whatever the optimiser would have been.
            fields = {name: v for name, v in fields.items() if not name.startswith("optim.")}
        yield record, {**fields, SPLIT_SEED: "seed"} if follows else fields


def _as_one(one: RunRecord, other: RunRecord) -> RunRecord:
    """Merge the records of two sweeps of one run: finished where one says so, with all merges."""
    ranked = sorted((one, other), key=lambda run: (run.state != "done", run.role != "trial"))
    return replace(ranked[0], merges={**ranked[1].merges, **ranked[0].merges})


def _with_sweeps(
    records: Sequence[RunRecord], sweeps: Mapping[str, Sequence[str]]
) -> list[RunRecord]:
    """Add the names of its sweeps to the params of a run that nothing else tells from another."""
    keys = [(record.setting, record.role in _SAME) for record in records]
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


def _differing_seeds(sweeps: Sequence[SweepRuns]) -> Iterator[str]:
    """Say where a setting of one sweep has seeds that another's has not."""
    seeds = {part.sweep: part.spec.seeds for part in sweeps}
    if len({*seeds.values()}) > 1:
        each = "; ".join(
            f"{name}: {'any' if own is None else ', '.join(map(str, own)) or 'none'}"
            for name, own in seeds.items()
        )
        common = common_seeds([*seeds.values()])
        ones = "those of all, since none is common" if common is None else "the common ones"
        yield f"the sweeps have different seeds ({each}); a setting is whole with {ones}"
