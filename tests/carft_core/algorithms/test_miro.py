"""MIRO: its regulariser against the formula in numpy, and what trains at which rate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from carft_sweep.carft_core.algorithms.miro import Miro, WithVariances
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.models.towers import outputs_by_depth
from carft_sweep.carft_core.testing import batch_for, loss_of, toy_teacher
from carft_sweep.carft_core.training.optim import OptimConfig
from tests.carft_core.algorithms.pairs import walked


def test_the_regulariser_is_the_formula(tiny_clip: OpenedClip) -> None:
    method, teacher = Miro(information_weight=0.7), toy_teacher(tiny_clip)
    model, batch = walked(method, teacher), batch_for(teacher)
    assert isinstance(model, WithVariances)
    _, logs = loss_of(method, model, batch, teacher)
    with torch.no_grad():
        towers = (model.classifier.visual, teacher.classifier.visual)
        tuned, frozen = (outputs_by_depth(tower, batch.images)[1] for tower in towers)
    expected = 0.0
    for one, two, raw in zip(tuned, frozen, model.raw, strict=True):
        variance = np.log1p(np.exp(raw.detach().double().numpy())) + 1e-5
        assert variance == pytest.approx(0.1, rel=0.8)
        squares = (one.double().numpy() - two.double().numpy()) ** 2
        expected += (squares / variance + np.log(variance)).mean() / 2
    assert logs["information"] == pytest.approx(expected, rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["cross_entropy"] + 0.7 * expected, rel=1e-5)


def test_the_variances_start_at_a_tenth_and_have_their_own_rate(tiny_clip: OpenedClip) -> None:
    method, teacher = Miro(), toy_teacher(tiny_clip)
    model = method.build(teacher)
    assert all(torch.allclose(it, torch.tensor(0.1)) for it in model.variances())
    *others, of_variances = method.groups(model, OptimConfig())
    assert [group["lr_scale"] for group in others] == [1.0]
    assert of_variances["lr_scale"] == 10
    assert [*map(id, of_variances["params"])] == [*map(id, model.raw)]
    loss, logs = Miro(information_weight=0.0).loss(model, batch_for(teacher), teacher)
    assert loss is logs["cross_entropy"]
