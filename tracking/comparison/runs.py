"""Runs as records, grouped into arms."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

from carft_sweep.tracking.comparison.metrics import is_accuracy
from carft_sweep.tracking.comparison.statistics import Estimate

CONFIRMED = " (confirmed)"
"""End of the label of a setting that was run again on fresh seeds."""
LONGEST = 40
"""Most characters of a setting's label; a longer one becomes algorithm and number of a trial."""
NUMBER = " #"
"""What precedes the number of a trial in such a label."""
UNMERGED = "unmerged"
"""The label of the model that a run trained, among its evaluations."""
MERGE_MARKS = "merge_marks"
"""The fact that lists what merged models say of themselves, as `label: mark`."""
Scalar = str | int | float | bool | None
Role = Literal["trial", "baseline", "soup", "confirmation"]
State = Literal["done", "failed", "stopped", "pruned", "running", "missing"]
_ROLES: Sequence[Role] = ("baseline", "trial", "soup", "confirmation")
"""Roles in the order of rows."""


class ArmKey(NamedTuple):
    """What an arm is, by exact values: arms are equal when their keys are, whatever the labels."""

    algorithm: str
    params: str
    """`params_key` of the varied fields."""
    merge: str | None
    """Label of the merged model (`wise_ft@0.5`); None: unmerged."""
    confirms: bool
    """Whether the runs are those of a selected setting on fresh seeds."""

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that stand for the key where its length would not do."""
        return hashlib.sha256(_KEY.encode([*self]).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a sweep; accuracies are fractions in [0, 1]."""

    algorithm: str
    params: Mapping[str, Scalar]
    """The varied fields only, by their dotted names."""
    seed: int | None
    """None: nothing is trained, so nothing depends on a seed (zero-shot, a soup)."""
    digest: str
    state: State
    role: Role
    trial: int | None = None
    position: int = 0
    """Where the setting of a run that is no trial stands in the sweep file's list of settings."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the unmerged model."""
    merges: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Label of a merged model, such as `wise_ft@0.5`, to its metrics under the same names."""
    folder: Path | None = None
    """The run's folder; predictions lie in `evaluations/<label>/predictions.parquet`."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Recorded properties. Rows must share some to be comparable: `model`, `data`, ..."""
    untrained: bool = False
    """Nothing is trained, and yet there is a seed: the split follows it (`data.split_seed`)."""
    parts: Mapping[str, RunRecord] = field(default_factory=dict)
    """Of a mean over tasks: the run of each task. Empty for a single run."""

    @property
    def key(self) -> ArmKey:
        """The key of the unmerged arm that the run belongs to, on any seed."""
        confirms = self.role == "confirmation"
        return ArmKey(self.algorithm, params_key(self.params), None, confirms)

    @property
    def trains(self) -> bool:
        """Whether the run took steps, unlike a zero-shot model or a soup."""
        return self.seed is not None and not self.untrained

    @property
    def is_zero_shot(self) -> bool:
        """Whether the weights are the pre-trained ones."""
        has_own = self.role == "soup" or bool(self.facts.get("own_weights"))
        return not self.trains and not has_own

    @property
    def outside_means(self) -> frozenset[str]:
        """The measured out-of-distribution splits that enter no mean."""
        return frozenset(self.listed("outside_means"))

    def listed(self, fact: str) -> tuple[str, ...]:
        """Return a recorded property that is a list of names or sentences; empty if missing."""
        values = self.facts.get(fact)
        return tuple(map(str, values)) if isinstance(values, (list, tuple)) else ()

    def image_step(self, metric: str) -> float:
        """Return the most that one image changes an accuracy; 0 where image counts are unknown.

        Other metrics do not change by whole images: 0. `metric` is of a split (`id/test/top1`) or
        of the mean over shifts (`ood/mean/top1`). An image belongs to one task, and changes a mean
        over tasks by its share.
        """
        if not is_accuracy(metric):
            return 0.0
        if self.parts:
            return max(part.image_step(metric) for part in self.parts.values()) / len(self.parts)
        images = self.facts.get("images")
        counts = {str(k): int(n) for k, n in images.items()} if isinstance(images, Mapping) else {}
        split = metric.rpartition("/")[0]
        if split == "ood/mean":
            averaged = {n for n in counts if n.startswith("ood/")} - self.outside_means
            return 1 / (len(averaged) * min(counts[n] for n in averaged)) if averaged else 0.0
        return 1 / counts[split] if split in counts else 0.0

    def metrics_of(self, merge: str | None) -> Mapping[str, float]:
        """Return the metrics of the unmerged model, or of a merge by its label (empty if none)."""
        return self.metrics if merge is None else self.merges.get(merge, {})

    def value(self, metric: str, merge: str | None = None) -> float | None:
        """Return a metric; None where it is missing or not finite."""
        value = self.metrics_of(merge).get(metric)
        return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class Arm:
    """One algorithm at one setting, over its seeds, unmerged or merged: what is compared."""

    setting: str
    """Algorithm and setting as people read them: `car_ft kl_weight=1`, or `car_ft #3`."""
    algorithm: str
    merge: str | None
    params: Mapping[str, Scalar]
    role: Role
    trial: int | None
    """Number of the earliest trial with this setting; None for baselines and confirmations."""
    runs: tuple[RunRecord, ...]
    """One run for each seed, in the order of the seeds, in any state."""
    is_numbered: bool = False
    """Whether `setting` has the number of a trial in place of the fields."""

    @cached_property
    def key(self) -> ArmKey:
        """The arm's identity: equal for the same algorithm, exact fields, merge and confirmation,
        whatever the label."""
        return ArmKey(self.algorithm, params_key(self.params), self.merge, self.confirms)

    @property
    def setting_key(self) -> ArmKey:
        """The key of the unmerged arm of the same runs."""
        return self.key._replace(merge=None)

    @cached_property
    def done(self) -> tuple[RunRecord, ...]:
        """The finished runs, which enter means and tests."""
        return tuple(run for run in self.runs if run.state == "done")

    @property
    def name(self) -> str:
        """The label for a sentence, without the note that the arm is a confirmation."""
        return self.setting if self.merge is None else f"{self.setting} + {self.merge}"

    @property
    def setting_label(self) -> str:
        """The label of the unmerged arm of the same runs."""
        return f"{self.setting}{CONFIRMED}" if self.confirms else self.setting

    @property
    def label(self) -> str:
        """The arm's text in tables; no other arm of a comparison has the same."""
        return self.setting_label if self.merge is None else f"{self.setting_label} + {self.merge}"

    @property
    def confirms(self) -> bool:
        """Whether these are the runs of a selected setting on fresh seeds."""
        return self.role == "confirmation"

    @cached_property
    def trains(self) -> bool:
        """Whether runs took training steps, so that their weights depend on the seed."""
        return any(run.trains for run in self.runs)

    @cached_property
    def is_zero_shot(self) -> bool:
        """Whether the arm's weights are the pre-trained ones."""
        return all(run.is_zero_shot for run in self.runs)

    @cached_property
    def has_seeds(self) -> bool:
        """Whether the seed changes a run of the arm, in its weights or its data split."""
        return any(run.seed is not None for run in self.runs)

    @cached_property
    def states(self) -> Mapping[str, int]:
        """Number of runs in each state."""
        return Counter(run.state for run in self.runs)

    @property
    def merge_labels(self) -> tuple[str, ...]:
        """Labels of the merged models of finished runs: by merge, `wise_ft@0.25` before `@0.5`."""
        return _in_order(frozenset().union(*(run.merges for run in self.done)))

    @property
    def merge_marks(self) -> tuple[str, ...]:
        """Words that mark results of the arm's merge, such as `transductive`; empty if unmerged."""
        label = f"{self.merge}: "
        marks = (mark for run in self.done for mark in run.listed(MERGE_MARKS))
        return tuple(dict.fromkeys(m.removeprefix(label) for m in marks if m.startswith(label)))

    def values(self, metric: str, seeds: Sequence[int | None] = ()) -> dict[int | None, float]:
        """Return the finite values of the finished runs, by seed. An arm that no seed changes has
        its single value at each of `seeds`, if any are given."""
        runs = ((run.seed, run.value(metric, self.merge)) for run in self.done)
        values = {seed: value for seed, value in runs if value is not None}
        if values and seeds and not self.has_seeds:
            return dict.fromkeys(seeds, values[None])
        return values

    def mean(self, metric: str) -> float | None:
        """Return a metric's mean over the finished runs; None unless each has a finite value."""
        return self.estimate(metric).mean

    def estimate(self, metric: str) -> Estimate:
        """Return a metric's Estimate over finished runs, without a mean if a run lacks a value."""
        return Estimate(tuple(run.value(metric, self.merge) for run in self.done))

    def is_complete(self, seeds: Sequence[int]) -> bool:
        """Return whether every required seed is done, and no run of the arm is unfinished or
        failed."""
        if not self.has_seeds:
            return bool(self.done)
        return len(self.done) == len(self.runs) and {run.seed for run in self.done}.issuperset(
            seeds
        )

    def is_setting_of(self, other: Arm) -> bool:
        """Return whether both arms are of one algorithm with the same fields, on any seeds."""
        return self.key[:2] == other.key[:2]

    def merged(self, label: str) -> Arm:
        """Return the arm of the same runs' merged models with this label."""
        if label not in self._merged:
            self._merged[label] = replace(self, merge=label)
        return self._merged[label]

    @cached_property
    def _merged(self) -> dict[str, Arm]:
        return {}


def group(records: Iterable[RunRecord]) -> tuple[Arm, ...]:
    """Return runs grouped into unmerged arms: zero-shot, baselines in the order of the sweep file,
    trials by number, soups, confirmations.

    Runs of equal algorithm and parameters form an arm, confirmations an arm of their own. Of two
    runs with the same seed (a setting proposed again, a baseline that is a trial too) one counts, a
    finished one before an unfinished one. The order of `records` decides nothing.
    """
    groups: dict[ArmKey, list[RunRecord]] = {}
    for record in records:
        groups.setdefault(record.key, []).append(record)
    arms = []
    for runs in groups.values():
        runs.sort(key=_precedence)
        trials = [run for run in runs if run.role == "trial"]
        by_seed: dict[int | None, RunRecord] = {}
        for run in runs:
            by_seed.setdefault(run.seed, run)
        arms.append(
            Arm(
                setting="",
                algorithm=runs[0].algorithm,
                merge=None,
                params=dict(runs[0].params),
                role="trial" if trials else min((run.role for run in runs), key=_ROLES.index),
                trial=min((run.trial for run in trials if run.trial is not None), default=None),
                runs=tuple(
                    by_seed[s] for s in sorted(by_seed, key=lambda s: -1 if s is None else s)
                ),
            )
        )
    arms.sort(key=_row_order)
    return tuple(_with_labels(arms))


def _precedence(run: RunRecord) -> tuple[bool, int, int, str]:
    """Return a sort key: of two runs with one seed, the one that counts comes first."""
    trial = -1 if run.trial is None else run.trial
    return run.state != "done", trial, run.position, run.digest


def _row_order(arm: Arm) -> tuple[object, ...]:
    """Return a sort key that puts arms in the order of the table's rows."""
    position = min(run.position for run in arm.runs) if arm.trial is None else arm.trial
    values = [(name, _value_order(arm.params[name])) for name in sorted(arm.params)]
    return not arm.is_zero_shot, _ROLES.index(arm.role), position, arm.algorithm, values


def _value_order(value: Scalar) -> tuple[str, float, str]:
    """Return a sort key of a field's value: numbers by size, then texts."""
    number = number_of(value)
    return ("text", 0.0, str(value)) if number is None else ("number", number, str(value))


def _with_labels(arms: Sequence[Arm]) -> list[Arm]:
    """Return the arms with the texts of their settings, each as short as tells it from all others,
    also from the merged models of others."""
    forms = {arm.key[:2]: arm_forms for arm, arm_forms in zip(arms, _forms(arms), strict=True)}
    lengths = dict.fromkeys(forms, 0)
    while True:
        labelled = [_with_form(arm, forms[arm.key[:2]][lengths[arm.key[:2]]]) for arm in arms]
        owners: dict[str, set[tuple[str, str]]] = {}
        for arm in labelled:
            merged = (f"{arm.setting_label} + {label}" for label in arm.merge_labels)
            for label in (arm.setting_label, *merged):
                owners.setdefault(label, set()).add(arm.key[:2])
        clashing = {
            setting
            for settings in owners.values()
            for setting in settings
            if len(settings) > 1 and lengths[setting] < len(forms[setting]) - 1
        }
        if not clashing:
            return labelled
        for setting in clashing:
            lengths[setting] += 1


class _Form(NamedTuple):
    """One way to write a setting."""

    text: str
    is_numbered: bool = False


def _with_form(arm: Arm, form: _Form) -> Arm:
    return replace(arm, setting=form.text, is_numbered=form.is_numbered)


def _forms(arms: Sequence[Arm]) -> Iterator[list[_Form]]:
    """Yield the texts of each arm's setting, shortest first: with a long setting the number of the
    earliest trial with the same values, if a field of it varies; rounded; exact; unmistakable."""
    varied = varied_fields(arms)
    numbers: dict[frozenset[str], dict[str, int]] = {}

    def trial_with(params: Mapping[str, Scalar]) -> int | None:
        names = frozenset(params)
        if names not in numbers:
            numbers[names] = {}
            for arm in arms:
                if arm.trial is not None and names <= arm.params.keys():
                    key = params_key({name: arm.params[name] for name in names})
                    numbers[names].setdefault(key, arm.trial)
        return numbers[names].get(params_key(params))

    for arm in arms:
        rounded = f"{arm.algorithm} {setting(arm.params)}".rstrip()
        exact = f"{arm.algorithm} {setting(arm.params, exact=True)}".rstrip()
        forms = [_Form(rounded), _Form(exact), _Form(f"{_KEY.encode(arm.algorithm)} {arm.key[1]}")]
        is_long = len(rounded) > LONGEST and bool(varied.keys() & arm.params)
        number = trial_with(arm.params) if is_long else None
        if number is not None:
            forms.insert(0, _Form(short_label(arm.algorithm, number), is_numbered=True))
        yield forms


def short_label(algorithm: str, number: int) -> str:
    """Return the label of a setting by the number of its trial, as `show` lists trials."""
    return f"{algorithm}{NUMBER}{number}"


def varied_fields(arms: Iterable[Arm]) -> dict[str, str]:
    """Return the fields with several values, as {whole name: short name}."""
    values: dict[str, set[str]] = {}
    for arm in arms:
        for name, value in arm.params.items():
            values.setdefault(name, set()).add(value_key(value))
    return short_names(name for name, several in values.items() if len(several) > 1)


def largest_image_step(arms: Iterable[Arm], metric: str) -> float:
    """Return the most that one image changes `metric` in a run of these arms; 0 without runs."""
    return max((run.image_step(metric) for arm in arms for run in arm.done), default=0.0)


def setting(params: Mapping[str, Scalar], *, exact: bool = False) -> str:
    """Return parameters as `kl_weight=1 lr=0.0003`, with a field's whole name where the last parts
    of two names are equal. Whole numbers have all their digits, others three, or all if `exact`."""
    names = short_names(params)
    text = exact_text if exact else value_text
    values = {name: text(value) for name, value in params.items()}
    return " ".join(f"{names[name]}={values[name]}" for name in sorted(names))


def last_part(name: str) -> str:
    """Return the part of a field's dotted name behind the last dot: `lr` of `optim.lr`."""
    return name.rpartition(".")[2]


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Return {whole name: last part} of the fields, without the algorithm's name; where two have
    the same last part, both keep the whole name."""
    ends = {name: last_part(name) for name in names if name != "algorithm.name"}
    counts = Counter(ends.values())
    return {name: end if counts[end] == 1 else name for name, end in ends.items()}


_KEY = json.JSONEncoder(sort_keys=True, default=str)


def params_key(params: Mapping[str, Scalar]) -> str:
    """Return a text that equal parameters share, in any order, and no others: every digit counts, 1
    equals 1.0 and neither true nor "1"."""
    return _KEY.encode({name: _whole(value) for name, value in params.items()})


def value_key(value: Scalar) -> str:
    """Return a text that equal values of a field share, and no others, like `params_key`."""
    return _KEY.encode(_whole(value))


def _whole(value: Scalar) -> Scalar:
    """Return a whole number as an integer of any size, another value as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


@cache
def _in_order(labels: frozenset[str]) -> tuple[str, ...]:
    """Return the labels of merged models, sorted; cached, since most arms have the same labels."""

    def order(label: str) -> tuple[str, float, str]:
        name, number = split_merge(label)
        return (name, -math.inf if number is None else number, label)

    return tuple(sorted(labels, key=order))


@cache
def split_merge(label: str) -> tuple[str, float | None]:
    """Split `wise_ft@0.5` into the merge's name and its number; None for a label without one."""
    name, _, number = label.partition("@")
    try:
        return name, float(number)
    except ValueError:
        return name, None


LARGEST_WRITTEN_OUT = 1e15
"""Below it a whole number that was computed, such as 3e5, is written without an exponent."""


def value_text(value: Scalar) -> str:
    """Return a value as labels and tables show it: whole numbers exactly, others with three
    digits."""
    if not isinstance(value, float) or value.is_integer() or not math.isfinite(value):
        return scalar_text(value)
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def exact_text(value: Scalar) -> str:
    """Return a value as text, numbers with all the digits that tell two of them apart."""
    return repr(value) if isinstance(_written_out(value), float) else scalar_text(value)


def _written_out(value: Scalar) -> Scalar:
    is_large = isinstance(value, float) and abs(value) >= LARGEST_WRITTEN_OUT
    return value if is_large else _whole(value)


def distinct_texts(
    values: Iterable[Scalar], text: Callable[[Scalar], str] | None = None
) -> dict[str, str]:
    """Return the text of each value by its `value_key`: rounded by `text` (by default to six
    digits), or with all digits where another value would read alike."""
    rounded = text or scalar_text
    by_key = {value_key(value): value for value in values}
    repeated = Counter(map(rounded, by_key.values()))
    return {
        key: rounded(value) if repeated[rounded(value)] == 1 else exact_text(value)
        for key, value in by_key.items()
    }


def number_of(value: Scalar) -> float | None:
    """Return a number as it is, a whole one with all its digits; None for a text, a truth value
    and None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return value


def scalar_text(value: Scalar) -> str:
    """Return a value as text: `true`, `none`, whole numbers exactly, others with six digits."""
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    number = _written_out(value)
    return f"{number:.6g}" if isinstance(number, float) else str(number)


_APART = frozenset(
    {"algorithm.name", "algorithm.members", "data.root", "merges", "device", "workers", "seed"}
)
"""Fields that do not tell settings apart: where and how a run was made, what is measured of it, its
algorithm's name, and a soup's members (digests, which nobody reads)."""
_SECTIONS_APART = ("eval.", "keep.")
_MICRO_BATCH = "optim.micro_batch"


def fields(claimed: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return the config in `claimed`, the content of a run's `config.json`, as {dotted name:
    value}; lists become texts. Fields that do not decide the run are left out: an algorithm that
    trains nothing has no optimiser."""
    config = claimed.get("config")
    identity = claimed.get("identity")
    plain = dict(_flat(config)) if isinstance(config, Mapping) else {}
    optim = identity.get("optim") if isinstance(identity, Mapping) else {}
    if optim is None:
        plain = {name: value for name, value in plain.items() if not name.startswith("optim.")}
    elif "micro_batch" not in optim:
        plain.pop(_MICRO_BATCH, None)
    return {name: value for name, value in plain.items() if tells_apart(name)}


def tells_apart(name: str) -> bool:
    """Return whether two runs that differ in the field `name` belong to different settings."""
    return name not in _APART and not name.startswith(_SECTIONS_APART)


def scalar(value: object) -> Scalar:
    """Return a scalar as it is, a list or mapping as text."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, scalar(value)
