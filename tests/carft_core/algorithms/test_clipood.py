"""CLIPood: its loss against the formula in numpy, and what it trains and returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carft_sweep.carft_core.algorithms.clipood import ClipOod
from carft_sweep.carft_core.models.averages import Averaged, beta_decay
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.testing import batch_for, loss_of, started, toy_teacher
from tests.carft_core.algorithms.pairs import log_softmax, walked


def test_the_loss_is_the_formula_and_the_head_stays(tiny_clip: OpenedClip) -> None:
    teacher = toy_teacher(tiny_clip)
    student, batch = started(ClipOod(), teacher), batch_for(teacher)
    trained = built(built(student, Averaged).model, ImageClassifier)
    assert trained.head.weight.requires_grad is False
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape))
        features = trained.features(batch.images).double().numpy()
    texts, labels = teacher.w_cls.double().numpy(), batch.labels.numpy()
    logits = features @ texts.T + 0.3 * (1 - texts[labels] @ texts.T)
    for margin, values in ((0.3, logits), (0.0, features @ texts.T)):
        _, logs = loss_of(ClipOod(margin=margin), student, batch, teacher)
        expected = -log_softmax(teacher.scale * values)[np.arange(len(labels)), labels].mean()
        assert logs["loss"] == pytest.approx(expected, rel=1e-4)
    assert logs["loss"] == logs["cross_entropy"]


def test_the_result_is_the_average_after_each_step(tiny_clip: OpenedClip) -> None:
    method, teacher = ClipOod(), toy_teacher(tiny_clip)
    model = built(walked(method, teacher), Averaged)
    weight, average = next(model.model.parameters()), next(model.average.parameters())
    decay = beta_decay(3, 10, 0.5)
    expected = decay * average.double() + (1 - decay) * weight.double()
    with torch.no_grad():
        method.after_step(model, 3, 10)
    torch.testing.assert_close(average.double(), expected, rtol=1e-5, atol=1e-6)
    assert method.classifier(model, teacher) is model.average
