"""Feature distillation: the distance against its formula in numpy."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from carft_sweep.carft_core.algorithms.feature_distillation import FeatureDistillation
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.testing import batch_for, loss_of, toy_teacher
from tests.golden.write import moved


def test_the_distance_is_the_formula_and_weight_zero_is_fine_tuning(tiny_clip: OpenedClip) -> None:
    teacher = toy_teacher(tiny_clip)
    student, batch = moved(teacher, 1), batch_for(teacher)
    _, logs = loss_of(FeatureDistillation(distillation_weight=3.0), student, batch, teacher)
    towers: tuple[Any, Any] = (student.visual, teacher.classifier.visual)
    with torch.no_grad():
        tuned, frozen = (tower(batch.images).double().numpy() for tower in towers)
    expected = ((tuned - frozen) ** 2).sum() / tuned.size
    assert expected > 1e-7
    assert logs["distance"] == pytest.approx(expected, rel=1e-4)
    assert logs["loss"] == pytest.approx(logs["cross_entropy"] + 3 * logs["distance"])
    loss, terms = FeatureDistillation(distillation_weight=0.0).loss(student, batch, teacher)
    assert loss is terms["cross_entropy"]
