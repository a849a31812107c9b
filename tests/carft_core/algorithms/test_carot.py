"""CaRot: its terms against their formulas in numpy, and when its average is updated."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from carft_sweep.carft_core.algorithms.carot import CaRot
from carft_sweep.carft_core.algorithms.flyp import Flyp
from carft_sweep.carft_core.models.averages import Averaged
from carft_sweep.carft_core.models.classifier import built
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.testing import batch_for, loss_of, toy_teacher
from tests.carft_core.algorithms.pairs import cross_entropy, features, walked


def test_the_terms_are_their_formulas(tiny_clip: OpenedClip) -> None:
    teacher = toy_teacher(tiny_clip)
    model, batch = built(walked(CaRot(), teacher), Averaged), batch_for(teacher)
    _, logs = loss_of(CaRot(), model, batch, teacher)
    clip: Any = model.model.clip
    visual, text = (it.detach().double().numpy() for it in (clip.visual.proj, clip.text_projection))
    cross, gram = visual @ text.T, visual.T @ visual - np.eye(visual.shape[1])
    assert logs["cross"] == pytest.approx(np.sqrt((cross**2).sum()), rel=1e-5)
    assert logs["orthogonality"] == pytest.approx(np.sqrt((gram**2).sum()), rel=1e-5)
    new, old = (
        scale * images @ texts.T
        for scale, images, texts in (features(it, batch) for it in (model.model, model.average))
    )
    expected = cross_entropy(old, new) + cross_entropy(old.T, new.T)
    assert logs["distillation"] == pytest.approx(expected, rel=1e-5)
    contrast = float(loss_of(Flyp(), model.model, batch, teacher)[0].detach())
    terms = 0.05 * logs["cross"] + 0.2 * logs["orthogonality"] + 1.5 * logs["distillation"]
    assert logs["loss"] == pytest.approx(contrast + terms, rel=1e-5)


def test_the_average_is_updated_every_so_often_with_a_momentum_that_rises(
    tiny_clip: OpenedClip,
) -> None:
    method, teacher = CaRot(every=2), toy_teacher(tiny_clip)
    model = built(walked(method, teacher), Averaged)
    weight, average = model.model.clip.logit_scale, model.average.clip.logit_scale  # type: ignore[union-attr]
    assert isinstance(weight, torch.Tensor)
    assert isinstance(average, torch.Tensor)
    for step, momentum in ((0, 0.05), (1, 1.0), (2, 0.05 + 0.85 * 0.5), (4, 0.9), (18, 0.9)):
        with torch.no_grad():
            weight.fill_(1.0)
            average.fill_(0.0)
            method.after_step(model, step, 20)
        assert average.item() == pytest.approx(1 - momentum, rel=1e-6)
