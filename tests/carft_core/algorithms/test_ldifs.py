"""LDIFS: the distance against its formula in numpy, and its traps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from carft_sweep.carft_core.algorithms.ldifs import Ldifs
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import batch_for, loss_of
from tests.golden.write import moved


def tokens(visual: Any, images: Tensor) -> list[NDArray[np.float64]]:
    """After the first norm and after each of the two blocks of the tiny ViT, by its own parts."""
    with torch.no_grad():
        out = [visual._embeds(images)]
        for block in visual.transformer.resblocks:
            out.append(block(out[-1]))
    return [layer.double().numpy() for layer in out]


def test_the_distance_is_the_formula(teacher: Teacher) -> None:
    student, batch = moved(teacher, 1), batch_for(teacher)
    _, logs = loss_of(Ldifs(ldifs_weight=3.0), student, batch, teacher)
    towers = (student.visual, teacher.classifier.visual)
    squares = []
    for own, frozen in zip(*(tokens(tower, batch.images) for tower in towers), strict=True):
        one, two = (it / np.sqrt((it**2).sum(axis=1, keepdims=True)) for it in (own, frozen))
        squares.append(((one - two) ** 2).sum() / one.size)
    assert np.mean(squares) > 1e-7
    assert logs["distance"] == pytest.approx(np.mean(squares), rel=1e-4)
    assert logs["loss"] == pytest.approx(logs["cross_entropy"] + 3 * logs["distance"])


def test_it_is_zero_at_the_zero_shot_model_and_weight_zero_is_fine_tuning(teacher: Teacher) -> None:
    batch = batch_for(teacher)
    assert loss_of(Ldifs(), teacher.new_classifier(), batch, teacher)[1]["distance"] == 0
    loss, logs = Ldifs(ldifs_weight=0.0).loss(moved(teacher, 1), batch, teacher)
    assert loss is logs["cross_entropy"]
    assert not logs["distance"].requires_grad
