"""The rows of a comparison: one for each arm and each of its merged models, with their marks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tracking import caveats, images
from tracking.records import Arm
from tracking.selection import Choice, Rule, value_of
from tracking.statistics import Interval, Summary, summary

_GROUPS = (
    "id/val/",
    "id/test/",
    "id/test_",
    "ood/",
    "ood/mean/",
    "gap/",
    "hmean/",
    "gain/",
    "retention/",
    "retention/mean/",
    "retention/gain/",
    "context/",
    "train/",
)


@dataclass(frozen=True)
class Row:
    """One line of the table: an arm, unmerged or through one merged model."""

    arm: Arm
    value: float | None
    """What the selection rule saw of this row."""
    selected: bool = False
    """The one setting that the sweep ends with."""
    chosen: bool = False
    """Unmerged: it stands for its algorithm. Merged: its label stands for the merge in its arm."""
    marks: tuple[str, ...] = ()
    """Words that qualify the row: `untuned`, `incomplete`, `confirmed`, `oracle`, `names domains`.
    """
    ci95_images: Mapping[str, Interval] = field(default_factory=dict)
    """Bootstrap over images of the top-1 of every split and of `ood/mean/top1`, if asked for."""

    @property
    def n(self) -> int:
        """How many finished runs the means are over."""
        return len(self.arm.done)

    @property
    def metrics(self) -> Mapping[str, Summary]:
        """Every metric that some finished run has, in the order of `metric_order`."""
        return {name: self.metric(name) for name in sorted(self.names, key=metric_order)}

    @property
    def names(self) -> set[str]:
        """Of those metrics, in no order."""
        return set().union(*(run.values(self.arm.merge) for run in self.arm.done))

    def metric(self, name: str) -> Summary:
        """One metric over the finished runs; without a mean where one of them lacks it."""
        return summary(self.arm.values(name))

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON."""
        return {
            "label": self.arm.label,
            "algorithm": self.arm.algorithm,
            "merge": self.arm.merge,
            "params": dict(self.arm.params),
            "n": self.n,
            "metrics": {name: found.as_dict() for name, found in self.metrics.items()},
            "role": self.arm.role,
            "trial": self.arm.trial,
            "runs": dict(self.arm.states),
            "value": self.value,
            "selected": self.selected,
            "chosen": self.chosen,
            "marks": list(self.marks),
            "ci95_images": {name: list(ends) for name, ends in self.ci95_images.items()},
        }


def metric_order(name: str) -> tuple[int, str, int, str]:
    """Sorts ID before OOD, shifts by name before their mean, top-1 before the rest."""
    kinds = ("top1", "nll", "ece", "brier")
    where, _, kind = name.rpartition("/")
    fits = [place for place, start in enumerate(_GROUPS) if name.startswith(start)]
    rank = kinds.index(kind) if kind in kinds else len(kinds)
    return (fits[-1] if fits else len(_GROUPS), where, rank, kind)


@dataclass(frozen=True)
class Look:
    """What the rows are marked by."""

    rule: Rule
    seeds: tuple[int, ...]
    """Of a whole setting."""
    fresh: tuple[int, ...]
    """Of one that is confirmed."""
    best: Choice | None
    choices: Mapping[str, Choice]
    merges: Mapping[str, Mapping[str, str]]
    untuned: frozenset[str]
    with_images: bool


def rows_of(arm: Arm, look: Look) -> Iterator[Row]:
    """The arm's row, then one for each of its merged models."""
    standing = look.choices.get(arm.algorithm)
    labels = look.merges.get(arm.label, {}).values()
    marks = _marks(arm, look)
    for seen in (arm, *(arm.merged(label) for label in arm.merge_labels)):
        stands = standing is not None and standing.arm.label == seen.label
        chosen = stands if seen.merge is None else stands or seen.merge in labels
        shown = bool(seen.done) and (seen.merge is None or chosen)
        yield Row(
            arm=seen,
            value=value_of(seen, look.rule.metric),
            selected=look.best is not None and look.best.arm.label == seen.label,
            chosen=chosen,
            marks=marks,
            ci95_images=_image_intervals(seen) if look.with_images and shown else {},
        )


def _marks(arm: Arm, look: Look) -> tuple[str, ...]:
    marks = {
        "untuned": arm.role == "baseline" and arm.algorithm in look.untuned,
        "incomplete": not arm.is_complete(look.fresh if arm.confirms else look.seeds),
        "confirmed": arm.confirms,
        "names domains": bool(caveats.named_domains(arm)),
        "oracle": look.rule.oracle,
    }
    return tuple(mark for mark, holds in marks.items() if holds)


def _image_intervals(arm: Arm) -> Mapping[str, Interval]:
    hits = images.arm_hits(arm.done, arm.merge)
    return {} if hits is None else images.intervals(hits)
