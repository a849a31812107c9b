"""What a comparison is made from: finished and unfinished runs, grouped into arms."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

CONFIRMED = " (confirmed)"
"""Ends the label of an arm that was run again on fresh seeds."""
Scalar = str | int | float | bool | None
Role = Literal["trial", "baseline", "soup", "confirmation"]
State = Literal["done", "failed", "stopped", "pruned", "running", "missing"]
_ROLES: Sequence[Role] = ("baseline", "trial", "soup", "confirmation")
"""In the order of rows."""


@dataclass(frozen=True)
class RunRecord:
    """One run as the ledger knows it; accuracies are fractions in [0, 1]."""

    algorithm: str
    params: Mapping[str, Scalar]
    """The varied fields only, by their dotted names."""
    seed: int | None
    """None: nothing is trained, so nothing depends on a seed (zero-shot, a soup)."""
    digest: str
    state: State
    role: Role
    trial: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Of the unmerged model."""
    merges: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Label of a merged model, such as `wise_ft@0.5`, to its metrics under the same names."""
    folder: Path | None = None
    """The run's folder; predictions lie in `evaluations/<label>/predictions.parquet`."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """What rows must share to be comparable: `model`, `data`, `transform`, `budget`, ..."""
    epochs: int | None = None
    """How many were trained, to whatever end; None where nobody tells."""
    untrained: bool = False
    """Nothing is trained, and yet there is a seed: the split follows it (`data.split_seed`)."""

    @property
    def trains(self) -> bool:
        """Whether it took steps: neither the zero-shot model nor a soup did."""
        return self.seed is not None and not self.untrained

    @property
    def is_zero_shot(self) -> bool:
        """Whether its weights are the pre-trained ones; those of a soup are other runs'."""
        has_own = self.role == "soup" or bool(self.facts.get("own_weights"))
        return not self.trains and not has_own

    @property
    def outside_means(self) -> frozenset[str]:
        """The splits out of distribution that are measured and in no mean."""
        told = self.facts.get("outside_means")
        return frozenset(map(str, told)) if isinstance(told, Collection) else frozenset()

    def values(self, merge: str | None) -> Mapping[str, float]:
        """The metrics of the unmerged model, or of the merge with this label (empty if none)."""
        return self.metrics if merge is None else self.merges.get(merge, {})

    def value(self, metric: str, merge: str | None = None) -> float | None:
        """One metric, None where it is missing or not finite."""
        found = self.values(merge).get(metric)
        return found if found is not None and math.isfinite(found) else None


@dataclass(frozen=True)
class Arm:
    """What is compared: one algorithm at one setting, over its seeds, unmerged or merged."""

    label: str
    algorithm: str
    merge: str | None
    params: Mapping[str, Scalar]
    role: Role
    trial: int | None
    """The earliest trial with this setting; None for a baseline, and for what confirms."""
    runs: tuple[RunRecord, ...]
    """One per seed, in the order of the seeds, in whatever state."""

    @cached_property
    def done(self) -> tuple[RunRecord, ...]:
        """The runs that enter means and tests."""
        return tuple(run for run in self.runs if run.state == "done")

    @property
    def confirms(self) -> bool:
        """Whether these are the runs of a chosen setting on fresh seeds."""
        return self.role == "confirmation"

    @property
    def trains(self) -> bool:
        """False for an arm whose weights no seed changes."""
        return any(run.trains for run in self.runs)

    @property
    def is_zero_shot(self) -> bool:
        """Whether its weights are the pre-trained ones."""
        return all(run.is_zero_shot for run in self.runs)

    @property
    def has_seeds(self) -> bool:
        """False for an arm in which no seed changes anything, its split neither."""
        return any(run.seed is not None for run in self.runs)

    @cached_property
    def states(self) -> Mapping[str, int]:
        """How many runs are in each state."""
        return Counter(run.state for run in self.runs)

    @property
    def merge_labels(self) -> tuple[str, ...]:
        """The merged models that some finished run has, by merge and then by number."""
        return tuple(sorted({label for run in self.done for label in run.merges}, key=merge_key))

    def values(self, metric: str) -> tuple[float | None, ...]:
        """The metric of each finished run, in the order of the seeds."""
        return tuple(run.value(metric, self.merge) for run in self.done)

    def by_seed(self, metric: str) -> dict[int | None, float]:
        """The finite values of the finished runs, by seed."""
        found = ((run.seed, run.value(metric, self.merge)) for run in self.done)
        return {seed: value for seed, value in found if value is not None}

    def run_of(self, seed: int | None) -> RunRecord | None:
        """The finished run with this seed; where no seed changes anything the only one."""
        wanted = seed if self.has_seeds else None
        return next((run for run in self.done if run.seed == wanted), None)

    def is_complete(self, seeds: Sequence[int]) -> bool:
        """Every seed asked for is done and nothing else of it failed."""
        finished = {run.seed for run in self.done}
        if not self.has_seeds:
            return bool(finished)
        return set(seeds) <= finished and len(self.done) == len(self.runs)

    def is_setting_of(self, other: Arm) -> bool:
        """Whether both are one algorithm with the same fields, on whatever seeds."""
        return self.algorithm == other.algorithm and self.params == other.params

    def merged(self, label: str) -> Arm:
        """The same runs, seen through one of their merged models."""
        seen = self._merged.get(label)
        if seen is None:
            seen = replace(self, label=f"{self.label} + {label}", merge=label)
            self._merged[label] = seen
        return seen

    @cached_property
    def _merged(self) -> dict[str, Arm]:
        return {}


def group(records: Iterable[RunRecord]) -> tuple[Arm, ...]:
    """The unmerged arms: zero-shot first, baselines, trials by number, soups, then what confirms.

    Runs belong together by algorithm and params, those that confirm apart from those that were
    chosen among. The same seed twice (a point proposed again, a baseline that is a trial too)
    counts once, a finished run before an unfinished one.
    """
    groups: dict[tuple[bool, str, str], list[RunRecord]] = {}
    for record in records:
        key = (record.role == "confirmation", record.algorithm, params_key(record.params))
        groups.setdefault(key, []).append(record)
    arms = sorted((_arm(runs) for runs in groups.values()), key=_arm_order)
    repeated = Counter(arm.label for arm in arms)
    return tuple(
        replace(arm, label=f"{arm.label} (trial {arm.trial})") if repeated[arm.label] > 1 else arm
        for arm in arms
    )


def setting(params: Mapping[str, Scalar]) -> str:
    """`kl_weight=1 lr=0.0003`: the last part of each name, the whole name where two end alike."""
    shown = {name: value for name, value in params.items() if name != "algorithm.name"}
    ends = Counter(name.rsplit(".", 1)[-1] for name in shown)
    parts = []
    for name in sorted(shown):
        end = name.rsplit(".", 1)[-1]
        parts.append(f"{end if ends[end] == 1 else name}={_shown(shown[name])}")
    return " ".join(parts)


def params_key(params: Mapping[str, Scalar]) -> str:
    """One text for equal params, whatever their order; 1 and 1.0 are equal, 1 and true are not."""
    plain = {
        name: float(value) if isinstance(value, int) and not isinstance(value, bool) else value
        for name, value in params.items()
    }
    return json.dumps(plain, sort_keys=True, default=str)


def merge_key(label: str) -> tuple[str, float, str]:
    """Sorts `wise_ft@0.25` before `wise_ft@0.5` and both after `uniform_soup`."""
    number = merge_number(label)
    return (merge_name(label), -math.inf if number is None else number, label)


def merge_name(label: str) -> str:
    """`wise_ft` of `wise_ft@0.5`."""
    return label.partition("@")[0]


def merge_number(label: str) -> float | None:
    """0.5 of `wise_ft@0.5`; None where the label holds no number."""
    try:
        return float(label.partition("@")[2])
    except ValueError:
        return None


def _arm(runs: Sequence[RunRecord]) -> Arm:
    role: Role = "trial" if any(run.role == "trial" for run in runs) else runs[0].role
    trials = [run.trial for run in runs if run.role == "trial" and run.trial is not None]
    by_seed: dict[int | None, RunRecord] = {}
    for run in sorted(runs, key=lambda run: (run.state != "done", run.trial or 0)):
        by_seed.setdefault(run.seed, run)
    first = runs[0]
    label = f"{first.algorithm} {setting(first.params)}".rstrip()
    return Arm(
        label=f"{label}{CONFIRMED}" if role == "confirmation" else label,
        algorithm=first.algorithm,
        merge=None,
        params=dict(first.params),
        role=role,
        trial=min(trials, default=None),
        runs=tuple(by_seed[seed] for seed in sorted(by_seed, key=_seed_order)),
    )


def _arm_order(arm: Arm) -> tuple[bool, int, float, str]:
    trial = -1 if arm.trial is None else arm.trial
    return (not arm.is_zero_shot, _ROLES.index(arm.role), trial, arm.label)


def _seed_order(seed: int | None) -> int:
    return -1 if seed is None else seed


def _shown(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    return f"{value:.6g}" if isinstance(value, (int, float)) else str(value)
