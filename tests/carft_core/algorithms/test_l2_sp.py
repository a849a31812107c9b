"""L2-SP: the penalty against its formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest

from carft_sweep.carft_core.algorithms.l2_sp import L2Sp
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.testing import batch_for, loss_of, toy_teacher
from tests.golden.write import moved


def test_the_penalty_is_half_the_squared_distance_of_the_tower_alone(tiny_clip: OpenedClip) -> None:
    teacher = toy_teacher(tiny_clip)
    student, batch = moved(teacher, 1), batch_for(teacher)
    _, logs = loss_of(L2Sp(alpha=3.0), student, batch, teacher)
    before = teacher.classifier.state_dict()
    offsets = [
        (tensor.double() - before[name].double()).numpy().ravel()
        for name, tensor in student.state_dict().items()
        if name != "head.weight"
    ]
    expected = np.linalg.norm(np.concatenate(offsets)) ** 2
    assert expected > 1e-3
    assert logs["distance"] == pytest.approx(expected, rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["cross_entropy"] + 3 / 2 * logs["distance"])
    loss, terms = L2Sp(alpha=0.0).loss(student, batch, teacher)
    assert loss is terms["cross_entropy"]
