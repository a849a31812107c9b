"""Two files of metrics are compared by kind."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks.floor.equality import compare, kind_of


def results(top1: float = 0.5, kl: float = 0.1, **more: float) -> dict[str, Any]:
    return {
        "fine_tune": {
            "metrics": {"id/test/top1": 0.25, "ood/mean/top1": top1, **more},
            "merges": {"wise_ft@0.5": {"context/id/test/kl": kl}},
            "history": [{"train/loss": 1.0, "system/images_per_s": 10 * top1}],
            "seconds": top1,
        }
    }


def test_equal_files_differ_by_nothing() -> None:
    report, greatest = compare(results(), results())
    assert greatest == 0
    assert "gone: 0 values" in report


def test_the_greatest_difference_of_each_kind_is_told_with_its_place() -> None:
    report, greatest = compare(results(), results(top1=0.75, kl=0.2))
    assert greatest == 0.25
    lines = {line[:28].strip(): line for line in report.splitlines()}
    assert "fine_tune, unmerged: ood/mean/top1, 0.5 to 0.75" in lines["mean top1"]
    assert "fine_tune, wise_ft@0.5: context/id/test/kl, 0.1 to 0.2" in lines["context kl"]
    assert lines["top1"].split() == ["top1", "1", "0"]
    assert not any(name.startswith("system") for name in lines)


def test_what_is_gone_is_no_equality() -> None:
    report, greatest = compare(results(extra=1.0), results())
    assert math.isinf(greatest)
    assert "gone: 1 values: extra" in report
    report, greatest = compare(results(), results(extra=1.0))
    assert greatest == 0
    assert "new: 1 values: extra" in report


def test_a_value_that_is_no_number_is_no_equality() -> None:
    assert math.isinf(compare(results(), results(kl=math.nan))[1])


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("train/context_kl", "train/context_kl"),
        ("context/ood/pixel/entropy", "context entropy"),
        ("ood/pixel/ece", "ece"),
        ("ood/mean/ece", "mean ece"),
        ("gain/ood/top1", "gain top1"),
    ],
)
def test_kinds(name: str, kind: str) -> None:
    assert kind_of(name) == kind
