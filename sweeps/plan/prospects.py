"""What a sweep's verdict can show, and what prevents a verdict: known before the sweep runs."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from carft_sweep.tracking.comparison.power import ID_SPREAD, OOD_SPREAD, Power
from carft_sweep.tracking.comparison.spec import REFERENCE, SEEDS_FOR_CLAIM
from carft_sweep.tracking.errors import counted

if TYPE_CHECKING:
    from carft_sweep.sweeps.plan.planner import Planner


@dataclass(frozen=True)
class Obstacle:
    """A property of a sweep with which its runs give no verdict, or only a part of one."""

    reason: str
    remedy: str
    """What to change, in words; empty where `override` is all of it."""
    override: str = ""
    """The override of the sweep file that removes the obstacle, such as `seeds=5`."""
    runs: int = 0
    """How many runs the override adds."""

    def describe(self, time: str = "") -> str:
        """Return a sentence on the obstacle; `time` is what the override's runs take, if known."""
        if not self.override:
            return f"{self.reason}; {self.remedy}"
        about = f", about {time}" if time else ""
        return f"{self.reason}; `--set {shlex.quote(self.override)}` adds {self.runs} runs{about}"


def find_obstacles(
    *,
    seeds: Sequence[int],
    algorithms: Collection[str],
    splits: Collection[str],
    confirm_seeds: Sequence[int] = (),
    settings: int = 0,
) -> Iterator[Obstacle]:
    """Yield what prevents a verdict of a sweep.

    Args:
        seeds: The seeds of each setting.
        algorithms: The algorithms that train.
        splits: The measured splits, by metric name: `id/test`, `ood/pixel`.
        confirm_seeds: Fresh seeds, on which the verdict is judged instead.
        settings: How many settings train on every seed.
    """
    key, judged_on = ("confirm_seeds", confirm_seeds) if confirm_seeds else ("seeds", seeds)
    if len(judged_on) < SEEDS_FOR_CLAIM:
        count = counted(len(judged_on), "fresh seed" if confirm_seeds else "seed")
        reason = f"{count}: no verdict is possible ({SEEDS_FOR_CLAIM} needed)"
        each = len(algorithms) if confirm_seeds else settings
        runs = (SEEDS_FOR_CLAIM - len(judged_on)) * each
        yield Obstacle(reason, "", f"{key}={_extended(judged_on)}", runs)
    if REFERENCE not in algorithms:
        yield Obstacle(
            f"no {REFERENCE} among the algorithms: no verdict is possible, since there is nothing "
            "to compare with",
            f"add {REFERENCE} to `baselines`",
        )
    elif len(algorithms) == 1:
        yield Obstacle(
            f"{REFERENCE} is the only algorithm that trains: there is no verdict, but the effects "
            "of what varies",
            "name another in `trial.algorithm` or `baselines`",
        )
    has_shifts = any(split.startswith("ood/") for split in splits)
    if not has_shifts and "id/test" not in splits:
        yield Obstacle(
            "neither a shift nor a test split is measured: no verdict is possible",
            "name shifts or a test in the family",
        )
    elif not has_shifts:
        yield Obstacle(
            "no shift is measured: a verdict says nothing of robustness",
            "name shifts in the family, or in `data.shifts`",
        )


def obstacles_of(planner: Planner) -> tuple[Obstacle, ...]:
    """Return the obstacles to a verdict of a sweep."""
    spec = planner.spec
    baselines = sum(point.config.algorithm.trains for point in spec.baseline_configs())
    obstacles = find_obstacles(
        seeds=spec.seeds,
        algorithms=spec.trained_algorithms,
        splits=planner.data().measured(),
        confirm_seeds=spec.confirm_seeds,
        settings=baselines + spec.distinct_trials,
    )
    return tuple(obstacles)


def power_of(planner: Planner) -> str:
    """Return a sentence on the OOD difference that the seeds and test images of a sweep without
    obstacles can show, and on equal ID. Empty with tasks, each of which has its own images."""
    spec = planner.spec
    if spec.tasks is not None:
        return ""
    seeds = len(spec.confirm_seeds or spec.seeds)
    data, id_margin = planner.data(), spec.report.id_margin
    measured = data.measured()
    names = (name for name in measured if name.startswith("ood/") and name not in data.outside_mean)
    ood = Power.expected([measured[name].units for name in names], OOD_SPREAD)
    units = 0 if ood.images is None else ood.images.units
    text = (
        f"{seeds} seeds and {units:,} groups of shifted test images find a true OOD difference of "
        f"{100 * ood.smallest_difference(seeds):.1f} pp in 80 % of sweeps, where methods differ as "
        "car_ft and fine_tune do on icon_shift"
    )
    if data.test is None:
        return text
    chance = Power.expected([data.test.units], ID_SPREAD).chance(id_margin, seeds)
    return (
        f"{text}; a method with equal ID is shown to keep it within {100 * id_margin:.3g} pp "
        f"(BETTER) in {100 * chance:.0f} %"
    )


def _extended(seeds: Sequence[int]) -> str:
    """Return `seeds`, and as many more as a claim needs, as text: `[3,4,5,6,7]`; `5` for 0 to 4."""
    if list(seeds) == list(range(len(seeds))):
        return str(SEEDS_FOR_CLAIM)
    first = max(seeds) + 1
    more = range(first, first + SEEDS_FOR_CLAIM - len(seeds))
    return f"[{','.join(map(str, (*seeds, *more)))}]"
