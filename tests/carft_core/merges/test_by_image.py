"""DaWin and VRF: the weight of each image, by loops, and its mark in a run's record."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
import torch

from carft_sweep.carft_core.merges import vrf
from carft_sweep.carft_core.merges.dawin import Dawin, tuned_share
from carft_sweep.carft_core.merges.vrf import DistanceWeighted, Vrf
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.two_classifiers import temperature
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.testing import batch_for
from tests.carft_core.stand_ins import watched
from tests.carft_core.trained import Config, trained


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
    for before, after in ((0.0, 0.5), (0.5, 0.0), (0.0, 0.0)):  # alike for all images
        share = tuned_share(torch.full((9,), before), torch.full((9,), after))
        weight = math.exp(-after) / (math.exp(-before) + math.exp(-after))
        torch.testing.assert_close(share, torch.full((9,), weight))


@torch.no_grad()
def test_outputs_are_mixed_by_it(teacher: Teacher) -> None:
    tuned, images, merge = teacher.new_classifier(), batch_for(teacher).images, Dawin()
    tuned.head.weight.mul_(-0.5)
    mixed = merge.model(merge.points()[0], teacher, tuned)
    probabilities = [
        torch.softmax(part(images) / temperature(part, teacher), dim=1)
        for part in (teacher.classifier, tuned)
    ]
    entropies = [torch.special.entr(part).sum(dim=1).tolist() for part in probabilities]
    share = torch.tensor(by_images(*entropies))[:, None]
    expected = (1 - share) * probabilities[0] + share * probabilities[1]
    torch.testing.assert_close(mixed(images).exp(), expected, rtol=1e-4, atol=1e-6)


def tuned(teacher: Teacher) -> ImageClassifier:
    classifier = teacher.new_classifier()
    features = teacher.features("train")
    labels = teacher.splits["train"].labels
    with torch.no_grad():
        for label in range(3):
            rows = features[labels == label] - features.mean(dim=0)
            classifier.head.weight[label] = 200 * rows.mean(dim=0)
    return classifier


def test_by_default_vrf_squares_its_distances_as_its_authors_code_does(teacher: Teacher) -> None:
    images = batch_for(teacher).images
    default = DistanceWeighted(Vrf(), teacher, tuned(teacher))
    authors = DistanceWeighted(Vrf(squared=True), teacher, tuned(teacher))
    assert torch.equal(default(images), authors(images))


@pytest.mark.parametrize("squared", [False, True])
@torch.no_grad()
def test_each_image_is_mixed_by_its_distance_to_failures(teacher: Teacher, squared: bool) -> None:
    model, merge = tuned(teacher), Vrf(neighbours=0.4, squared=squared)
    mixed = merge.model(merge.points()[0], teacher, model)
    assert isinstance(mixed, DistanceWeighted)
    features = teacher.features("train")
    failures = [
        row
        for row, label in zip(features, teacher.splits["train"].labels, strict=True)
        if model.logits(row).argmax() == label != teacher.classifier.logits(row).argmax()
    ]
    assert 2 < len(failures) < len(features)
    scales = [temperature(part, teacher) for part in (teacher.classifier, model)]
    images = batch_for(teacher).images
    for image, logits in zip(images, mixed(images), strict=True):
        own = model.features(image[None])[0]
        distances = sorted(math.dist(own.tolist(), row.tolist()) for row in failures)
        distance = distances[round(0.4 * len(failures)) - 1]
        weight = 1 / (1 + math.exp((distance ** (2 if squared else 1) - 1.5) / 0.6))
        before, after = (
            torch.softmax(part(image[None])[0] / scale, dim=0)
            for part, scale in zip((teacher.classifier, model), scales, strict=True)
        )
        expected = (1 - weight) * before + weight * after
        torch.testing.assert_close(logits.exp(), expected, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_the_temperature_makes_confidence_the_accuracy(teacher: Teacher) -> None:
    model, labels = tuned(teacher), teacher.splits["id/val"].labels
    logits = model.logits(teacher.features("id/val"))
    accuracy = (logits.argmax(dim=1) == labels).float().mean().item()
    confidence = torch.softmax(logits / temperature(model, teacher), dim=1).amax(dim=1).mean()
    assert 0.5 < accuracy < 1
    assert confidence.item() == pytest.approx(accuracy, abs=1e-3)


def test_all_logits_are_never_held(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = DistanceWeighted(Vrf(), teacher, tuned(teacher))
    rows = watched(monkeypatch, DistanceWeighted, "both_logits", lambda _, images: len(images))
    monkeypatch.setattr(vrf, "ROWS", 5)
    parts = DistanceWeighted(Vrf(), teacher, tuned(teacher))
    assert torch.equal(parts.failures, whole.failures)
    assert max(rows) == 5 < sum(rows) == len(teacher.splits["train"])


def test_without_failures_it_is_the_zero_shot_model(teacher: Teacher) -> None:
    merge, images = Vrf(), batch_for(teacher).images
    mixed = merge.model(merge.points()[0], teacher, teacher.new_classifier())
    with torch.no_grad():
        assert torch.equal(mixed(images).argmax(dim=1), teacher.classifier(images).argmax(dim=1))


def test_a_runs_record_says_that_it_is_sample_wise(toy_config: Config, tmp_path: Path) -> None:
    result = trained(toy_config({"merges": ["vrf", "wise_ft"], "optim.epochs": 1}), tmp_path)
    assert "ood/mean/top1" in result.merges["vrf"]["metrics"]
    texts = {label: RunFolder(tmp_path).metrics(label).read_text() for label in result.merges}
    marks = {label: text.count("sample-wise") for label, text in texts.items()}
    assert marks == {"vrf": 1, "wise_ft@0.5": 0}
