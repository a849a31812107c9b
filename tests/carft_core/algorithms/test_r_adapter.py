"""R-Adapter: its loss against the formula in numpy, and what it folds into the weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from carft_sweep.carft_core.algorithms.r_adapter import Adapter, RAdapter
from carft_sweep.carft_core.merges.wise_ft import WiseFt
from carft_sweep.carft_core.models.averages import Averaged
from carft_sweep.carft_core.models.classifier import built
from carft_sweep.carft_core.models.contrastive import ContrastiveClip
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import batch_for, loss_of
from tests.carft_core.algorithms.pairs import features, log_softmax, walked


def test_the_loss_is_the_formula(teacher: Teacher) -> None:
    model, batch = walked(RAdapter(), teacher).eval(), batch_for(teacher)
    _, logs = loss_of(RAdapter(), model, batch, teacher)
    scale, images, texts = features(built(model, Averaged).model, batch)
    labels = batch.labels.numpy()
    directions = []
    for similarities in (images @ texts.T, texts @ images.T):
        rows = []
        for row, label in zip(similarities, labels, strict=True):
            own = labels == label
            target = np.where(own, 0.98 / own.sum(), 0.02 / (~own).sum())
            rows.append(-(target * log_softmax(scale * (row + 0.05 * ~own)[None])[0]).sum())
        directions.append(np.mean(rows))
    assert [logs["image_to_text"], logs["text_to_image"]] == pytest.approx(directions, rel=1e-5)
    assert logs["loss"] == pytest.approx(np.mean(directions), rel=1e-5)


def test_the_folded_tower_is_the_average_and_half_of_it_is_wise_ft_at_a_half(
    teacher: Teacher,
) -> None:
    method, images = RAdapter(), batch_for(teacher).images
    model = built(method.build(teacher), Averaged)
    generator = torch.Generator().manual_seed(0)
    adapters = [it for it in model.average.modules() if isinstance(it, Adapter)]
    assert len(adapters) == 2 * (2 + 1), "two in each block of both towers"
    with torch.no_grad():
        for adapter in adapters:
            adapter.matrix.copy_(0.3 * torch.randn(32, 32, generator=generator))
    classifier = method.classifier(model, teacher).eval()
    merge = WiseFt(alphas=(0.5,))
    (half,) = (merge.model(point, teacher, classifier) for point in merge.points())
    with torch.no_grad():
        for tuned, share in ((classifier, 1.0), (half, 0.5)):
            average = copy.deepcopy(built(model.average, ContrastiveClip)).eval()
            for part in average.modules():
                if isinstance(part, Adapter):
                    part.scale.mul_(share)
            expected = average.image_features(images)
            torch.testing.assert_close(tuned.features(images), expected, rtol=1e-4, atol=1e-5)
    assert (expected - teacher.image_features(images)).abs().max() > 0.01


def test_an_adapter_is_dropped_for_some_images_in_training_alone() -> None:
    adapter, x = Adapter(4, 0.5), torch.ones(200, 3, 4)
    with torch.no_grad():
        adapter.matrix.copy_(torch.eye(4))
        torch.manual_seed(0)
        trained, evaluated = adapter.train()(x), adapter.eval()(x)
    torch.testing.assert_close(evaluated, 1.1 * x)
    assert set(trained[:, 0, 0].mul(10).round().tolist()) == {10.0, 12.0}
    assert trained.eq(trained[:, :1, :1]).all(), "whole images"
