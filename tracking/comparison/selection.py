"""Selection of an algorithm's setting and of a merge's alpha, and the budgets of selection."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

from carft_sweep.tracking.comparison.runs import Arm, ArmKey, Scalar, params_key, split_merge
from carft_sweep.tracking.comparison.spec import VAL, SelectionRule
from carft_sweep.tracking.comparison.statistics import ROUNDING

T = TypeVar("T")
SWEEP = "sweep"
"""The field with the names of a run's sweeps, where runs differ in no field of their configs."""
OWN_FIELDS = ("algorithm.", "prompts.contexts")
"""Beginnings of the names of fields without meaning for an algorithm that does not vary them."""


@dataclass(frozen=True)
class Selection:
    """A selected setting: the arm that represents its algorithm."""

    arm: Arm
    """Unmerged, or merged where the rule's metric is of a merge."""
    value: float
    """Its mean of the rule's metric; NaN where there was no choice."""
    complete: bool
    """Whether the setting has all its seeds; False: it is the best of unfinished ones."""
    tied: tuple[Arm, ...] = ()
    """Other arms with the same value."""


def select(arms: Sequence[Arm], rule: SelectionRule, seeds: Sequence[int]) -> Selection | None:
    """Return the setting selected by the rule; None where no arm has a value.

    Arms with a failed or missing seed count only when no arm is complete, and then those with the
    most seeds. Those that miss the rule's constraint count only when all do. With `rule.within`, of
    the settings of the best arm's algorithm within that margin of the best value the most strongly
    regularised one (by `rule.strength`) is selected. Ties go to the better value, then to the
    earlier arm.
    """
    models = [arm if rule.merge is None else arm.merged(rule.merge) for arm in arms]
    valued = [(arm, value) for arm in models if (value := arm.mean(rule.metric)) is not None]
    if not valued:
        return None
    complete = [(arm, value) for arm, value in valued if arm.is_complete(seeds)]
    most = max(len(arm.done) for arm, _ in valued)
    pool = complete or [(arm, value) for arm, value in valued if len(arm.done) == most]
    pool = [item for item in pool if meets(item[0], rule)] or pool
    best, value = _near_best(pool, rule)[0]
    if rule.within is not None:
        same = [item for item in pool if item[0].algorithm == best.algorithm]
        best, value = _strongest(same, rule, lambda arm: _strength(arm, rule.strength))
    equal = (arm for arm, other in pool if arm is not best and abs(other - value) <= ROUNDING)
    return Selection(best, value, complete=bool(complete), tied=tuple(equal))


def bounded(rule: SelectionRule, arms: Iterable[Arm]) -> SelectionRule:
    """Return the rule with its constraint's bound: the named algorithm's best, less the margin."""
    own = rule.constraint
    if own is None:
        return rule
    means = (arm.mean(own.metric) for arm in arms if arm.algorithm == own.of and not arm.confirms)
    values = [own.better(mean) for mean in means if mean is not None]
    return rule.model_copy(update={"bound": max(values) - own.margin if values else None})


def meets(arm: Arm, rule: SelectionRule) -> bool:
    """Return whether an arm meets the rule's constraint."""
    if rule.constraint is None or rule.bound is None:
        return True
    mean = arm.mean(rule.constraint.metric)
    return mean is not None and rule.constraint.better(mean) >= rule.bound - ROUNDING


def select_each(
    arms: Iterable[Arm], rule: SelectionRule, seeds: Sequence[int]
) -> dict[str, Selection]:
    """Return the selected setting of each algorithm by the same rule, baselines too; algorithms of
    trials come first.

    Runs on fresh seeds, which confirm a selection, are not selected among. Where no arm has a
    value, as in a table without validation, an algorithm with a single setting gets that one.
    """
    by_algorithm: dict[str, list[Arm]] = {}
    for arm in sorted(arms, key=lambda arm: arm.role != "trial"):
        if not arm.confirms:
            by_algorithm.setdefault(arm.algorithm, []).append(arm)
    selections = {name: select(own, rule, seeds) for name, own in by_algorithm.items()}
    if rule.merge is None and not any(selections.values()):
        selections |= {
            name: Selection(own[0], math.nan, own[0].is_complete(seeds))
            for name, own in by_algorithm.items()
            if len(own) == 1 and own[0].done
        }
    return {name: selection for name, selection in selections.items() if selection is not None}


def select_merges(arms: Sequence[Arm], rule: SelectionRule) -> dict[ArmKey, dict[str, str]]:
    """Return for each arm's key the selected label (`wise_ft@0.5`) of each merge (`wise_ft`).

    The rule's own metric decides where the merged models have it, else `id/val/top1`, with one
    label for all seeds. Ties go to the smaller alpha; with a margin the smallest alpha within it
    wins, since alpha 0 is the zero-shot model. Confirmations take their setting's choice.
    """
    tuned = [arm for arm in arms if not arm.is_zero_shot and not arm.confirms]
    selected = {arm.key: _select_labels(arm, rule) for arm in tuned}
    for arm in arms:
        for setting in tuned if arm.confirms else ():
            if arm.is_setting_of(setting):
                selected[arm.key] = selected[setting.key]
    return selected


def _select_labels(arm: Arm, rule: SelectionRule) -> dict[str, str]:
    by_merge: dict[str, list[str]] = {}
    for label in arm.merge_labels:
        by_merge.setdefault(split_merge(label)[0], []).append(label)
    selected = {}
    for name, labels in by_merge.items():
        for metric in dict.fromkeys((rule.metric, VAL)):
            means = [(label, arm.merged(label).mean(metric)) for label in labels]
            valued = [(label, mean) for label, mean in means if mean is not None]
            valued = [pair for pair in valued if meets(arm.merged(pair[0]), rule)] or valued
            if valued:
                # The margin is in the unit of the rule's own metric.
                own = rule if metric == rule.metric else SelectionRule()
                best = _near_best(valued, own)[0]
                if own.within is not None:
                    best = _strongest(valued, own, _merge_strength)
                selected[name] = best[0]
                break
    return selected


def _merge_strength(label: str) -> tuple[float, ...]:
    number = split_merge(label)[1]
    return (-math.inf,) if number is None else (-number,)


def _near_best(
    pool: Sequence[tuple[T, float]], rule: SelectionRule, margin: float = 0.0
) -> list[tuple[T, float]]:
    """Return, in order, the items of `pool` at most `margin` worse than the best by `rule`."""
    threshold = max(rule.better(value) for _, value in pool) - margin - ROUNDING
    return [item for item in pool if rule.better(item[1]) >= threshold]


def _strongest(
    pool: Sequence[tuple[T, float]], rule: SelectionRule, strength: Callable[[T], tuple[float, ...]]
) -> tuple[T, float]:
    """Return the item of most `strength` within the margin of the best; of equals the best."""
    near = _near_best(pool, rule, rule.within or 0.0)
    most = max(strength(item) for item, _ in near)
    return _near_best([item for item in near if strength(item[0]) == most], rule)[0]


def _strength(arm: Arm, signs: Mapping[str, int]) -> tuple[float, ...]:
    """Return an arm's regularisation as a sort key: larger is stronger, a missing field the
    weakest. `signs` is the rule's `strength`."""
    values = (arm.params.get(name) for name in signs)
    return tuple(
        sign * float(value)
        if isinstance(value, (int, float)) and math.isfinite(value)
        else -math.inf
        for value, sign in zip(values, signs.values(), strict=True)
    )


@dataclass(frozen=True)
class Confirmation:
    """The runs on seeds that no selection has seen."""

    seeds: tuple[int, ...]
    """Required fresh seeds; empty: nothing is confirmed."""
    arms: Mapping[str, Arm]
    """The arm that represents each algorithm in the verdict. All are on fresh seeds if all these
    runs are done, else all on the seeds of selection: arms on different seeds cannot be paired."""
    done: int
    required: int
    """Numbers of finished and of required runs."""

    @property
    def is_complete(self) -> bool:
        """Whether every selected setting that trains has every fresh seed."""
        return 0 < self.required == self.done

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """Seeds on which the verdict is judged, if the confirmation is complete; else none."""
        return self.seeds if self.is_complete else ()


def confirm(
    arms: Sequence[Arm], selections: Mapping[str, Selection], seeds: Sequence[int] | None
) -> Confirmation:
    """Return the confirmation of the selected settings on fresh `seeds` (None: all that ran)."""
    fresh = [arm for arm in arms if arm.confirms]
    if seeds is None:
        every = (run.seed for arm in fresh for run in arm.runs)
        seeds = sorted({seed for seed in every if seed is not None})
    selected = {name: selection.arm for name, selection in selections.items()}
    trained = {name: arm for name, arm in selected.items() if arm.trains}
    again = {name: arm for name, own in trained.items() for arm in fresh if arm.is_setting_of(own)}
    done = sum(run.seed in seeds for arm in again.values() for run in arm.done)
    confirmation = Confirmation(tuple(seeds), selected, done, len(seeds) * len(trained))
    if not confirmation.is_complete:
        return confirmation
    for name, arm in again.items():
        merge = selected[name].merge
        selected[name] = arm if merge is None else arm.merged(merge)
    return replace(confirmation, arms=selected)


@dataclass(frozen=True)
class Budget:
    """The numbers of settings and runs that an algorithm's setting was selected among."""

    algorithm: str
    settings: int
    """Settings of which some run was begun; pruned and failed ones count."""
    runs: int


def budgets(arms: Sequence[Arm]) -> tuple[Budget, ...]:
    """Return the budget of each algorithm that trains, without confirmations."""
    counted = []
    tried = _tried(arms)
    for algorithm in dict.fromkeys(arm.algorithm for arm in tried):
        settings = [arm for arm in tried if arm.algorithm == algorithm]
        runs = [run for arm in settings for run in arm.runs if run.state != "missing"]
        counted.append(Budget(algorithm, len(settings), len(runs)))
    return tuple(counted)


def less_tried(arms: Sequence[Arm]) -> dict[str, set[str]]:
    """Return, for each algorithm tried at fewer settings than another, the algorithms tried at
    more. It must have fewer even without the fields that only one of the two has: a grid over the
    KL weight alone leaves fine-tuning one setting, and that is not too few."""
    params: dict[str, list[dict[str, Scalar]]] = {}
    for arm in _tried(arms):
        plain = {name: value for name, value in arm.params.items() if name != SWEEP}
        params.setdefault(arm.algorithm, []).append(plain)
    varied = {name: {key for point in points for key in point} for name, points in params.items()}
    fewer: dict[str, set[str]] = {}
    for pair in combinations(params, 2):
        one, other = (
            {key for key in varied[name] - varied[rival] if key.startswith(OWN_FIELDS)}
            for name, rival in (pair, pair[::-1])
        )
        whole, shared = (
            {name: _count(params[name], ignored) for name in pair}
            for ignored in (set(), set() if one and other else one | other)
        )
        less, more = sorted(pair, key=whole.__getitem__)
        if whole[less] < whole[more] and shared[less] < shared[more]:
            fewer.setdefault(less, set()).add(more)
    return fewer


def _count(points: Sequence[Mapping[str, Scalar]], ignored: Collection[str]) -> int:
    """Return the number of different points when the fields `ignored` are left out."""
    kept = ({key: point[key] for key in point if key not in ignored} for point in points)
    return len(set(map(params_key, kept)))


def _tried(arms: Sequence[Arm]) -> list[Arm]:
    begun = [arm for arm in arms if any(run.state != "missing" for run in arm.runs)]
    return [arm for arm in begun if arm.trains and not arm.confirms]
