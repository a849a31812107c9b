"""How a sweep chooses and judges, as a value: it is told to a server, and compared with others'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracking.accuracy import KINDS, TOP1
from tracking.base import TrackingError
from tracking.names import unknown
from tracking.rule_names import NAMED
from tracking.selection import Rule
from tracking.terms import Terms

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
            raise ValueError(unknown("accuracy", str(kind), KINDS))
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
