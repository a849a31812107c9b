"""Differences by split, and the context probe."""

from __future__ import annotations

import pytest

from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.comparison.statistics import PairedTest
from tests.tracking.charts.drawn import data_of, spec_of


def test_a_shift_has_the_paired_difference_in_points(plain: ChartData) -> None:
    rows = data_of(spec_of("shifts", plain), "difference", "split")
    by_place = {(row["setting"], row["split"]): row for row in rows}
    candidate, reference = (
        next(row.arm for row in plain.comparison.rows if row.arm.label == label)
        for label in ("car_ft kl_weight=1", "fine_tune")
    )
    metric = "ood/pixel/top1"
    sides = (candidate.values(metric).values(), reference.values(metric).values())
    test = PairedTest(tuple(one - two for one, two in zip(*sides, strict=True)))
    assert test.ci95 is not None
    row = by_place["car_ft kl_weight=1", "pixel"]
    assert row["difference"] == pytest.approx(100 * test.mean, abs=1e-3)
    assert row["difference low"] == pytest.approx(100 * test.ci95.low, abs=1e-3)
    assert row["pairs"] == 5
    order = list(dict.fromkeys(row["split"] for row in rows))
    assert order == ["ID test", "OOD mean", "flat_emoji", "outline", "pixel"]
    assert ("fine_tune", "pixel") not in by_place


def test_up_to_ten_seeds_each_has_a_dot(plain: ChartData) -> None:
    rows = data_of(spec_of("shifts", plain), "difference of a seed")
    own = [it for it in rows if (it["setting"], it["split"]) == ("car_ft kl_weight=1", "pixel")]
    candidate, reference = (
        next(row.arm for row in plain.comparison.rows if row.arm.label == label)
        for label in ("car_ft kl_weight=1", "fine_tune")
    )
    metric = "ood/pixel/top1"
    sides = (candidate.values(metric).values(), reference.values(metric).values())
    assert [it["difference of a seed"] for it in own] == pytest.approx(
        [100 * (one - two) for one, two in zip(*sides, strict=True)], abs=1e-3
    )


def test_the_context_probe_has_each_split_and_no_validation(everything: ChartData) -> None:
    rows = data_of(spec_of("context", everything), "split", "kl", "entropy")
    assert {row["split"] for row in rows} == {"ID test", "outline", "flat_emoji", "pixel"}
    probes = [row for row in rows if row["setting"] == "fine_tune lr=0.0001"]
    assert all(row["kl"] == pytest.approx(0.5 + 0.002 / 3, abs=1e-5) for row in probes)
    assert all(row["kl low"] < row["kl"] < row["kl high"] for row in probes)
