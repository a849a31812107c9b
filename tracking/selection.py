"""Which setting stands for an algorithm, and which alpha for its merges, blind to the tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeVar

from tracking.records import Arm, merge_key, merge_name, merge_number
from tracking.rule_names import TASK, Named
from tracking.statistics import mean

T = TypeVar("T")

VAL = "id/val/top1"
HONEST = ("id/val/", "train/", "ood/val/")
"""What a metric's name begins with when no test split and no shift is behind it; `ood/val` is a
validation set that a benchmark made out of distribution."""
_ROUNDING = 1e-12


def looks_at_tests(metric: str) -> bool:
    """Whether selecting on this metric would make the test accuracy a training signal."""
    return not metric.startswith(HONEST)


@dataclass(frozen=True)
class Rule:
    """How settings are chosen.

    Raises ValueError for a metric of a test split or a shift unless `oracle`, a margin below 0,
    or a strength other than +1 and -1.
    """

    metric: str = VAL
    goal: Literal["maximize", "minimize"] = "maximize"
    merge: str | None = None
    """The merged model whose metric counts; None: the unmerged one."""
    within: float | None = None
    """Choose the strongest regularisation whose value is so close to the best, in its unit."""
    oracle: bool = False
    named: Named | None = None
    """A benchmark's name for choosing the best value; with neither margin nor oracle."""
    strength: Mapping[str, int] = field(default_factory=dict)
    """Regularisation fields by importance: +1 where larger is stronger, -1 where smaller."""

    def __post_init__(self) -> None:
        if looks_at_tests(self.metric) and not self.oracle:
            raise ValueError(
                f"{self.metric} is measured on test data; selecting on it needs `selection: oracle`"
            )
        if self.within is not None and not self.within >= 0:
            raise ValueError(f"selection within {self.within}: the margin must be at least 0")
        wrong = {name: sign for name, sign in self.strength.items() if sign not in (1, -1)}
        if wrong:
            raise ValueError(f"strength must be +1 or -1 for each field, got {wrong}")

    def on(self, task: str) -> Rule:
        """The same on one of several tasks, whose name stands where the metric says `{task}`."""
        return replace(self, metric=self.metric.replace(TASK, task)) if self.is_of_task else self

    @property
    def is_of_task(self) -> bool:
        """Whether each task has a metric of its own."""
        return TASK in self.metric

    @property
    def name(self) -> str:
        """`best_val`, `within 0.005`, or either after the word oracle."""
        base: str = self.named or "best_val"
        if self.within is not None:
            base = f"within {self.within:g}"
        if not self.oracle:
            return base
        return "oracle" if self.within is None else f"oracle, {base}"

    def better(self, value: float) -> float:
        """The value turned so that larger is better."""
        return value if self.goal == "maximize" else -value


@dataclass(frozen=True)
class Choice:
    """The arm that stands for its algorithm."""

    arm: Arm
    """Unmerged, or merged where the rule's metric is of a merge."""
    value: float
    complete: bool
    """False: no setting had all its seeds, so this is the best of the unfinished ones."""
    tied: tuple[Arm, ...] = ()
    """Others with the same value that it was taken before."""


def value_of(arm: Arm, metric: str) -> float | None:
    """Mean over the finished seeds; None unless each of them has a finite value."""
    values = [value for value in arm.values(metric) if value is not None]
    return mean(values) if values and len(values) == len(arm.done) else None


def choose(arms: Sequence[Arm], rule: Rule, seeds: Sequence[int]) -> Choice | None:
    """The setting that the rule takes, or None where no arm has a value.

    Arms with a failed or missing seed count only when no arm is complete, and then those with the
    most seeds. With a margin, strength is compared among settings of the best arm's algorithm.
    Ties go to the better value, then to the earlier arm.
    """
    seen = [arm if rule.merge is None else arm.merged(rule.merge) for arm in arms]
    valued = [(arm, value) for arm in seen if (value := value_of(arm, rule.metric)) is not None]
    if not valued:
        return None
    complete = [(arm, value) for arm, value in valued if arm.is_complete(seeds)]
    most = max(len(arm.done) for arm, _ in valued)
    pool = complete or [(arm, value) for arm, value in valued if len(arm.done) == most]
    taken, value = _best(pool, rule)
    if rule.within is not None:
        same = [item for item in pool if item[0].algorithm == taken.algorithm]
        taken, value = _strongest(same, rule, lambda arm: _strength(arm, rule.strength))
    equal = (arm for arm, other in pool if arm is not taken and abs(other - value) <= _ROUNDING)
    return Choice(taken, value, complete=bool(complete), tied=tuple(equal))


def choose_each(arms: Iterable[Arm], rule: Rule, seeds: Sequence[int]) -> dict[str, Choice]:
    """Each algorithm's choice by the same rule, baselines included; trials' algorithms first.

    Runs on fresh seeds, which confirm a choice, are not chosen among.
    """
    of_algorithm: dict[str, list[Arm]] = {}
    tuned = [arm for arm in arms if not arm.confirms]
    for arm in sorted(tuned, key=lambda arm: arm.role != "trial"):
        of_algorithm.setdefault(arm.algorithm, [])
    for arm in tuned:
        of_algorithm[arm.algorithm].append(arm)
    found = {name: choose(ours, rule, seeds) for name, ours in of_algorithm.items()}
    return {name: choice for name, choice in found.items() if choice is not None}


def choose_merges(arm: Arm, rule: Rule) -> Mapping[str, str]:
    """For each merge (`wise_ft`) the label (`wise_ft@0.5`) that the rule takes for this arm.

    By the rule's own metric where the merged models have it, else by `id/val/top1`; one label
    for all seeds. Ties go to the smaller number; with a margin the smallest alpha within it
    stands, since alpha 0 is the zero-shot model.
    """
    labels = sorted(arm.merge_labels, key=merge_key)
    chosen: dict[str, str] = {}
    for name in dict.fromkeys(map(merge_name, labels)):
        ours = [label for label in labels if merge_name(label) == name]
        for metric in dict.fromkeys((rule.metric, VAL)):
            turn = rule if metric == rule.metric else Rule()  # The margin is in the other unit.
            found = [(label, value_of(arm.merged(label), metric)) for label in ours]
            valued = [(label, value) for label, value in found if value is not None]
            if valued:
                chosen[name] = _best_label(valued, turn)
                break
    return chosen


def _best_label(valued: Sequence[tuple[str, float]], rule: Rule) -> str:
    if rule.within is None:
        return _best(valued, rule)[0]
    return _strongest(valued, rule, _merge_strength)[0]


def _merge_strength(label: str) -> tuple[float, ...]:
    number = merge_number(label)
    return (-math.inf,) if number is None else (-number,)


def _near(pool: Sequence[tuple[T, float]], rule: Rule, margin: float) -> list[tuple[T, float]]:
    """Those within a margin of the best."""
    threshold = max(rule.better(value) for _, value in pool) - margin - _ROUNDING
    return [item for item in pool if rule.better(item[1]) >= threshold]


def _best(pool: Sequence[tuple[T, float]], rule: Rule) -> tuple[T, float]:
    """The best value, the earlier of equals."""
    return _near(pool, rule, 0.0)[0]


def _strongest(
    pool: Sequence[tuple[T, float]], rule: Rule, strength: Callable[[T], tuple[float, ...]]
) -> tuple[T, float]:
    """The strongest within the margin of the best; of equally strong ones the best."""
    near = _near(pool, rule, rule.within or 0.0)
    most = max(strength(item) for item, _ in near)
    return _best([item for item in near if strength(item[0]) == most], rule)


def _strength(arm: Arm, signs: Mapping[str, int]) -> tuple[float, ...]:
    """Larger is stronger; a field that the arm lacks is the weakest."""
    found = (arm.params.get(name) for name in signs)
    return tuple(
        sign * float(value)
        if isinstance(value, (int, float)) and math.isfinite(value)
        else -math.inf
        for value, sign in zip(found, signs.values(), strict=True)
    )
