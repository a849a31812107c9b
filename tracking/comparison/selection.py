"""Which setting of an algorithm, and which alpha of a merge, is compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TypeVar

from tracking.comparison.runs import Arm, merge_key, merge_name, merge_number, params_key
from tracking.comparison.spec import VAL, Rule
from tracking.comparison.statistics import mean

T = TypeVar("T")
_ROUNDING = 1e-12


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


@dataclass(frozen=True)
class Confirmation:
    """What became of the runs on seeds that no choice has seen."""

    seeds: tuple[int, ...] = ()
    """Asked for; empty: nothing is confirmed."""
    arms: Mapping[str, Arm] = field(default_factory=dict)
    """By algorithm: the runs of its chosen setting, where they were begun."""
    done: int = 0
    asked: int = 0
    """Runs."""

    @property
    def is_complete(self) -> bool:
        """Whether every chosen setting that trains has every fresh seed."""
        return 0 < self.asked == self.done

    def judged(self, choices: Mapping[str, Choice]) -> dict[str, Arm]:
        """The arm that stands for each algorithm in the verdict: confirmed ones only together.

        With some settings on the seeds of their choice, and some on others, nothing is paired.
        """
        arms = {name: choice.arm for name, choice in choices.items()}
        if not self.is_complete:
            return arms
        for name, arm in self.arms.items():
            merge = arms[name].merge
            arms[name] = arm if merge is None else arm.merged(merge)
        return arms


def confirmation(
    arms: Sequence[Arm], choices: Mapping[str, Choice], seeds: Sequence[int] | None
) -> Confirmation:
    """Find the fresh runs of each choice. `seeds` as asked for; None: those that occur."""
    fresh = [arm for arm in arms if arm.confirms]
    if seeds is None:
        every = (run.seed for arm in fresh for run in arm.runs)
        seeds = sorted({seed for seed in every if seed is not None})
    chosen = {name: choice.arm for name, choice in choices.items() if choice.arm.trains}
    found = {name: arm for name, its in chosen.items() for arm in fresh if arm.is_setting_of(its)}
    done = sum(run.seed in seeds for arm in found.values() for run in arm.done)
    return Confirmation(tuple(seeds), found, done, len(seeds) * len(chosen))


OWN = ("algorithm.", "prompts.contexts")
"""Fields that mean nothing to an algorithm which does not vary them."""


@dataclass(frozen=True)
class Budget:
    """What one algorithm was given before its setting was chosen."""

    algorithm: str
    settings: int
    """Of which some run was begun, pruned and failed ones included."""
    runs: int
    epochs: int | None
    """Trained in all these runs; None where some run does not tell."""

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON."""
        return asdict(self)


def budgets(arms: Sequence[Arm]) -> tuple[Budget, ...]:
    """One for each algorithm that trains, in the order of the arms.

    Runs that confirm a choice are no part of it.
    """
    tried = _tried(arms)
    return tuple(_budget(name, tried) for name in dict.fromkeys(arm.algorithm for arm in tried))


def unequal(arms: Sequence[Arm]) -> frozenset[tuple[str, str]]:
    """Pairs of algorithms of which one was tried at more settings, the less tried one first.

    Where only one of the two has fields of its own that vary, such as a KL weight, these do not
    count: a grid over the KL weight alone leaves fine-tuning one point, and that is not too few.
    """
    tried = _tried(arms)
    found = set()
    for pair in combinations(dict.fromkeys(arm.algorithm for arm in tried), 2):
        counts = dict(zip(pair, _counts(tried, *pair), strict=True))
        less, more = sorted(pair, key=lambda name: counts[name])
        if counts[less] < counts[more]:
            found.add((less, more))
    return frozenset(found)


def _counts(arms: Sequence[Arm], one: str, other: str) -> Iterator[int]:
    """Of each of both the settings that differ in fields which mean something to both."""
    varied = {
        name: {field for arm in arms if arm.algorithm == name for field in arm.params}
        for name in (one, other)
    }
    own = [
        {field for field in varied[name] - varied[rival] if field.startswith(OWN)}
        for name, rival in ((one, other), (other, one))
    ]
    left_out: set[str] = set() if all(own) else own[0] | own[1]
    for name in (one, other):
        points = (arm.params for arm in arms if arm.algorithm == name)
        shared = ({f: v for f, v in params.items() if f not in left_out} for params in points)
        yield len({params_key(params) for params in shared})


def _tried(arms: Sequence[Arm]) -> list[Arm]:
    begun = [arm for arm in arms if any(run.state != "missing" for run in arm.runs)]
    return [arm for arm in begun if arm.trains and not arm.confirms]


def _budget(algorithm: str, tried: Sequence[Arm]) -> Budget:
    ours = [arm for arm in tried if arm.algorithm == algorithm]
    runs = [run for arm in ours for run in arm.runs if run.state != "missing"]
    epochs = [run.epochs for run in runs if run.epochs is not None]
    return Budget(
        algorithm, len(ours), len(runs), sum(epochs) if len(epochs) == len(runs) else None
    )
