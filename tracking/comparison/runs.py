"""Runs as records, grouped into arms; the files that keep them."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

CONFIRMED = " (confirmed)"
"""Ends the label of an arm that was run again on fresh seeds."""
UNMERGED = "unmerged"
"""The label of the model that a run trained, among its evaluations."""
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


_APART = frozenset(
    {"algorithm.name", "algorithm.members", "data.root", "merges", "device", "workers", "seed"}
)
"""Where and how a run was made and what was measured of it, and the name that each run has; a
soup's members are digests, which nobody reads."""
_SECTIONS_APART = ("eval.", "keep.")
_MICRO_BATCH = "optim.micro_batch"


def fields(claimed: Mapping[str, Any]) -> dict[str, Scalar]:
    """The fields in `config` of a run's `config.json`; lists as text.

    What did not enter the run's identity is left out: an algorithm that trains nothing has no
    optimiser, whatever the file of its sweep says.
    """
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
    """Whether two runs that differ in this field are of different settings."""
    return name not in _APART and not name.startswith(_SECTIONS_APART)


def scalar(value: object) -> Scalar:
    """The value itself, or its text where it is a list or a mapping."""
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


RESULT = "result.json"
SETTINGS = "settings.json"
RULE = "carft.rule"
HAS_RESULT, HAS_SETTINGS = "carft.result", "carft.settings"
"""Tags that say that a run has the file, by its name."""
TRAINS = "carft.trains"
"""Tag of a run that has a seed and trains nothing: `false`."""
VERSION = 1
"""Of both files; one of another version counts as none."""


@dataclass(frozen=True)
class Result:
    """What was measured of one finished run."""

    params: Mapping[str, Scalar]
    metrics: Mapping[str, float]
    merges: Mapping[str, Mapping[str, float]]
    facts: Mapping[str, object] = field(default_factory=dict)
    fields: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """The runs of a sweep without what was measured, and which merges were asked for."""

    generation: int
    records: tuple[RunRecord, ...]
    """`merges` holds empty mappings: the labels that are compared."""


def result(
    record: RunRecord, claimed: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A finished run as plain data: `claimed` is its `config.json`, `evaluations` by label."""
    return {
        "version": VERSION,
        "digest": record.digest,
        "algorithm": record.algorithm,
        "seed": record.seed,
        "params": dict(record.params),
        "config": claimed.get("config"),
        "identity": claimed.get("identity"),
        "evaluations": {
            label: {key: found.get(key) for key in ("step", "values", "metrics", "facts")}
            for label, found in evaluations.items()
        },
    }


def read_result(text: str) -> Result | None:
    """None for what `result` does not write."""
    try:
        told = _versioned(text)
        evaluations = {
            label: {name: float(value) for name, value in found["metrics"].items()}
            for label, found in told["evaluations"].items()
        }
        facts = told["evaluations"].get(UNMERGED, {}).get("facts") or {}
        return Result(
            params={name: scalar(value) for name, value in told["params"].items()},
            metrics=evaluations.pop(UNMERGED, {}),
            merges=evaluations,
            facts=dict(facts),
            fields=fields(told),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def settings(records: Sequence[RunRecord], generation: int) -> dict[str, Any]:
    """The runs of a sweep as plain data."""
    return {
        "version": VERSION,
        "generation": generation,
        "runs": [
            {
                "algorithm": record.algorithm,
                "params": dict(record.params),
                "seed": record.seed,
                "digest": record.digest,
                "state": record.state,
                "role": record.role,
                "trial": record.trial,
                "epochs": record.epochs,
                "merges": list(record.merges),
                "untrained": record.untrained,
            }
            for record in records
        ],
    }


def read_settings(text: str) -> Settings | None:
    """None for what `settings` does not write."""
    try:
        told = _versioned(text)
        records = tuple(_record(run) for run in told["runs"])
        return Settings(int(told["generation"]), records)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _record(run: Mapping[str, Any]) -> RunRecord:
    return RunRecord(
        algorithm=str(run["algorithm"]),
        params={name: scalar(value) for name, value in run["params"].items()},
        seed=None if run["seed"] is None else int(run["seed"]),
        digest=str(run["digest"]),
        state=run["state"],
        role=run["role"],
        trial=None if run["trial"] is None else int(run["trial"]),
        epochs=None if run["epochs"] is None else int(run["epochs"]),
        merges={str(label): {} for label in run["merges"]},
        untrained=bool(run.get("untrained", False)),  # older files know no such runs
    )


def _versioned(text: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(text)
    if told["version"] != VERSION:
        raise ValueError(f"version {told['version']}")
    return told
