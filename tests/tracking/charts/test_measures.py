"""Metrics are called by their words and shown in their unit."""

from __future__ import annotations

import pytest

from tracking.charts.base import ends, form, percent, scaled, titled
from tracking.comparison.statistics import Interval


@pytest.mark.parametrize(
    ("metric", "title"),
    [
        ("id/val/top1", "ID val top-1 (%)"),
        ("id/test/ece", "ID test ECE (%)"),
        ("ood/mean/top1", "OOD mean top-1 (%)"),
        ("ood/outline/nll", "outline NLL (nats)"),
        ("context/ood/outline/kl", "context/ood/outline KL (nats)"),
        ("train/loss", "train loss"),
        ("ood/mean/brier", "OOD mean Brier score"),
    ],
)
def test_an_axis_says_what_it_shows(metric: str, title: str) -> None:
    assert titled(metric) == title


def test_fractions_are_in_percent_and_the_rest_as_it_is() -> None:
    assert scaled("id/test/top1", 0.65432109) == 65.432
    assert scaled("train/loss", 1.23456789) == 1.23457
    assert (form("id/test/top1"), form("train/loss")) == (".1f", ".4g")
    assert str(percent(-1e-9)) == "0.0"
    assert ends(Interval(0.1, 0.2), "x") == {"x low": 10.0, "x high": 20.0}
    assert ends(None, "x") == {}
