"""Error rates and power of a comparison's claims, measured by simulation.

    python -m benchmarks.error_rates --jobs 2    goes on with the counts in docs/error-rates.json
    python -m benchmarks.error_rates --draws 0   prints the table of them

A rate is counted until it is surely below what is promised (`SURE`, at one of `LOOKS`), and else in
10,000 draws; a power in 2,000, whose 95 % interval is at most 4.4 points wide.

Each draw goes the whole way from records of runs to the verdict, through `compare`, with the hits
of every model on every image. An image is right where a normal number lies below a threshold. The
number is a sum of the image's difficulty, what its algorithm makes of the image in every run, and
what is left of the run. Its shares are those that were measured on the 26 runs of the shipped sweep
`kl_weight`, as are the numbers of drawings and views. A merged model's number is interpolated
between that of zero-shot and that of its run, so that neighbouring alphas have images in common.
Thresholds are set so that the accuracies are the wanted ones in truth, of which there are two:

* *these images*: over all seeds, on the images at hand;
* *population*: over all seeds and all images. Two algorithms that are equal in this sense differ
  on the images at hand, because each has a part of its own in every image.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr, ndtri

from carft_sweep.carft_core.files import write_json
from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.hits import Hits
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import SEEDS_FOR_CLAIM, ComparisonSpec, Endpoint
from carft_sweep.tracking.comparison.verdict import DIFFERENT

Numbers = NDArray[np.float64]
Truth = Literal["these images", "population"]
Counts = dict[str, int]
"""Of a row of the table: its draws, and how often each claim was made."""
Claim = Literal["different", "better", "strongest", "better curve", "worse curve"]

VIEWS = {
    "id/val": 578,
    "id/test": 628,
    "ood/outline": 684,
    "ood/flat-emoji": 638,
    "ood/duotone": 230,
    "ood/pixel": 228,
    "ood/3d-emoji": 212,
    "ood/black-emoji": 212,
}
"""Images of each split: two of each drawing, four of some."""
SPLITS = tuple(VIEWS)
ID_TEST, SHIFTS = SPLITS.index("id/test"), slice(2, None)
DRAWINGS = {
    "id/val": 289,
    "ood/flat-emoji": 215,
    "id/test ood/outline": 96,
    "id/test ood/outline ood/duotone": 95,
    "ood/outline ood/flat-emoji ood/3d-emoji ood/black-emoji": 9,
    "ood/flat-emoji ood/3d-emoji ood/black-emoji": 73,
    "ood/pixel": 70,
    "ood/outline": 54,
    "id/test": 37,
    "id/test ood/outline ood/pixel": 30,
    "id/test ood/outline ood/flat-emoji ood/3d-emoji ood/black-emoji": 22,
    "id/test ood/outline ood/3d-emoji ood/black-emoji": 2,
    "id/test ood/duotone": 14,
    "id/test ood/pixel": 12,
    "ood/outline ood/duotone": 6,
    "ood/outline ood/pixel": 2,
}
"""Drawings by the splits that their images are in: 1,026."""

OF_ALGORITHM, OF_RUN = 0.049, 0.050
"""Shares of the variance of a tuned model's number: latent correlations are 0.950 between seeds of
an algorithm and 0.901 between algorithms; the image's difficulty is the rest."""
SHARED = 0.82
"""Share of a run's own part that is common to one seed's algorithms (correlation 0.942)."""
WITH_ZERO_SHOT = 0.83
"""Correlation of a tuned model with zero-shot: 0.79 to 0.86."""
OF_DRAWING, OF_DRAWING_BY_ALGORITHM = 0.6, 0.3
"""Shares of the difficulty and of the algorithm's part that a drawing's images have in common."""
MARGIN = Endpoint().id_margin
KL = "algorithm.kl_weight"
SEEDS, FRESH = tuple(range(5)), tuple(range(5, 10))
LUCK = 0.006
"""Standard deviation of a run's luck, in accuracy, where a choice is judged: what is lucky on
validation is lucky everywhere, which is the worst case."""
LARGE = 0.05
"""A difference that no test misses."""
COUNTS = Path(__file__).parents[1] / "docs" / "error-rates.json"
CHUNK = 250
"""Draws that are counted at once."""
LOOKS = (1000, 2000, 4000, 8000)
"""Draws after which a rate may be known well enough."""
SURE = 0.999
"""The one-sided level of the bound (Clopper and Pearson) which then lies below the nominal rate."""
DRAWS_OF_POWER = 2000


@dataclass(frozen=True)
class Layout:
    """The images of all splits, sorted by drawing and split."""

    drawing: NDArray[np.intp]
    """[N] the drawing of each image."""
    split: NDArray[np.intp]
    """[N] the split of each image."""
    starts: NDArray[np.intp]
    """Where the images of each drawing in each split begin."""
    images: Numbers
    """[U, S] number of images."""
    names: NDArray[np.str_]
    """[U] names of the drawings."""

    @classmethod
    def of(cls) -> Layout:
        """Lay out `DRAWINGS` and `VIEWS`."""
        patterns = [names.split() for names, count in DRAWINGS.items() for _ in range(count)]
        images = np.array([[2.0 * (name in own) for name in SPLITS] for own in patterns])
        for column, views in enumerate(VIEWS.values()):
            rows = np.flatnonzero(images[:, column])
            images[rows[: (views - 2 * len(rows)) // 2], column] = 4
        drawing, split = np.nonzero(images)
        counts = images[drawing, split].astype(int)
        names = np.array([f"{row:04d}" for row in range(len(images))], np.str_)
        starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
        return cls(np.repeat(drawing, counts), np.repeat(split, counts), starts, images, names)

    def right(self, hits: NDArray[np.bool_]) -> Numbers:
        """Count the hits [M, N] of models by drawing and split: [M, U, S]."""
        counts = np.add.reduceat(hits.view(np.uint8), self.starts, axis=-1)
        right = np.zeros((len(hits), *self.images.shape))
        right[:, self.drawing[self.starts], self.split[self.starts]] = counts
        return right

    def means(self, values: Numbers) -> Numbers:
        """Average values [M, N] of images by split: [M, S]."""
        totals = np.stack([np.bincount(self.split, row, len(SPLITS)) for row in values])
        mean: Numbers = totals / np.array([*VIEWS.values()])
        return mean


LAYOUT = Layout.of()


@dataclass(frozen=True)
class Shape:
    """The true WiSE-FT curve: accuracies at a place from 0, zero-shot, to 1, the tuned model."""

    id: Callable[[Numbers], Numbers]
    ood: Callable[[Numbers], Numbers]


def _gains_id(place: Numbers) -> Numbers:
    return 0.36 + 0.11 * (1.6 * place - 0.6 * place**2)


SHAPES: Mapping[str, Shape] = {
    # As measured of fine-tuning: 34.9, 36.3, 36.2, 35.9 and 34.4 % from alpha 0 to 1.
    "concave": Shape(_gains_id, lambda t: 0.35 - 0.01 * t + 0.06 * t * (1 - t)),
    "convex": Shape(_gains_id, lambda t: 0.36 - 0.01 * t - 0.06 * t * (1 - t)),
    "very convex": Shape(_gains_id, lambda t: 0.36 - 0.01 * t - 0.24 * t * (1 - t)),
    "S-shaped": Shape(
        lambda t: 0.36 + 0.11 * t, lambda t: 0.35 + 0.01 * t - 0.015 * np.sin(2 * np.pi * t)
    ),
    "flat": Shape(_gains_id, lambda t: 0.35 + 0 * t),
    "falling line": Shape(lambda t: 0.36 + 0.11 * t, lambda t: 0.38 - 0.06 * t),
    "turning back in ID": Shape(
        lambda t: 0.36 + 0.25 * (t - t**2 / 1.4), lambda t: 0.35 - 0.02 * t + 0.06 * t * (1 - t)
    ),
    "hardly any ID range": Shape(lambda t: 0.36 + 0.01 * t, lambda t: 0.35 - 0.02 * t),
}


@dataclass(frozen=True)
class Method:
    """An algorithm at one setting, by its true accuracies."""

    name: str
    reach: float = 1.0
    """Place of its tuned model on the curve (see Shape)."""
    id: float = 0.0
    """Its ID accuracy minus the curve's, at every place."""
    ood: Callable[[Numbers], Numbers] = np.zeros_like
    """Its OOD accuracy minus the curve's, by the share of the ID range."""
    weight: float | None = None

    @property
    def differs(self) -> bool:
        """Whether it is not on the curve."""
        return self.id != 0 or self.ood is not np.zeros_like

    def more(self, accuracies: Numbers, start: float) -> Numbers:
        """Add the method's differences to accuracies [A, S] of a curve from ID `start` on."""
        ids = accuracies[:, ID_TEST]
        moved = accuracies.copy()
        moved[:, :2] += self.id
        moved[:, SHIFTS] += self.ood((ids - start) / (ids[-1] - start))[:, None]
        return moved


def constant(gain: float) -> Callable[[Numbers], Numbers]:
    """Return a difference that is `gain` everywhere."""
    return lambda x: np.full_like(x, gain)


def crossing(height: float) -> Callable[[Numbers], Numbers]:
    """Return a difference that is a gain first and a loss later, 0 on average."""
    return lambda x: height * np.sin(2 * np.pi * x)


@dataclass
class World:
    """One draw of images, and of what each method makes of them."""

    rng: np.random.Generator
    truth: Truth
    shape: Shape = SHAPES["concave"]
    alphas: int = 0
    """Number of measured alphas, the ends included; 0: the tuned models alone."""
    shared: float = SHARED
    luck: float = 0.0
    hits_of: dict[tuple[str, str | None], Hits] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Draw the images."""
        difficulty = self._clustered(OF_DRAWING)
        own = WITH_ZERO_SHOT / np.sqrt(1 - OF_ALGORITHM - OF_RUN)
        self._difficulty = difficulty * np.sqrt(1 - OF_ALGORITHM - OF_RUN)
        self._zero_shot = own * difficulty + np.sqrt(1 - own**2) * self._clustered(OF_DRAWING)
        self._algorithm = self._clustered(OF_DRAWING_BY_ALGORITHM)
        self._images: dict[str, Numbers] = {}
        self._cuts: dict[object, Numbers] = {}
        self._runs: dict[int, Numbers] = {}

    def _clustered(self, of_drawing: float) -> Numbers:
        drawings = self.rng.standard_normal(len(LAYOUT.names))[LAYOUT.drawing]
        images = self.rng.standard_normal(len(LAYOUT.drawing))
        both: Numbers = np.sqrt(of_drawing) * drawings + np.sqrt(1 - of_drawing) * images
        return both

    @property
    def steps(self) -> Numbers:
        """The alphas above 0 that are measured."""
        return np.linspace(0, 1, self.alphas)[1:] if self.alphas else np.ones(1)

    def _center(self, method: Method) -> Numbers:
        """Return each image's latent number [N], mean over the method's runs."""
        if method.name not in self._images:
            own = self._algorithm
            if self.truth == "population":
                own = self._clustered(OF_DRAWING_BY_ALGORITHM)
            self._images[method.name] = self._difficulty + np.sqrt(OF_ALGORITHM) * own
        return self._images[method.name]

    def _thresholds(self, method: Method) -> Numbers:
        """Return [A, S] the thresholds of a method's models, for the wanted accuracies."""
        # On these images methods that are alike in truth have the same thresholds.
        alike = self.truth == "these images"
        key = (method.reach, method.id, method.ood) if alike else method.name
        if key not in self._cuts:
            place = method.reach * self.steps
            spread = np.sqrt((1 - place) ** 2 + place**2 + 2 * place * (1 - place) * WITH_ZERO_SHOT)
            wanted = np.repeat(self.shape.ood(place)[:, None], len(SPLITS), axis=1)
            wanted[:, :2] = self.shape.id(place)[:, None]
            if method.differs and self.truth == "population":
                wanted = method.more(wanted, self.shape.id(np.zeros(1))[0])
            cuts = spread[:, None] * ndtri(wanted)
            if method.differs and self.truth == "these images":
                cuts = self._on_these_images(method, place[:, None], cuts)
            self._cuts[key] = cuts
        return self._cuts[key]

    def _on_these_images(self, method: Method, place: Numbers, cuts: Numbers) -> Numbers:
        """Move the thresholds [A, S] of the curve so that a method differs from it as wanted."""
        centers = self._zero_shot + place * (self._center(method) - self._zero_shot)
        scale = np.sqrt(OF_RUN) * place

        def accuracies(cuts: Numbers) -> Numbers:
            return LAYOUT.means(ndtr((cuts[:, LAYOUT.split] - centers) / scale))

        start = self.zero_shot().metrics["id/test/top1"]
        wanted = method.more(accuracies(cuts), start)
        for width in (0.3, 0.05, 0.05):  # Newton's method
            slopes = (accuracies(cuts + width) - accuracies(cuts - width)) / (2 * width)
            cuts = cuts + (wanted - accuracies(cuts)) / slopes
        return cuts

    def zero_shot(self) -> RunRecord:
        """Return the zero-shot model's run, its hits kept."""
        ends = self.shape.id(np.zeros(1))[0], self.shape.ood(np.zeros(1))[0]
        cuts = ndtri(np.array([ends[0]] * 2 + [ends[1]] * (len(SPLITS) - 2)))
        return self._record("zero_shot", None, (self._zero_shot < cuts[LAYOUT.split])[None])

    def run(self, method: Method, seed: int, *, confirms: bool = False) -> RunRecord:
        """Return a run of a method with a seed, the hits of its models kept."""
        if seed not in self._runs:
            self._runs[seed] = self.rng.standard_normal(len(LAYOUT.drawing))
        residual = np.sqrt(self.shared) * self._runs[seed]
        if self.shared < 1:
            own = self.rng.standard_normal(len(LAYOUT.drawing))
            residual = residual + np.sqrt(1 - self.shared) * own
        tuned = self._center(method) + np.sqrt(OF_RUN) * residual
        if self.luck:
            tuned = tuned - self.luck * self.rng.standard_normal() / _DENSITY
        place = method.reach * self.steps[:, None]
        numbers = self._zero_shot + place * (tuned - self._zero_shot)
        hits = numbers < self._thresholds(method)[:, LAYOUT.split]
        return self._record(method.name, seed, hits, method.weight, confirms=confirms)

    def _record(
        self,
        name: str,
        seed: int | None,
        hits: NDArray[np.bool_],
        weight: float | None = None,
        *,
        confirms: bool = False,
    ) -> RunRecord:
        digest = f"{name}-{seed}"
        right = LAYOUT.right(hits)
        means = right.sum(axis=1) / LAYOUT.images.sum(axis=0)
        labels = [*(f"wise_ft@{alpha:g}" for alpha in self.steps[:-1]), None]
        measured = {}
        for label, counts, of_splits in zip(labels[-len(hits) :], right, means, strict=True):
            # Nothing is tested by validation: its drawings would only take time.
            tested = counts[_TESTED, 1:].astype(np.int32)
            used = Hits(_UNITS, SPLITS[1:], tested, _IMAGES)
            self.hits_of[digest, label] = used
            measured[label] = {
                "id/val/top1": float(of_splits[0]),
                "id/test/top1": float(of_splits[ID_TEST]),
                "ood/mean/top1": float(of_splits[SHIFTS].mean()),
            }
        is_trial = weight is not None and not confirms
        return RunRecord(
            algorithm=name if weight is None else "car_ft",
            params={} if weight is None else {KL: weight},
            seed=seed,
            digest=digest,
            state="done",
            role="confirmation" if confirms else "trial" if is_trial else "baseline",
            trial=int(weight or 0) if is_trial else None,
            metrics=measured.pop(None),
            merges={label: values for label, values in measured.items() if label is not None},
            facts={"images": VIEWS},
        )

    def compare(
        self, runs: Sequence[RunRecord], spec: ComparisonSpec | None = None, *, keeps: bool = True
    ) -> Comparison:
        """Compare runs, with the kept hits as predictions, or without any."""

        def read(run: RunRecord, merge: str | None) -> Hits | None:
            return self.hits_of[run.digest, merge] if keeps else None

        return compare(runs, spec or ComparisonSpec(), hits=read)


_DENSITY = float(stats.norm.pdf(ndtri(0.4)))
"""Density of the number where 40 % of images are right: one point of accuracy is 0.026 of it."""
_TESTED = LAYOUT.images[:, 0] == 0
_UNITS, _IMAGES = LAYOUT.names[_TESTED], LAYOUT.images[_TESTED, 1:].astype(np.int32)
FINE_TUNE = Method("fine_tune")


def rivals(world: World, rival: Method, count: int, *, keeps: bool = True) -> Comparison:
    """Compare fine-tuning with `count` algorithms of one setting, all like `rival` in truth."""
    methods = [FINE_TUNE, *(replace(rival, name=f"rival_{n}") for n in range(count))]
    return world.compare([world.run(method, s) for method in methods for s in SEEDS], keeps=keeps)


def choice(
    world: World, rival: Method, settings: int, *, confirmed: bool = False, keeps: bool = True
) -> Comparison:
    """Compare fine-tuning with the best by `id/val` of `settings` settings, all like `rival`."""
    trials = [replace(rival, name=f"car_ft_{n}", weight=float(n)) for n in range(settings)]
    runs = [world.run(method, s) for method in (FINE_TUNE, *trials) for s in SEEDS]
    spec = ComparisonSpec(seeds=SEEDS, confirm_seeds=())
    comparison = world.compare(runs, spec, keeps=keeps)
    if not confirmed or comparison.selected is None:
        return comparison
    chosen = trials[comparison.selected.arm.trial or 0]
    runs += [world.run(method, s, confirms=True) for method in (FINE_TUNE, chosen) for s in FRESH]
    spec = ComparisonSpec(seeds=SEEDS, confirm_seeds=FRESH)
    return world.compare(runs, spec, keeps=keeps)


def curves(
    world: World,
    rival: Method,
    *,
    arms: int = 1,
    seeds: int = 5,
    base: float = 1.0,
    keeps: bool = True,
) -> Comparison:
    """Compare the curve of fine-tuning, which reaches `base`, with those of `arms` rivals."""
    methods = [replace(FINE_TUNE, reach=base)]
    methods += [replace(rival, name=f"rival_{n}") for n in range(arms)]
    runs = [world.run(method, seed) for method in methods for seed in range(seeds)]
    return world.compare([world.zero_shot(), *runs], keeps=keeps)


def point(world: World, rival: Method, *, keeps: bool = True) -> Comparison:
    """Compare the curve of fine-tuning with a method whose tuned model alone is measured."""
    runs = [world.zero_shot(), *(world.run(FINE_TUNE, seed) for seed in SEEDS)]
    runs += [replace(world.run(rival, seed), merges={}) for seed in SEEDS]
    return world.compare(runs, keeps=keeps)


def claims(comparison: Comparison, claim: Claim) -> bool:
    """Return whether a comparison makes the claim of any rival."""
    match claim:
        case "strongest":
            strongest = comparison.answer.strongest
            against_next = None if strongest is None else strongest.verdict
            return against_next is not None and against_next.outcome in DIFFERENT
        case "better":
            return any(verdict.outcome == "better" for verdict in comparison.verdicts)
        case "different":
            return any(verdict.outcome in DIFFERENT for verdict in comparison.verdicts)
        case "better curve":
            return any(verdict.outcome == "better_curve" for verdict in comparison.curve_verdicts)
        case "worse curve":
            return any(verdict.outcome == "worse_curve" for verdict in comparison.curve_verdicts)


@dataclass(frozen=True)
class Row:
    """A world, the truth that is meant, and the claims that are counted in it."""

    world: str
    truth: Truth
    keeps: bool
    """Whether predictions are kept, so that test images are allowed for."""
    compare: Callable[..., Comparison]
    """Draws runs in a `World`, and compares them."""
    claims: Mapping[Claim, float | None]
    """The nominal rate of each claim; None: a power, or a rate that nothing is promised of."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the `World`."""

    @property
    def name(self) -> str:
        """The name that `--only` is matched with."""
        return f"{self.world}; {self.truth}; {'seeds and images' if self.keeps else 'seeds'}"

    def count(self, draws: int, chunk: int = 0) -> dict[Claim, int]:
        """Count claims in `draws` comparisons; the row's name and `chunk` seed their numbers."""
        rng = np.random.default_rng([crc32(self.name.encode()), chunk])
        counts = dict.fromkeys(self.claims, 0)
        for _ in range(draws):
            world = World(rng, self.truth, **self.settings)
            comparison = self.compare(world, keeps=self.keeps)
            for claim in counts:
                counts[claim] += claims(comparison, claim)
        return counts

    def is_counted(self, counts: Counts, draws: int) -> bool:
        """Return whether these counts suffice, or all the draws that are wanted are made."""
        nominal = {claim: rate for claim, rate in self.claims.items() if rate is not None}
        done = counts["draws"]
        if done >= (draws if nominal else min(draws, DRAWS_OF_POWER)):
            return True
        if not nominal or done not in LOOKS:
            return False
        return all(
            # What must never be claimed is not claimed in a thousand draws.
            stats.beta.ppf(SURE, counts[claim] + 1, done - counts[claim]) < (rate or 0.01)
            for claim, rate in nominal.items()
        )


EITHER: Mapping[Claim, float | None] = {"better curve": 0.025, "worse curve": 0.025}
FOUND: Mapping[Claim, float | None] = {"better curve": None}


def rows() -> Iterator[Row]:
    """Yield the rows of the table: without kept predictions claims are on these images alone."""
    conditions: Sequence[tuple[Truth, bool]] = (("these images", False), ("population", True))
    for truth, keeps in conditions:
        yield from _unmerged_rows(truth, keeps)
        yield from _curve_rows(truth, keeps)
    # What allows for other images too errs less often on these.
    for row in (*_unmerged_rows("these images", True), *_curve_rows("these images", True)):
        if row.world in _IN_BOTH:
            yield row


_IN_BOTH = {
    "1 rival, equal",
    "curve: the same, concave, 100 % against 100 %, 9 alphas",
    "power: +0.5 points, 9 alphas",
    "power: +1 points, 9 alphas",
}


def _unmerged_rows(truth: Truth, keeps: bool) -> Iterator[Row]:
    equal = Method("rival")
    loses_the_margin = Method("rival", id=-MARGIN, ood=constant(LARGE))
    gains_nothing = Method("rival", id=LARGE)
    worlds = {
        "OOD gains, ID loses exactly the margin": loses_the_margin,
        "ID gains, OOD does not": gains_nothing,
    }
    for count in (1, 3, 6, 20):
        head = f"{count} rival{'s' * (count > 1)}"
        draw = partial(rivals, rival=equal, count=count)
        yield Row(f"{head}, equal", truth, keeps, draw, {"different": 0.05, "better": 0.025})
        for name, rival in worlds.items():
            draw = partial(rivals, rival=rival, count=count)
            yield Row(f"{head}, {name}", truth, keeps, draw, {"better": 0.025})
    for models in (2, 5, 20):
        draw = partial(rivals, rival=equal, count=models - 1)
        name = f"the highest of {models} equal models"
        yield Row(name, truth, keeps, draw, {"strongest": 0.05})
    for settings, (name, rival), confirmed in product((4, 20), worlds.items(), (False, True)):
        draw = partial(choice, rival=rival, settings=settings, confirmed=confirmed)
        nominal = 0.025 if confirmed else None
        seeds = "fresh" if confirmed else "the same"
        world = f"best of {settings} settings judged on {seeds} seeds, {name}"
        yield Row(world, truth, keeps, draw, {"better": nominal}, {"luck": LUCK})


def _curve_rows(truth: Truth, keeps: bool) -> Iterator[Row]:
    same = Method("rival")

    def row(
        name: str,
        draw: Callable[..., Comparison],
        alphas: int,
        claims: Mapping[Claim, float | None] = EITHER,
        **settings: object,
    ) -> Row:
        world = f"{name}, {alphas} alphas"
        return Row(world, truth, keeps, draw, claims, {"alphas": alphas, **settings})

    for shape in SHAPES:
        # Seeds alone take a quarter of the time; what images add depends little on the shape.
        every = shape == "concave" or not keeps
        reaches = [(1.0, 1.0), (0.6, 1.0), *([(1.0, 0.6)] if every else [])]
        if shape == "concave":
            reaches.append((1.0, 0.8))
        for base, reach in reaches:
            for alphas in (5, 9, 11) if shape == "concave" else (5, 9) if every else (9,):
                draw = partial(curves, rival=replace(same, reach=reach), base=base)
                lengths = f"{100 * reach:.0f} % against {100 * base:.0f} %"
                name = f"curve: the same, {shape}, {lengths}"
                yield row(name, draw, alphas, shape=SHAPES[shape])
    for alphas, height in product((5, 9), (0.02, -0.02)):
        draw = partial(curves, rival=replace(same, ood=crossing(height)))
        yield row(f"curve: crossing, {100 * height:+g} points first", draw, alphas)
    for seeds in (3, 10, 20):
        nominal = 0.0 if seeds < SEEDS_FOR_CLAIM else 0.025
        both: Mapping[Claim, float | None] = dict.fromkeys(EITHER, nominal)
        draw = partial(curves, rival=same, seeds=seeds)
        yield row(f"curve: the same, {seeds} seeds", draw, 9, both)
    yield row(
        "curve: the same, nothing common to a seed", partial(curves, rival=same), 9, shared=0.0
    )
    yield row("curve: the same, lucky runs", partial(curves, rival=same), 9, luck=LUCK)
    for reach in (1.0, 0.6):
        draw = partial(curves, rival=replace(same, reach=reach), arms=4)
        yield row(f"curve: the same, 4 arms, {100 * reach:.0f} % against 100 %", draw, 9)
    for place in (0.375, 0.5, 0.625, 0.75):
        draw = partial(point, rival=replace(same, reach=place))
        yield row(f"curve: one model on it at alpha {place:g}", draw, 5)
    for gain, alphas in product((0.005, 0.01), (5, 9, 11)):
        draw = partial(curves, rival=replace(same, ood=constant(gain)))
        yield row(f"power: {100 * gain:+g} points", draw, alphas, FOUND)
    for gain, seeds in product((0.005, 0.01), (10, 20)):
        draw = partial(curves, rival=replace(same, ood=constant(gain)), seeds=seeds)
        yield row(f"power: {100 * gain:+g} points, {seeds} seeds", draw, 9, FOUND)


def main() -> None:
    """Count, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draws", type=int, default=10_000, help="most comparisons of a row")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--counts", type=Path, default=COUNTS, help="file that is carried on")
    parser.add_argument("--only", default="*", help="rows whose name matches, such as 'curve*'")
    parser.add_argument("--list", action="store_true", help="print the names of the rows alone")
    arguments = parser.parse_args()
    chosen = {row.name: row for row in rows() if fnmatch(row.name, arguments.only)}
    if arguments.list:
        sys.stdout.write("".join(f"{name}\n" for name in chosen))
        return
    counts: dict[str, Counts] = {}
    if arguments.counts.exists():
        counts = json.loads(arguments.counts.read_text(encoding="utf-8"))
    if arguments.draws:
        _go_on(chosen, counts, arguments)
    sys.stdout.write(
        "| world | true of | allowed for | claim | nominal | measured | draws |\n"
        "| --- | --- | --- | --- | ---: | ---: | ---: |\n"
    )
    for name, row in chosen.items():
        if name in counts:
            sys.stdout.write("".join(_lines(row, counts[name])))


def _go_on(chosen: Mapping[str, Row], counts: dict[str, Counts], options: Any) -> None:
    """Count in chunks, rows with the fewest draws first; write `counts` to its file each time."""
    for name, row in chosen.items():
        counts.setdefault(name, {"draws": 0, **dict.fromkeys(row.claims, 0)})
    with ProcessPoolExecutor(options.jobs) as pool:
        running: dict[Future[dict[Claim, int]], str] = {}
        while True:
            waiting = [
                name
                for name, row in chosen.items()
                if name not in running.values() and not row.is_counted(counts[name], options.draws)
            ]
            waiting.sort(key=lambda name: counts[name]["draws"])
            for name in waiting[: options.jobs - len(running)]:
                running[pool.submit(_count, name, counts[name]["draws"] // CHUNK)] = name
            if not running:
                return
            for task in wait(running, return_when=FIRST_COMPLETED).done:
                own = counts[running.pop(task)]
                own["draws"] += CHUNK
                for claim, count in task.result().items():
                    own[claim] += count
            write_json(options.counts, {name: own for name, own in counts.items() if own["draws"]})


def _count(name: str, chunk: int) -> dict[Claim, int]:
    row = next(row for row in rows() if row.name == name)
    return row.count(CHUNK, chunk)


def _lines(row: Row, counts: Counts) -> Iterator[str]:
    """Yield the lines of a row of the table."""
    draws = counts["draws"]
    for claim, nominal in row.claims.items():
        promise = "none" if nominal is None else f"{100 * nominal:g} %"
        ends = stats.binomtest(counts[claim], draws).proportion_ci(0.95)
        rate = (
            f"{100 * counts[claim] / draws:.1f} % ({100 * ends.low:.1f} to {100 * ends.high:.1f})"
        )
        allowed = "seeds and images" if row.keeps else "seeds"
        cells = (row.world, row.truth, allowed, claim, promise, rate, f"{draws:,}")
        yield f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()
