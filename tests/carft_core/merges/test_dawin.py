"""DaWin: the weight of each image among all of its split."""

from __future__ import annotations

import math
import statistics

import pytest
import torch

from carft_sweep.carft_core.merges.dawin import Dawin, tuned_share
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.two_classifiers import temperature
from carft_sweep.carft_core.testing import batch_for


def by_images(before: list[float], after: list[float]) -> list[float]:
    """The authors' formula, image by image."""
    means = [statistics.fmean(of) for of in (before, after)]
    bias = sum(statistics.stdev(of) / m for of, m in zip((before, after), means, strict=True)) / 2
    weight = sum(means) / means[0]
    return [
        (math.exp(-f) + bias / weight) / (math.exp(-z) + math.exp(-f) + bias)
        for z, f in zip(before, after, strict=True)
    ]


def test_the_share_is_the_authors_coefficient() -> None:
    entropies = torch.rand(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = by_images(*entropies.tolist())
    assert tuned_share(*entropies).tolist() == pytest.approx(expected, rel=1e-12)
    assert tuned_share(*entropies[:, :1]).isfinite().all()


def test_a_model_that_is_certain_of_all_images_has_a_share() -> None:
    for before, after in ((0.0, 0.5), (0.5, 0.0), (0.0, 0.0)):
        share = tuned_share(torch.full((9,), before), torch.full((9,), after))
        weight = math.exp(-after) / (math.exp(-before) + math.exp(-after))
        torch.testing.assert_close(share, torch.full((9,), weight))


@torch.no_grad()
def test_outputs_are_mixed_by_it(teacher: Teacher) -> None:
    tuned, images, merge = teacher.new_classifier(), batch_for(teacher).images, Dawin()
    tuned.head.weight.mul_(-0.5)
    mixed = merge.model(merge.points()[0], teacher, tuned)
    both = [
        torch.softmax(part(images) / temperature(part, teacher), dim=1)
        for part in (teacher.classifier, tuned)
    ]
    entropies = [torch.special.entr(part).sum(dim=1).tolist() for part in both]
    share = torch.tensor(by_images(*entropies))[:, None]
    expected = (1 - share) * both[0] + share * both[1]
    torch.testing.assert_close(mixed(images).exp(), expected, rtol=1e-4, atol=1e-6)
