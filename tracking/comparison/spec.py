"""What a comparison is made by: the rule of selection, the endpoint, the reference."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tracking.comparison.metrics import BENCHMARK, ID, KINDS, OOD, TOP1
from tracking.errors import TrackingError, unknown_name

TASK = "{task}"
"""Stands in a metric for the name of each task."""
Named = Literal["training_domain", "leave_one_domain_out"]
NAMED: tuple[Named, ...] = ("training_domain", "leave_one_domain_out")
"""Rules of DomainBed's by its names."""
LEAVE_ONE_OUT: Named = "leave_one_domain_out"
TEST_DOMAIN = "data.test_domain"
"""The field that names the domain held out."""
VAL_DOMAIN = "data.val_domain"
"""The field that names a further domain left out; such a run is measured on it as `id/val`."""


VAL = "id/val/top1"
HONEST = ("id/val/", "train/", "ood/val/")
"""What a metric's name begins with when no test split and no shift is behind it; `ood/val` is a
validation set that a benchmark made out of distribution."""


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
class Terms:
    """What counts as shown; accuracies are fractions."""

    alpha: float = 0.05
    id_margin: float = 0.005
    """ID counts as not worse when the lower 95 % bound of the difference lies above minus this."""
    fewest_seeds: int = 5
    by: str = TOP1
    """The kind of accuracy (`tracking.comparison.metrics.KINDS`) that methods are ranked by."""
    by_task: Mapping[str, str] = field(default_factory=dict)
    """That of each of several tasks, where they are ranked by different ones."""
    has_shifts: bool = True
    """Without shifts ID itself is tested."""
    has_test: bool = True
    """Without an ID test `id/val` stands for ID, as where every domain not held out trains."""

    @property
    def val(self) -> str:
        """`id/val/top1`, or of another kind."""
        return f"id/val/{self.by}"

    @property
    def test(self) -> str:
        """`id/test/top1`, or of another kind."""
        return f"id/test/{self.by}"

    @property
    def ood(self) -> str:
        """`ood/mean/top1`, or of another kind."""
        return f"ood/mean/{self.by}"

    @property
    def id_metric(self) -> str:
        """What stands for accuracy in distribution."""
        return self.test if self.has_test else self.val

    @property
    def endpoint(self) -> str:
        """What is tested."""
        return self.ood if self.has_shifts else self.test

    def suited(self, names: Collection[str]) -> Terms:
        """The same for data of which these metrics are measured.

        What is measured at all is by top-1: data measured by that alone have their shifts and
        test as well, and are not judged by what is lacking.
        """
        has_shifts = bool({self.ood, OOD} & {*names}) or not {self.test, ID} & {*names}
        has_test = bool({self.test, ID} & {*names}) or self.val not in names
        return replace(self, has_shifts=has_shifts, has_test=has_test)

    def on(self, task: str) -> Terms:
        """The same on one of several tasks."""
        return replace(self, by=self.by_task.get(task, self.by), by_task={})

    def over(self, tasks: Collection[str]) -> Terms:
        """The same for a mean over tasks: by the kind that all share, or by each task's own."""
        kinds = {self.on(task).by for task in tasks}
        by = kinds.pop() if len(kinds) == 1 else BENCHMARK
        return replace(self, by=by, by_task={} if by != BENCHMARK else self.by_task)


VERSION = 1


@dataclass(frozen=True)
class Judging:
    """The rule of selection, the seeds of a whole setting, and what counts as shown."""

    rule: Rule = field(default_factory=Rule)
    seeds: tuple[int, ...] | None = None
    """None: all that occur."""
    confirm_seeds: tuple[int, ...] = ()
    """On which a chosen setting is run again; none: it is not confirmed."""
    terms: Terms = field(default_factory=Terms)
    tasks: str | None = None
    """The parameter whose values are tasks, for each of which settings are chosen apart."""

    def plain(self) -> dict[str, Any]:
        """For the tag `carft.rule`; `of_plain` reads it back."""
        rule = self.rule
        return {
            "version": VERSION,
            "metric": rule.metric,
            "goal": rule.goal,
            "merge": rule.merge,
            "selection": rule.name,
            "within": rule.within,
            "oracle": rule.oracle,
            "strength": dict(rule.strength),
            "seeds": None if self.seeds is None else list(self.seeds),
            "confirm_seeds": list(self.confirm_seeds),
            "id_margin": self.terms.id_margin,
            "by": dict(self.terms.by_task) or self.terms.by,
            "tasks": self.tasks,
        }

    @classmethod
    def of_plain(cls, told: Mapping[str, Any]) -> Judging:
        """Raises TrackingError for what `plain` does not write."""
        try:
            if told["version"] != VERSION:
                raise ValueError(f"version {told['version']}")
            rule = Rule(
                metric=str(told["metric"]),
                goal="minimize" if told["goal"] == "minimize" else "maximize",
                merge=told["merge"],
                within=told["within"],
                oracle=bool(told["oracle"]),
                named=next((name for name in NAMED if name == told["selection"]), None),
                strength=dict(told["strength"]),
            )
            seeds = None if told["seeds"] is None else tuple(map(int, told["seeds"]))
            fresh = tuple(map(int, told["confirm_seeds"]))
            tasks = told.get("tasks")  # earlier versions had none
            terms = terms_of(float(told["id_margin"]), told.get("by"))
            return cls(rule, seeds, fresh, terms, None if tasks is None else str(tasks))
        except (KeyError, TypeError, ValueError) as error:
            raise TrackingError(f"this is no rule of a sweep: {error!r}") from None


OPTIONS: Mapping[str, str | None] = {
    "metric": "--metric",
    "goal": "--metric",
    "merge": "--metric",
    "selection": "--selection",
    "id_margin": "--id-margin",
    "by": "--by",
    "tasks": None,
}
"""What of two sweeps must be equal to compare them as one, and the option that settles it."""


def terms_of(id_margin: float, by: str | Mapping[str, str] | None) -> Terms:
    """What counts as shown, from plain data, which has no `by` where it is top-1.

    `by` is of one kind of accuracy, or by task. Raises ValueError for a kind that is none.
    """
    kinds = [*by.values()] if isinstance(by, Mapping) else [by or TOP1]
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(unknown_name("accuracy", str(kind), KINDS))
    if isinstance(by, Mapping):
        return Terms(id_margin=id_margin, by_task=dict(by))
    return Terms(id_margin=id_margin, by=by or TOP1)


def agreed(by_sweep: Mapping[str, Judging]) -> Judging:
    """The judging that all have; whole is a setting with the seeds that they have in common, or,
    where there are none, with those of all.

    Raises TrackingError that names the first difference and the option that settles it.
    """
    first, *others = by_sweep.items()
    if not others:
        return first[1]
    for name, other in others:
        for key, option in OPTIONS.items():
            ours, theirs = first[1].plain()[key], other.plain()[key]
            if ours != theirs:
                raise TrackingError(
                    f"{first[0]} and {name} cannot be compared as one: the {key} of one is "
                    f"{_shown(ours)}, of the other {_shown(theirs)}; {_remedy(option)}"
                )
    whole = common_seeds([item.seeds for item in by_sweep.values()])
    fresh = _fresh(list(by_sweep.values()))
    return Judging(first[1].rule, whole, fresh, first[1].terms, first[1].tasks)


def _remedy(option: str | None) -> str:
    say = "" if option is None else f"say which with {option} (in Python: judging=), or "
    return f"{say}look at each by itself"


def _fresh(every: Sequence[Judging]) -> tuple[int, ...]:
    """The seeds on which all confirm that do, as far as nobody has chosen on them."""
    asked = [set(item.confirm_seeds) for item in every if item.confirm_seeds]
    seen = {seed for item in every for seed in item.seeds or ()}
    return tuple(sorted(set.intersection(*asked) - seen)) if asked else ()


def common_seeds(every: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """The seeds that a setting of all these sweeps is whole with; None: all that occur."""
    known = [set(seeds) for seeds in every if seeds is not None]
    # With no seed asked for, a setting with a single one would stand against those with many.
    return tuple(sorted(set.intersection(*known))) or None if known else None


def _shown(value: object) -> str:
    return "none" if value is None else str(value)
