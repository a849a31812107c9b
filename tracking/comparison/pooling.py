"""The comparison of one or several sweeps, whole or of the runs that meet conditions."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from carft_sweep.tracking.comparison.caveats import FAMILY
from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import (
    RunRecord,
    Scalar,
    distinct_texts,
    exact_text,
    group,
    last_part,
    number_of,
    scalar_text,
    tells_apart,
    value_key,
    value_text,
)
from carft_sweep.tracking.comparison.selection import SWEEP, budgets
from carft_sweep.tracking.comparison.spec import (
    REFERENCE,
    USUAL,
    ComparisonSpec,
    agreed,
    common_seeds,
)
from carft_sweep.tracking.comparison.tasks import compare_tasks, split_by_task
from carft_sweep.tracking.errors import TrackingError, unknown_name

RUN_FIELDS = ("algorithm", "role", "seed", "state", "sweep", "trial")
"""Fields of every run that a condition may name, besides the varied fields."""
_CONDITION = re.compile(r"\s*([\w.\-/]+)\s*(!=|<=|>=|==?|<|>)\s*(.*?)\s*")
_ORDER: Mapping[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
Owners = Mapping[str, Sequence[str]]
"""The names of the sweeps that have a run, by the run's digest."""


@dataclass(frozen=True)
class Condition:
    """A condition `field operator value` on the compared runs; several values are alternatives."""

    text: str
    field: str
    """Whole, dotted name."""
    operator: str
    values: tuple[Scalar, ...]
    """Of `=` and `!=` the field's own values that the text names, of others the one bound."""

    def holds(self, values: Sequence[Scalar]) -> bool:
        """Return whether the condition holds for a run's `values` of the field (one for each sweep,
        of the field `sweep`). A missing field fails no condition: `kl_weight>=0.3` leaves
        fine-tuning in."""
        if not values:
            return True
        if self.operator in _ORDER:
            bound, numbers = _number(self.values[0]), map(_number, values)
            assert bound is not None  # as it was parsed
            return any(n is not None and _ORDER[self.operator](n, bound) for n in numbers)
        equal = not {*map(value_key, values)}.isdisjoint(map(value_key, self.values))
        return equal == (self.operator == "=")


def parse_condition(text: str, records: Sequence[RunRecord], sweeps: Owners) -> Condition:
    """Return the condition of a text such as `kl_weight>=0.3`; `sweeps` names the sweeps of each of
    `records`.

    A value is named by its text in a table: `true`, whole numbers exactly, others with all digits
    or rounded as labels round them.

    Raises:
        TrackingError: The text is no condition, its field is none of `records`, a value is none of
            the field's, or a rounded number is the text of several.
    """
    parts = _CONDITION.fullmatch(text)
    if parts is None or not parts[3]:
        raise TrackingError(
            f"--where {text!r}: write FIELD=VALUE, with =, !=, <, <=, > or >=, such as "
            "algorithm=car_ft, kl_weight>=0.3 or optim.lr=1e-4"
        )
    sign = "=" if parts[2] == "==" else parts[2]
    typed = tuple(value.strip() for value in parts[3].split(","))
    if sign in _ORDER and (len(typed) > 1 or _number(typed[0]) is None):
        raise TrackingError(f"--where {text!r}: {sign} wants one number behind it")
    fields = sorted({name for record in records for name in record.params})
    field_name = _whole_name(parts[1], fields)
    shown = f"{parts[1]}{sign}{','.join(typed)}"
    present = [value for record in records for value in _values(record, field_name, sweeps)]
    if sign in _ORDER:
        if present and all(_number(value) is None for value in present):
            raise TrackingError(f"--where {shown!r}: {field_name} is no number; use = or !=")
        return Condition(shown, field_name, sign, typed)
    is_one = any(_is_exactly(value, parts[3]) for value in present)  # though it has a comma
    words = (parts[3],) if is_one else typed
    named = (value for word in words for value in _named_values(word, present, shown))
    condition = Condition(shown, field_name, sign, tuple(named))
    if present and sign == "=" and not condition.values:
        texts = sorted(distinct_texts(present).values())
        raise TrackingError(f"--where {shown}: {unknown_name(field_name, ','.join(typed), texts)}")
    return condition


def _named_values(typed: str, present: Iterable[Scalar], condition: str) -> list[Scalar]:
    """Return the value of a field that a typed text names, none where no run has it. All digits
    name a value before fewer do. Raises TrackingError for a rounded number that several have."""
    by_key = {value_key(value): value for value in present}
    exact = [value for value in by_key.values() if _is_exactly(value, typed)]
    rounded = [value for value in by_key.values() if _is_rounded(value, typed)]
    if not exact and len(rounded) > 1:
        several = ", ".join(sorted(map(exact_text, rounded)))
        raise TrackingError(
            f"--where {condition}: {typed} may be any of {several}; write the one that is meant"
        )
    return exact or rounded


def _is_exactly(value: Scalar, typed: str) -> bool:
    """Return whether a typed text is a value's own, to the last digit."""
    if number_of(value) is None:
        return scalar_text(value) == (typed if isinstance(value, str) else typed.lower())
    return value == _number(typed)


def _is_rounded(value: Scalar, typed: str) -> bool:
    """Return whether a typed number is what labels and tables show of a number that has more
    digits."""
    number = _number(typed)
    if number is None or not isinstance(value, float) or value.is_integer():
        return False
    return float(number) in {float(value_text(value)), float(scalar_text(value))}


def _whole_name(name: str, fields: Sequence[str]) -> str:
    """Return the whole name of a field that may be given by its last part, as in labels. Raises
    TrackingError for an unknown or ambiguous name."""
    if name in RUN_FIELDS or name in fields:
        return name
    ends = [field for field in fields if last_part(field) == name]
    if len(ends) > 1:
        raise TrackingError(f"--where: {name!r} may be {' or '.join(ends)}; say which")
    if not ends:
        hint = unknown_name("field", name, [*RUN_FIELDS, *map(last_part, fields), *fields])
        raise TrackingError(
            f"--where: {hint} Fields in which no two runs differ are not among them."
        )
    return ends[0]


def filter_runs(
    records: Sequence[RunRecord], conditions: Sequence[Condition], sweeps: Owners
) -> list[RunRecord]:
    """Return the records for which all conditions hold; `sweeps` names the sweeps of each. Raises
    TrackingError for a bound that no value of its field meets, and when no run is left."""
    for rule in conditions:
        values = {value for record in records for value in _values(record, rule.field, sweeps)}
        if rule.operator in _ORDER and values and not any(rule.holds([v]) for v in values):
            known = ", ".join(sorted(distinct_texts(values).values()))
            raise TrackingError(f"--where {rule.text}: holds of no {rule.field}; Known: {known}.")
    filtered = [
        record
        for record in records
        if all(rule.holds(_values(record, rule.field, sweeps)) for rule in conditions)
    ]
    if records and not filtered:
        where = " and ".join(rule.text for rule in conditions)
        raise TrackingError(f"no run is left where {where}")
    return filtered


def _values(record: RunRecord, name: str, sweeps: Owners) -> Sequence[Scalar]:
    if name == "sweep":
        return tuple(sweeps.get(record.digest, ()))
    if name in RUN_FIELDS:
        value: Scalar = getattr(record, name)
        return () if value is None else (value,)
    return (record.params[name],) if name in record.params else ()


def _number(value: Scalar) -> float | None:
    """Return a number, or what a text says of one, whole ones with all their digits; else None."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return int(value) if isinstance(value, str) else value
    except ValueError:
        pass
    try:
        return float(value)
    except ValueError:
        return None


SPLIT_SEED = "data.split_seed"
ROLES_COUNTED_ONCE = frozenset({"trial", "baseline"})
"""A run that several sweeps have counts once for all of these roles."""


@dataclass(frozen=True)
class SweepRuns:
    """The runs of one sweep, and how it compares them."""

    sweep: str
    records: Sequence[RunRecord]
    spec: ComparisonSpec = USUAL
    fields: Mapping[str, Mapping[str, Scalar]] = field(default_factory=dict)
    """Every field of a run's config, by the run's digest: of all runs where there are several
    sweeps, else of zero-shot models."""
    warnings: tuple[str, ...] = ()
    """Sentences on how the runs were read, for readers of the comparison."""


def compare_sweeps(
    sweeps: Sequence[SweepRuns], spec: ComparisonSpec | None = None, *, where: Sequence[str] = ()
) -> Comparison:
    """Return the comparison of the runs of one sweep, or of several as if they were one.

    Args:
        sweeps: At least one.
        spec: Replaces the specification of the sweeps; None: theirs, which must agree.
        where: Conditions that all hold of the runs that are compared, such as `kl_weight>=0.3`;
            settings that they leave out still count as tried.

    Raises:
        TrackingError: The sweeps compare differently or are on different data sets, no run is left
            by the filter, or no run is of the reference algorithm.
    """
    _refuse_other_data(sweeps)
    spec = spec or agreed({part.sweep: part.spec for part in sweeps})
    records = list(sweeps[0].records) if len(sweeps) == 1 else unified(sweeps)
    warnings = [*_differing_seeds(sweeps), *(text for part in sweeps for text in part.warnings)]
    filtered, tried = records, None
    if where:
        names = owners(sweeps)
        conditions = [parse_condition(text, records, names) for text in where]
        filtered = filter_runs(records, conditions, names)
        tried = _tried(records, spec.tasks)
        spec = spec.model_copy(
            update={
                "seeds": _remaining(spec.seeds, conditions) or None,
                "confirm_seeds": _remaining(spec.confirm_seeds, conditions),
            }
        )
        texts = " and ".join(rule.text for rule in conditions)
        count = f"{len(filtered)} of {len(records)}"
        warnings.insert(0, f"only the runs where {texts}: {count}; choice and verdict are of these")
    algorithms = sorted({record.algorithm for record in filtered})
    if spec.reference != REFERENCE and spec.reference not in algorithms:
        raise TrackingError(f"--reference: {unknown_name('algorithm', spec.reference, algorithms)}")
    compared = (compare if spec.tasks is None else compare_tasks)(
        filtered, spec, sweep=" + ".join(part.sweep for part in sweeps), tried=tried
    )
    return replace(compared, warnings=(*warnings, *compared.warnings))


def _refuse_other_data(sweeps: Sequence[SweepRuns]) -> None:
    """Raise TrackingError for sweeps of different data sets, whose accuracies cannot be ranked.
    Data of one digest are the same under any name; another version of a family is compared, with a
    caveat."""
    runs = [(part.sweep, run) for part in sweeps for run in part.records if not part.spec.tasks]
    owner: dict[str, str] = {}
    digests: dict[str, set[object]] = {}
    for sweep, run in runs:
        if FAMILY in run.facts:
            family = str(run.facts[FAMILY]).split()[0]
            owner[family] = sweep
            digests.setdefault(family, set()).add(run.facts.get("data"))
    if len(owner) > 1 and not set.intersection(*digests.values()) - {None}:
        listed = ", ".join(f"{sweep} of {family}" for family, sweep in owner.items())
        raise TrackingError(f"accuracies on different data do not compare: {listed}; compare each")


def _remaining(
    seeds: tuple[int, ...] | None, conditions: Sequence[Condition]
) -> tuple[int, ...] | None:
    """Return the seeds that a complete setting needs under the conditions; None: all that occur."""
    own = [condition for condition in conditions if condition.field == "seed"]
    return seeds and tuple(seed for seed in seeds if all(rule.holds([seed]) for rule in own))


def _tried(records: Sequence[RunRecord], task: str | None) -> dict[str, int]:
    """Return the number of settings of each algorithm; of several tasks the largest number."""
    tasks = [records] if task is None else split_by_task(records, task).values()
    counts: dict[str, int] = {}
    for budget in (budget for own in tasks for budget in budgets(group(own))):
        counts[budget.algorithm] = max(budget.settings, counts.get(budget.algorithm, 0))
    return counts


def owners(sweeps: Sequence[SweepRuns]) -> dict[str, tuple[str, ...]]:
    """Return for each run's digest the names of the sweeps that have the run."""
    names: dict[str, dict[str, None]] = {}
    for part in sweeps:
        for record in part.records:
            names.setdefault(record.digest, {})[part.sweep] = None
    return {digest: tuple(of) for digest, of in names.items()}


def unified(sweeps: Sequence[SweepRuns]) -> list[RunRecord]:
    """Return the runs of all sweeps, each once, with the fields in which runs differ as parameters.
    Two finished runs with equal fields and seed but different digests (other code, or other data of
    the same name) get the name of their sweep as a parameter."""
    pairs = [pair for part in sweeps for pair in _with_fields(part)]
    values: dict[str, set[str]] = {}
    for _, fields in pairs:
        for name, value in fields.items():
            values.setdefault(name, set()).add(value_key(value))
    differing = {name for name, keys in values.items() if len(keys) > 1}
    differing |= {name for record, _ in pairs for name in record.params if tells_apart(name)}
    once: dict[tuple[str, str], RunRecord] = {}
    for record, fields in pairs:
        params = {name: value for name, value in fields.items() if name in differing}
        key = (record.digest, "" if record.role in ROLES_COUNTED_ONCE else record.role)
        new = replace(record, params=params)
        once[key] = _merge_records(once[key], new) if key in once else new
    return _with_sweeps(list(once.values()), owners(sweeps))


def _with_fields(part: SweepRuns) -> Iterator[tuple[RunRecord, Mapping[str, Scalar]]]:
    """Yield each run with its config's fields, or with its setting's where it has no config. A
    split seed that is always the run's seed, and the optimiser of what trains nothing, do not
    count."""
    claimed = [(run, part.fields[run.digest]) for run in part.records if run.digest in part.fields]
    of_setting = {record.key[:2]: fields for record, fields in claimed}
    splits = {(r.seed, fields.get(SPLIT_SEED)) for r, fields in claimed if r.seed is not None}
    # Where every split is that of its run's seed, it tells no two runs of a setting apart.
    follows = len(splits) > 1 and all(seed == split for seed, split in splits)
    for record in part.records:
        own = part.fields.get(record.digest) or of_setting.get(record.key[:2], {})
        varied = {name: value for name, value in record.params.items() if tells_apart(name)}
        fields = {**own, **varied, **({SPLIT_SEED: "seed"} if follows else {})}
        if not record.trains:  # Nothing is trained, whatever the optimiser would have been.
            fields = {name: v for name, v in fields.items() if not name.startswith("optim.")}
        yield record, fields


def _merge_records(one: RunRecord, other: RunRecord) -> RunRecord:
    """Return two sweeps' records of a run as one: finished if either is, with all merges."""
    first, second = sorted((one, other), key=lambda run: (run.state != "done", run.role != "trial"))
    return replace(first, merges={**second.merges, **first.merges})


def _with_sweeps(records: Sequence[RunRecord], sweeps: Owners) -> list[RunRecord]:
    """Return the records, with the sweeps' names as a parameter of runs that differ in no other."""
    keys = [(record.key[:2], record.role in ROLES_COUNTED_ONCE) for record in records]
    pairs = [*zip(keys, records, strict=True)]
    counts = Counter((key, record.seed) for key, record in pairs if record.state == "done")
    repeated = {key for (key, _), count in counts.items() if count > 1}
    return [
        replace(record, params={**record.params, SWEEP: ", ".join(sweeps[record.digest])})
        if key in repeated
        else record
        for key, record in pairs
    ]


def _differing_seeds(sweeps: Sequence[SweepRuns]) -> Iterator[str]:
    """Yield a sentence where sweeps have different seeds: which, and when a setting is whole."""
    seeds = {part.sweep: part.spec.seeds for part in sweeps}
    if len({*seeds.values()}) > 1:
        each = "; ".join(
            f"{name}: {'any' if own is None else ', '.join(map(str, own)) or 'none'}"
            for name, own in seeds.items()
        )
        common = common_seeds([*seeds.values()])
        which = "those of all, since none is common" if common is None else "the common ones"
        yield f"the sweeps have different seeds ({each}); a setting is whole with {which}"
