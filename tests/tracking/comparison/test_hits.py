"""What is kept of test images tells how far other images would move a difference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from carft_sweep.tracking.comparison.compare import compare
from carft_sweep.tracking.comparison.hits import GROUPS, KeptHits, leave_out, read_hits
from carft_sweep.tracking.comparison.metrics import ID, OOD
from carft_sweep.tracking.comparison.power import Power
from carft_sweep.tracking.comparison.predictions import predictions_path
from carft_sweep.tracking.comparison.runs import Arm, RunRecord, group
from carft_sweep.tracking.comparison.statistics import ImageError, PairedTest
from tests.tracking.drawn_images import Images, answered, drawings, groups_of, hits_of, images, top1
from tests.tracking.kept import keep_predictions, with_folder
from tests.tracking.made_up import known, metrics, run

START = {OOD: "ood/", ID: "id/test"}


def kept_run(home: Path, algorithm: str, seed: int | None, by: Images, **changes: Any) -> RunRecord:
    """A run whose folder holds these images, each with its unit."""
    folder, predictions, units = home / f"{algorithm}-{seed}", {}, {}
    for split, rows in by.groupby("split", sort=False):
        right = rows.right.to_numpy(bool)
        logits = np.where(np.stack([right, ~right], axis=1), 1.0, -1.0)
        predictions[str(split)] = (logits, np.zeros(len(rows), np.int64))
        units[str(split)] = rows.unit.tolist()
    keep_predictions(folder, None, predictions, units=units)
    return run(algorithm, seed, metrics(0.6, 0.3), folder=folder, **changes)


def arm_of(algorithm: str, seeds: Sequence[int | None]) -> Arm:
    return group([run(algorithm, seed, metrics(0.6, 0.3)) for seed in seeds])[0]


def error_between(sides: Sequence[Sequence[Images]], metric: str = OOD) -> ImageError | None:
    """That of two arms with a model for each seed."""
    seeds = range(len(sides[0]))
    arms = arm_of("car_ft", seeds), arm_of("fine_tune", seeds)
    every = zip((*arms[0].runs, *arms[1].runs), (*sides[0], *sides[1]), strict=True)
    models = {run.digest: hits_of(by) for run, by in every}
    hits = KeptHits(lambda run, _merge: models[run.digest])
    return hits.difference_error([arms], seeds, metric)


def differences(
    ours: Sequence[Images], theirs: Sequence[Images], metric: str, times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[T] the mean difference over seeds, with each used unit counted so many times [T, U]."""
    units = used_units([*ours, *theirs], metric)

    def accuracy(by: Images) -> NDArray[np.float64]:
        of_splits = []
        for _, rows in by[by.split.str.startswith(START[metric])].groupby("split"):
            code = units.get_indexer(pd.Index(rows.unit))
            right = np.bincount(code, rows.right, len(units))
            of_splits.append((times @ right) / (times @ np.bincount(code, minlength=len(units))))
        return np.mean(of_splits, axis=0)

    pairs = zip(ours, theirs, strict=True)
    return np.mean([accuracy(our) - accuracy(their) for our, their in pairs], axis=0)


def used_units(models: Sequence[Images], metric: str) -> pd.Index:
    every = pd.concat(list(models))
    return pd.Index(every[every.split.str.startswith(START[metric])].unit.unique())


THEIRS = [drawings(seed) for seed in (1, 1, 1)]
"""Of the same images for each seed."""
OURS = [answered(by, seed) for seed, by in enumerate(THEIRS)]
ALIKE = [answered(answered(by, 9), seed, 0.05) for seed, by in enumerate(THEIRS)]
"""Models of which two seeds differ on few images."""


def test_a_file_is_counted_by_unit_and_split(tmp_path: Path) -> None:
    by = drawings(0)
    hits = known(read_hits(kept_run(tmp_path, "fine_tune", 0, by), None))
    counted = by.groupby(["unit", "split"]).right.agg(["sum", "size"]).unstack().fillna(0)
    assert hits.units.tolist() == sorted(by.unit.unique())
    assert hits.splits == ("id/test", "ood/a", "ood/b")
    np.testing.assert_array_equal(hits.right, counted["sum"])
    np.testing.assert_array_equal(hits.images, counted["size"])
    assert hits.sizes.tolist() == by.groupby("split").size().tolist()


def test_a_metric_weighs_its_splits_alike() -> None:
    by = images([(s, s, True) for s in ("id/test", "id/val", "ood/a", "ood/b")])
    for metric, weights in {
        ID: [1, 0, 0, 0],
        "id/val/top1": [0, 1, 0, 0],
        "ood/b/top1": [0, 0, 0, 1],
        OOD: [0, 0, 0.5, 0.5],
        "ood/c/top1": None,
        "ood/mean/macro_f1": None,
    }.items():
        own = hits_of(by).weights(metric)
        assert own == (None if weights is None else pytest.approx(weights)), metric
    assert hits_of(by, outside=frozenset({2})).weights(OOD) == pytest.approx([0, 0, 0, 1])
    assert hits_of(images([("id/test", "x", True)])).weights(OOD) is None


def test_a_shift_outside_the_means_moves_none(tmp_path: Path) -> None:
    facts = {"outside_means": ["ood/b"]}
    arms = [
        group([kept_run(tmp_path, name, n, by, facts=facts) for n, by in enumerate(models)])[0]
        for name, models in (("car_ft", OURS), ("fine_tune", THEIRS))
    ]
    error = known(KeptHits().difference_error([(arms[0], arms[1])], range(3), OOD))
    without = [[by[by.split != "ood/b"] for by in side] for side in (OURS, THEIRS)]
    assert error == pytest.approx(error_between(without))


def tasks(home: Path, algorithm: str, seed: int, models: Sequence[Images]) -> RunRecord:
    """A mean over tasks, each with images of its own."""
    parts = {}
    for n, by in enumerate(models):
        facts = {"outside_means": ["ood/b"][n:]}
        parts[f"task {n}"] = kept_run(home / str(n), algorithm, seed, by, facts=facts)
    return run(algorithm, seed, metrics(0.6, 0.3), parts=parts)


def test_a_mean_over_tasks_weighs_tasks_alike_and_shifts_alike_in_each(tmp_path: Path) -> None:
    hits = known(read_hits(tasks(tmp_path, "car_ft", 0, (drawings(0), drawings(1))), None))
    assert hits.splits == ("id/test", "ood/a", "ood/b") * 2
    assert hits.weights(ID) == pytest.approx([0.5, 0, 0, 0.5, 0, 0])
    # What is outside the mean of the first task is in that of the second.
    assert hits.weights(OOD) == pytest.approx([0, 0.5, 0, 0, 0.25, 0.25])
    assert hits.weights("ood/c/top1") is None


def test_units_of_two_tasks_are_not_the_same(tmp_path: Path) -> None:
    both = (drawings(1), drawings(2))
    sides = [[[answered(by, 10 * n + add) for by in both] for n in (0, 1)] for add in (3, 4)]
    ours, theirs = (
        group([tasks(tmp_path, name, n, side[n]) for n in (0, 1)])[0]
        for name, side in zip(("car_ft", "fine_tune"), sides, strict=True)
    )
    error = known(KeptHits().difference_error([(ours, theirs)], (0, 1), ID))
    each = [known(error_between([[m[k] for m in s] for s in sides], ID)) for k in (0, 1)]
    assert error.units == sum(of.units for of in each)
    # The variance of a mean of two that are independent, but for n / (n - 1).
    shares = [of.variance * (of.units - 1) / of.units for of in each]
    expected = sum(shares) / 4 * error.units / (error.units - 1)
    assert error.variance == pytest.approx(expected)


@pytest.mark.parametrize("metric", [ID, OOD])
def test_the_variance_is_about_that_of_a_jackknife_and_of_a_bootstrap(metric: str) -> None:
    error, count = known(error_between((ALIKE, THEIRS), metric)), len(used_units(ALIKE, metric))

    def in_common(times: NDArray[np.float64]) -> float:
        """What the seeds' differences have in common, where units count so many times [T, U]."""
        pairs = zip(ALIKE, THEIRS, strict=True)
        each = np.stack([differences([our], [their], metric, times) for our, their in pairs])
        covariances = np.cov(each, ddof=0)
        return float(covariances[~np.eye(len(each), dtype=bool)].mean())

    without = (count - 1) * in_common(1 - np.eye(count))
    assert error.variance == pytest.approx(without, rel=0.06)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), 2000)
    assert error.variance == pytest.approx(in_common(drawn.astype(float)), rel=0.2)
    assert error.units == count
    assert error.images == sum(THEIRS[0].split.str.startswith(START[metric]))


@pytest.mark.parametrize("common", [0.9, 0.3, 0.0])
@pytest.mark.parametrize("seed", range(4))
def test_seeds_and_images_are_the_two_way_table_of_an_analysis_of_variance(
    common: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    seeds, count = 5, 60
    shared = rng.normal(size=count)
    own = rng.normal(size=(2, seeds, count))
    luck = 0.2 * rng.normal(size=(2, seeds, 1))
    right = 0.5 * own + luck + np.array([[[common]], [[-common]]]) * shared > 0
    names = [f"{n:02d}" for n in range(count)]
    sides = [
        [
            images([("id/test", *row) for row in zip(names, of_seed, strict=True)])
            for of_seed in side
        ]
        for side in right
    ]
    error = known(error_between(sides, ID))

    # The table of seeds by images, with one difference in each cell.
    table = right[0].astype(float) - right[1]
    of_seeds, of_images = table.mean(axis=1), table.mean(axis=0)
    rest = table - of_seeds[:, None] - of_images + table.mean()
    square_of_seeds = count * of_seeds.var(ddof=1)
    square_of_images = seeds * of_images.var(ddof=1)
    square_of_rest = (rest**2).sum() / ((seeds - 1) * (count - 1))
    is_positive = square_of_images > square_of_rest
    assert is_positive or common < 0.9
    floor = max(0.0, square_of_images - square_of_rest) / (seeds * count)
    assert error.variance == pytest.approx(floor)

    both = PairedTest(tuple(of_seeds.tolist()), images=error).error
    squares = [(square_of_seeds, seeds - 1)]
    if is_positive:
        squares.append((square_of_images, count - 1))
        squares.append((-square_of_rest, (seeds - 1) * (count - 1)))
    total = sum(square for square, _ in squares)
    assert both.size == pytest.approx(np.sqrt(total / (seeds * count)))
    freedom = total**2 / sum(square**2 / own_freedom for square, own_freedom in squares)
    assert both.freedom == pytest.approx(max(seeds - 1, freedom))


def test_more_seeds_help_where_seeds_have_nothing_in_common_on_images() -> None:
    def seeds_needed(ours: Sequence[Images], theirs: Sequence[Images]) -> int | None:
        error = known(error_between((ours, theirs), ID))
        test = PairedTest((0.01, 0.02, 0.03), images=error)
        return known(Power.of(test)).seeds_for(0.01, 3)

    # Both sides differ from one model, by luck alone.
    others = [answered(by, 10 + seed) for seed, by in enumerate(THEIRS)]
    assert known(seeds_needed(OURS, others)) < 30
    assert seeds_needed(ALIKE, THEIRS) is None


def test_of_a_negative_estimate_nothing_is_left_and_of_one_seed_all_images_count() -> None:
    def floor(of_mean: float, seeds: int) -> ImageError:
        return ImageError.floor(of_mean, 1.0, seeds, freedom=99, units=100, images=100)

    # A mean of four seeds without anything in common has a quarter of the variance of one.
    for of_mean in (0.25, 0.2):
        assert floor(of_mean, 4) == ImageError(0.0, 99, 100, 100, 1.0)
    assert floor(1.0, 1) == ImageError(1.0, 99, 100, 100)
    # Seeds that are alike in everything are one.
    assert floor(1.0, 4) == ImageError(1.0, 99, 100, 100)
    assert floor(0.4, 4) == pytest.approx(ImageError(0.2, 99, 100, 100, 0.8))


def test_photographs_that_are_units_have_the_variance_of_a_paired_test() -> None:
    ours, theirs = (by[by.split == "id/test"] for by in (OURS[0], THEIRS[0]))
    error = known(error_between(([ours], [theirs]), ID))
    assert error.variance == pytest.approx((ours.right - theirs.right).sem() ** 2)


def test_a_split_that_follows_the_seed_is_of_other_images_for_each() -> None:
    rng = np.random.default_rng(6)
    shown = [rng.permutation(60)[:40] for _ in range(3)]
    theirs = [
        images([("id/val", f"{n:02d}", bool(rng.random() < 0.5)) for n in sorted(numbers)])
        for numbers in shown
    ]
    # Ours is right on even images, in every seed.
    ours = [by.assign(right=(by.unit.astype(int) % 2 == 0).astype(float)) for by in theirs]
    theirs = [by.assign(right=(by.unit.astype(int) % 3 == 0).astype(float)) for by in theirs]
    error = known(error_between((ours, theirs), "id/val/top1"))
    assert error.variance > 0
    # By hand: what an image adds to the mean of each seed that has it.
    moves: dict[str, list[float]] = {f"{n:02d}": [] for n in range(60)}
    for our, their in zip(ours, theirs, strict=True):
        gains = (our.right - their.right).to_numpy()
        of_seed = dict(zip(our.unit, (gains - gains.mean()) / 40, strict=True))
        for unit, move in of_seed.items():
            moves[unit].append(move)
    units = len({*np.concatenate(shown)})
    assert (error.units, error.images) == (units, 40)
    # What two seeds have in common: the products of both on the images that both have.
    products = [sum(own) ** 2 - sum(move**2 for move in own) for own in moves.values()]
    assert error.variance == pytest.approx(units / (units - 1) * sum(products) / 6)


def test_no_error_is_known_of_other_images_of_losses_of_one_unit_and_of_what_is_not_kept() -> None:
    assert error_between((OURS[:1], THEIRS[:1])) is not None
    for less in (
        THEIRS[0].iloc[1:],  # an image less
        THEIRS[0].replace("photo-000", "photo-999"),
        THEIRS[0].replace("ood/b", "ood/c"),
    ):
        assert error_between((OURS[:1], [less])) is None
    for metric in ("ood/mean/nll", "ood/mean/macro_f1"):
        assert error_between((OURS, THEIRS), metric) is None
    same = [by.assign(unit="all") for by in THEIRS]
    assert error_between((same, same)) is None
    arms = arm_of("car_ft", range(3)), arm_of("fine_tune", range(3))
    nothing = KeptHits(lambda _run, _merge: None)
    assert nothing.difference_error([arms], range(3), OOD) is None
    # Nothing is left out of a split with one unit, or a metric that is no mean.
    hits = hits_of(images([("id/test", "x", True), ("ood/a", "y", True), ("ood/a", "z", True)]))
    assert leave_out([hits], ID, OOD) is None
    whole = hits_of(THEIRS[0])
    assert leave_out([whole], ID, "ood/mean/nll") is None
    assert leave_out([whole], "id/val/top1", OOD) is None


numbers = st.integers(0, 2**32)


@given(numbers, numbers, st.sampled_from([ID, OOD]))
def test_order_names_and_sides_of_images_do_not_matter(seed: int, other: int, metric: str) -> None:
    theirs = [drawings(seed, 8)] * 2
    ours = [answered(by, other + n) for n, by in enumerate(theirs)]
    error = known(error_between((ours, theirs), metric))
    order = np.random.default_rng(other).permutation(len(theirs[0]))
    shuffled = [[by.iloc[order] for by in side] for side in (ours, theirs)]
    assert error_between(shuffled, metric) == error
    assert error_between((theirs, ours), metric) == error
    names = pd.Series(np.random.default_rng(seed).permutation(10**4), dtype=str)
    renamed = [
        [by.assign(unit=names[by.unit.astype("category").cat.codes].to_numpy()) for by in side]
        for side in (ours, theirs)
    ]
    assert error_between(renamed, metric) == pytest.approx(error, rel=1e-9)


@given(numbers, numbers)
def test_more_views_of_the_same_drawings_are_no_more_evidence(seed: int, other: int) -> None:
    theirs = [drawings(seed, 8)]
    ours = [answered(by, other) for by in theirs]
    error = known(error_between((ours, theirs)))
    twice = known(error_between([[pd.concat([by, by]) for by in side] for side in (ours, theirs)]))
    assert twice.variance == pytest.approx(error.variance, rel=1e-9)
    assert (twice.units, twice.images) == (error.units, 2 * error.images)
    # As drawings of their own they would be twice as many, with half the variance.
    own = [[pd.concat([by, by.assign(unit=by.unit + "'")]) for by in s] for s in (ours, theirs)]
    apart = known(error_between(own))
    exactly = error.variance * (error.units - 1) / error.units / 2
    assert apart.variance * (apart.units - 1) / apart.units == pytest.approx(exactly, rel=1e-9)


@pytest.mark.parametrize("count", [12, 150])
def test_accuracies_without_a_group_are_those_of_the_other_images(count: int) -> None:
    first = drawings(3, count)
    models = [answered(first, seed) for seed in range(3)]
    left_out, units, seen = known(leave_out([hits_of(by) for by in models], ID, OOD))
    by_split = first.groupby("split").unit.nunique()
    groups = min(GROUPS, int(by_split.min()))
    assert (units, seen) == (first.unit.nunique(), len(first))
    group = groups_of(first, groups)
    for by, (id_accuracies, ood_accuracies) in zip(models, left_out, strict=True):
        rest = [by[by.unit.map(group) != number] for number in range(groups)]
        np.testing.assert_allclose(id_accuracies, [top1(each, ID) for each in rest])
        np.testing.assert_allclose(ood_accuracies, [top1(each, OOD) for each in rest])


def test_models_of_other_units_have_groups_of_their_own_and_lose_only_own_units() -> None:
    def left_out_of(*models: Images) -> tuple[Any, int, int]:
        both = [hits_of(pd.concat([by, by.assign(split="ood/a")])) for by in models]
        return known(leave_out(both, ID, OOD))

    # As where the split follows the seed: as many images, and others.
    numbers = range(20), range(5, 25)
    parts = [images([("id/test", f"{n:02d}", True) for n in own]) for own in numbers]
    assert all((of_id == 1).all() for of_id, _ in left_out_of(*parts)[0])
    smaller = images([("id/test", f"{n:02d}", n % 2 == 0) for n in range(20)])
    larger = images([("id/test", f"{n:02d}", n % 3 == 0) for n in range(10, 40)])
    left_out, units, seen = left_out_of(smaller, larger)
    assert (units, seen) == (40, 60)
    # As many groups as the smaller model has units: each of its images is out once.
    assert sorted(left_out[0][0]) == pytest.approx(sorted((10 - smaller.right) / 19))
    # Of the other each group has one image or two, of which each may be right.
    possible = [(10 - right) / (30 - size) for size in (1, 2) for right in range(size + 1)]
    assert np.isclose(left_out[1][0][:, None], possible).any(axis=1).all()


def test_a_file_that_holds_no_predictions_leaves_the_claim_to_these_images(tmp_path: Path) -> None:
    runs = []
    for seed in range(5):
        for name, trial, ood in (("fine_tune", None, 0.3), ("car_ft", 0, 0.4)):
            measured = metrics(0.6 + seed / 1_000, ood + seed * (seed % 2) * (ood > 0.3) / 1_000)
            runs.append(with_folder(run(name, seed, measured, trial=trial), tmp_path))
    whole = compare(runs, sweep="s")
    assert "for other seeds and other test images" in whole.statistics[0]
    folder = runs[0].folder
    predictions_path(known(folder), None).write_bytes(b"torn")
    torn = compare(runs, sweep="s")
    assert "on these test images" in torn.answer.lines[0]
    (warning,) = [text for text in torn.warnings if "holds no predictions" in text]
    assert str(folder) in warning
