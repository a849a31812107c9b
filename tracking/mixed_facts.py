"""The facts that rows must share to be comparable, and in which of them they differ."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tracking.records import Arm, RunRecord
from tracking.wording import few

_REVISION = "revision"
"""The fact that holds the revisions of the code that trains and measures."""
_COMPARED = {
    "data": "data",
    "data_digest": "data",
    "model": "backbones",
    "model_digest": "backbones",
    "transform": "image transforms",
    "augmentation": "training transforms",
    "budget": "training budgets",
    "epochs": "training budgets (epochs)",
    "steps": "training budgets (steps)",
    "skipped": "images skipped as unreadable",
    "retention": "tasks of retention",
    "precision": "precisions",
    "device": "kinds of device",
    _REVISION: "versions of the code",
}
"""The facts that must be equal, in words."""
_OF_DATA = frozenset({"data", "data_digest", "skipped"})
_SPLIT = "split"
"""The fact that holds the number by which a run's split was drawn."""
_OF_TRAINING = frozenset({"augmentation", "budget", "epochs", "steps"})
_OWN_CODE = "own_code"
"""The fact that holds digests of a user's own code: compared within the algorithm."""
_VERSIONS = "versions"
"""The fact that names installed packages with their versions."""
_SHOWN = 80


def mixed_facts(arms: Sequence[Arm]) -> tuple[str, ...]:
    """One sentence per fact in which finished runs differ; a run that lacks it says nothing."""
    done = [(arm.label, run) for arm in arms for run in arm.done]
    trained = [(label, run) for label, run in done if run.trains]
    by_seed = _split_by_seed(done)
    found = []
    for name in sorted(_COMPARED):
        runs = trained if name in _OF_TRAINING else done
        alike = by_seed if name in _OF_DATA and by_seed else [runs]
        told = next(filter(None, (_differing(_told(some, name)) for some in alike)), "")
        if told:
            found.append(f"mixed {_COMPARED[name]}, these rows are not comparable: {told}")
    return (*found, *_mixed_code(done), *_mixed_versions(done))


def _split_by_seed(done: Sequence[tuple[str, RunRecord]]) -> list[list[tuple[str, RunRecord]]]:
    """The runs of each seed, where every split is that of its run's seed: then data differ from
    seed to seed, as they should. Else nothing."""
    seeds = dict.fromkeys(run.seed for _, run in done)
    if len(seeds) < 2 or any(run.facts.get(_SPLIT, run) != run.seed for _, run in done):
        return []
    return [[(label, run) for label, run in done if run.seed == seed] for seed in seeds]


def _mixed_code(done: Sequence[tuple[str, RunRecord]]) -> Iterator[str]:
    """Versions of an algorithm's own code, where the code that all share is the same."""
    if _differing(_told(done, _REVISION)):
        return
    for algorithm in dict.fromkeys(run.algorithm for _, run in done):
        ours = [(label, run) for label, run in done if run.algorithm == algorithm]
        told = _differing(_told(ours, _OWN_CODE))
        if told:
            yield f"mixed versions of {algorithm}, these rows are not comparable: {told}"


def _mixed_versions(done: Sequence[tuple[str, RunRecord]]) -> Iterator[str]:
    known = [(label, run.facts.get(_VERSIONS)) for label, run in done]
    installed = [(label, told) for label, told in known if isinstance(told, Mapping)]
    for package in dict.fromkeys(name for _, told in installed for name in told):
        told = _differing((label, versions.get(package)) for label, versions in installed)
        if told:
            yield f"mixed versions of {package}, which may give other numbers: {told}"


def _told(runs: Iterable[tuple[str, RunRecord]], name: str) -> Iterator[tuple[str, object]]:
    return ((label, run.facts.get(name)) for label, run in runs)


def _differing(told: Iterable[tuple[str, object]]) -> str:
    """`10 epochs in fine_tune; 20 epochs in car_ft` of labels and values; empty if all agree."""
    found: dict[str, dict[str, None]] = {}  # the labels are a set that keeps its order
    for label, value in told:
        if value is not None:
            found.setdefault(str(value), {})[label] = None
    if len(found) < 2:
        return ""
    shown = _shortest([*found])
    return few([f"{s} in {few([*found[value]])}" for value, s in shown.items()], "; ")


def _shortest(values: Sequence[str]) -> dict[str, str]:
    """As short as tells them apart: of digests the beginning, of objects what differs."""
    parts = {value: _parts(value) for value in values}
    shared = set.intersection(*({*some} for some in parts.values()))
    shown = {v: ", ".join(p for p in some if p not in shared) or v for v, some in parts.items()}
    return {value: text[:_SHOWN] for value, text in shown.items()}


def _parts(value: str) -> list[str]:
    """The fields of `Transform(size=32, mean=(0.0, 0.0, 0.0))`, a digest's beginning, or itself."""
    if re.fullmatch(r"[0-9a-f]{32,}", value):
        return [value[:12]]
    fields = re.fullmatch(r"\w+\((.*)\)", value, re.DOTALL)
    return [value] if fields is None else re.split(r", (?=\w+=)", fields[1])
