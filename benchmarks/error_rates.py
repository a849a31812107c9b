"""How often a comparison claims what is not so, in sweeps that were made up without any effect.

    python -m benchmarks.error_rates --draws 10000        prints the rates of docs/verdict.md

Each draw goes the whole way from records of runs to the verdict, through `compare`: a setting is
selected by `id/val`, tested, adjusted for the others, and confirmed on fresh seeds where a null
asks for it. Accuracies are normal: a part that every run of a seed shares (its split), and the luck
of each run, which moves its validation, its test and its shifts alike. That is the worst case for a
choice: what is lucky on validation is lucky everywhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from carft_sweep.sweeps.bench.measurement import describe_machine
from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec, Endpoint

SEEDS, FRESH = tuple(range(5)), tuple(range(5, 10))
MARGIN = Endpoint().id_margin
KL = "algorithm.kl_weight"
LUCK = 0.01
"""Standard deviation of a run's luck, and of what the runs of a seed share, in accuracy."""
VALIDATION = 0.003
"""Standard deviation of what validation images add to it."""
GAIN = 0.05
"""A gain that no test misses: five standard deviations of a run."""
Draw = Callable[[np.random.Generator], Comparison]


class Truth(NamedTuple):
    """By how much a method differs from fine-tuning in truth."""

    ood: float = 0.0
    id: float = 0.0


EQUAL = Truth()
LOSES_THE_MARGIN = Truth(ood=GAIN, id=-MARGIN)
"""Gains out of distribution; in distribution it loses the margin and no less."""
GAINS_NOTHING = Truth(id=GAIN)
"""Keeps ID for certain."""


class Seed(NamedTuple):
    """What the runs of a seed share."""

    number: int
    ood: float
    id: float


def seeds_of(rng: np.random.Generator, numbers: Sequence[int]) -> list[Seed]:
    """Draw what the runs of each seed share."""
    return [Seed(number, *(LUCK * rng.normal(size=2))) for number in numbers]


def record(
    rng: np.random.Generator,
    seed: Seed,
    algorithm: str,
    truth: Truth = EQUAL,
    *,
    weight: float | None = None,
    confirms: bool = False,
) -> RunRecord:
    """Draw a finished run."""
    luck = LUCK * rng.normal()
    id_test = 0.6 + truth.id + seed.id + luck
    trial = None if weight is None or confirms else int(weight) - 1
    return RunRecord(
        algorithm=algorithm,
        params={} if weight is None else {KL: weight},
        seed=seed.number,
        digest=f"{algorithm}-{weight}-{seed.number}",
        state="done",
        role="confirmation" if confirms else "baseline" if trial is None else "trial",
        trial=trial,
        metrics={
            "id/val/top1": id_test + VALIDATION * rng.normal(),
            "id/test/top1": id_test,
            "ood/mean/top1": 0.4 + truth.ood + seed.ood + luck,
        },
    )


def rivals(rng: np.random.Generator, truth: Truth, count: int) -> Comparison:
    """Compare fine-tuning with so many algorithms of one setting each, all alike in truth."""
    seeds = seeds_of(rng, SEEDS)
    runs = [record(rng, seed, "fine_tune") for seed in seeds]
    for number in range(count):
        runs += [record(rng, seed, f"rival_{number}", truth) for seed in seeds]
    return compare(runs)


def choice(
    rng: np.random.Generator, truth: Truth, settings: int, *, confirmed: bool = False
) -> Comparison:
    """Compare fine-tuning with the best by `id/val` of so many settings, all alike in truth."""
    seeds, weights = seeds_of(rng, SEEDS), [float(n) for n in range(1, settings + 1)]
    runs = [record(rng, seed, "fine_tune") for seed in seeds]
    for weight in weights:
        runs += [record(rng, seed, "car_ft", truth, weight=weight) for seed in seeds]
    comparison = compare(runs, ComparisonSpec(seeds=SEEDS, confirm_seeds=()))
    if not confirmed or comparison.selected is None:
        return comparison
    weight = weights[comparison.selected.arm.trial or 0]
    for seed in seeds_of(rng, FRESH):
        runs.append(record(rng, seed, "fine_tune", confirms=True))
        runs.append(record(rng, seed, "car_ft", truth, weight=weight, confirms=True))
    return compare(runs, ComparisonSpec(seeds=SEEDS, confirm_seeds=FRESH))


MEASURED = (0.25, 0.5, 0.75)
"""The alphas at which the curve is measured, besides its ends."""
OWN_LUCK, OF_IMAGES = 0.003, 0.001
"""Of a run near the curve, and of what each of its models adds. Runs of more luck leave the curve's
ID range, and nothing is claimed of them."""


def on_the_curve(rng: np.random.Generator, alpha: float, more: float = 0.0) -> Comparison:
    """Compare fine-tuning with a model on its WiSE-FT curve, or `more` above it.

    The curve is bent upwards, and a run's luck moves its models in proportion to alpha.
    """

    def at(alpha: float, luck: float = 0.0) -> dict[str, float]:
        id_test = 0.55 + 0.10 * (1.6 * alpha - 0.6 * alpha**2)
        ood = 0.38 - 0.04 * alpha + 0.16 * alpha * (1 - alpha)
        of_id, of_ood = alpha * luck + OF_IMAGES * rng.normal(size=2)
        accuracies = (id_test + of_id, id_test + of_id, ood + of_ood)
        return dict(zip(("id/val/top1", "id/test/top1", "ood/mean/top1"), accuracies, strict=True))

    def run(
        algorithm: str,
        seed: int | None,
        metrics: Mapping[str, float],
        merges: Mapping[str, Mapping[str, float]] | None = None,
    ) -> RunRecord:
        return RunRecord(
            algorithm=algorithm,
            params={},
            seed=seed,
            digest=f"{algorithm}-{seed}",
            state="done",
            role="baseline",
            metrics=metrics,
            merges=merges or {},
        )

    runs = [run("zero_shot", None, at(0.0))]
    for seed in SEEDS:
        tuned, rival = OWN_LUCK * rng.normal(size=2)
        merges = {f"wise_ft@{a:g}": at(a, tuned) for a in MEASURED}
        runs.append(run("fine_tune", seed, at(1.0, tuned), merges))
        metrics = at(alpha, rival)
        metrics["ood/mean/top1"] += more
        runs.append(run("car_ft", seed, metrics))
    return compare(runs)


Claim = Literal["different", "better", "more than WiSE-FT gives", "strongest told apart"]


DIFFERENT = ("better", "trade_off", "worse")


def claims(comparison: Comparison, claim: Claim) -> bool:
    """Whether it says so of any rival."""
    if claim == "strongest told apart":
        strongest = comparison.answer.strongest
        against_next = None if strongest is None else strongest.verdict
        return against_next is not None and against_next.outcome in DIFFERENT
    if claim == "better":
        return any(verdict.outcome == "better" for verdict in comparison.verdicts)
    if claim == "different":
        return any(verdict.outcome in DIFFERENT for verdict in comparison.verdicts)
    return any(verdict.gains_over_curve for verdict in comparison.verdicts)


@dataclass(frozen=True)
class Null:
    """A world without the effect that is claimed."""

    name: str
    draw: Draw
    claim: Claim
    nominal: float | None
    """The rate that the rules promise; None where they promise none, and say so."""

    def count(self, draws: int, seed: int) -> int:
        """Count the false claims."""
        rng = np.random.default_rng(seed)
        return sum(claims(self.draw(rng), self.claim) for _ in range(draws))


def nulls() -> Iterator[Null]:
    """List the rows of the table."""
    for count in (1, 3, 6, 20):
        head = f"{count} rival{'s' * (count > 1)}"
        yield Null(f"{head}, equal", partial(rivals, truth=EQUAL, count=count), "different", 0.05)
        yield Null(
            f"{head}: OOD gains, ID loses exactly the margin",
            partial(rivals, truth=LOSES_THE_MARGIN, count=count),
            "better",
            0.025,
        )
        yield Null(
            f"{head}: ID kept, no gain in OOD",
            partial(rivals, truth=GAINS_NOTHING, count=count),
            "better",
            0.025,
        )
    for alpha in (0.375, 0.5, 0.625, 0.75):
        draw = partial(on_the_curve, alpha=alpha)
        name = f"on the WiSE-FT curve, at alpha {alpha:g}"
        yield Null(name, draw, "more than WiSE-FT gives", 0.025)
    worlds = {
        "OOD gains, ID loses exactly the margin": LOSES_THE_MARGIN,
        "ID kept, no gain in OOD": GAINS_NOTHING,
    }
    for settings in (4, 8, 20):
        for name, truth in worlds.items():
            for confirmed in (False, True):
                yield Null(
                    f"best of {settings} settings, {name}; "
                    + ("confirmed on fresh seeds" if confirmed else "judged on the same seeds"),
                    partial(choice, truth=truth, settings=settings, confirmed=confirmed),
                    "better",
                    0.025 if confirmed else None,
                )
    for models in (2, 5, 20):
        draw = partial(rivals, truth=EQUAL, count=models - 1)
        yield Null(f"the highest of {models} equal models", draw, "strongest told apart", 0.05)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=10_000, help="comparisons of each null")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    arguments = parser.parse_args()
    began = time.monotonic()
    sys.stdout.write("| no effect | claim | nominal | measured |\n| --- | --- | ---: | ---: |\n")
    with ProcessPoolExecutor(arguments.jobs) as pool:
        rows = [*nulls()]
        counts = pool.map(partial(count, draws=arguments.draws), range(len(rows)))
        for null, false in zip(rows, counts, strict=True):
            ends = stats.binomtest(false, arguments.draws).proportion_ci(0.95)
            nominal = "none" if null.nominal is None else f"{100 * null.nominal:g} %"
            sys.stdout.write(
                f"| {null.name} | {null.claim} | {nominal} | {100 * false / arguments.draws:.1f} % "
                f"({100 * ends.low:.1f} to {100 * ends.high:.1f}) |\n"
            )
            sys.stdout.flush()
    minutes = (time.monotonic() - began) / 60
    sys.stdout.write(
        f"\n{arguments.draws} draws of each; {describe_machine()}; {minutes:.0f} minutes\n"
    )


def count(row: int, draws: int) -> int:
    """Count the false claims of a row of the table, which numbers its generator too."""
    return [*nulls()][row].count(draws, seed=row)


if __name__ == "__main__":
    main()
