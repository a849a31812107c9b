"""StarFT: its KL against the formula in numpy, and its weight, which sinks to nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from carft_sweep.carft_core.algorithms.flyp import Flyp
from carft_sweep.carft_core.algorithms.starft import StarFt
from carft_sweep.carft_core.models.classifier import built
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.models.contrastive import ContrastiveClip, caption_tokens
from carft_sweep.carft_core.models.prompts import TemplateSet
from carft_sweep.carft_core.testing import batch_for, loss_of, toy_teacher
from tests.carft_core.algorithms.pairs import features, log_softmax, walked

BACKGROUND = TemplateSet("background", ("a {} at night",))


def test_the_loss_is_the_formula_and_the_weight_sinks(tiny_clip: OpenedClip) -> None:
    teacher = replace(toy_teacher(tiny_clip), contexts=BACKGROUND)
    model, batch = walked(StarFt(), teacher), batch_for(teacher)
    _, images, _ = features(model, batch)
    tokens = caption_tokens(teacher, BACKGROUND)[0, batch.labels]
    with torch.no_grad():
        texts = built(model, ContrastiveClip).text_features(tokens).double().numpy()
        zero_shot = (batch.zero_shot(), teacher.text_features(tokens))
        old_images, old_texts = (it.double().numpy() for it in zero_shot)
    labels = batch.labels.numpy()
    own = labels[:, None] == labels
    old, new = (
        log_softmax(np.where(own, -1e8, teacher.scale * f @ u.T))
        for f, u in ((old_images, old_texts), (images, texts))
    )
    expected = (np.exp(old) * (old - new)).sum(axis=1).mean()
    assert expected > 1e-3
    contrast = float(loss_of(Flyp(), model, batch, teacher)[0].detach())
    for step, weight in ((0, 0.5 * 0.9), (9, 0.0)):
        own_step = replace(batch, step=step)
        _, logs = loss_of(StarFt(), model, own_step, teacher)
        assert logs["spurious_kl"] == pytest.approx(expected, rel=1e-4)
        if step == 0:
            assert logs["loss"] == pytest.approx(contrast + weight * expected, rel=1e-5)
        else:
            assert logs["loss"] == loss_of(Flyp(), model, own_step, teacher)[1]["loss"]
