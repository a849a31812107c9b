"""Whether the settings that were chosen ran again on fresh seeds, and so may be judged by those."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tracking.records import Arm
from tracking.selection import Choice


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
