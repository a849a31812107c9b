"""AutoFT's objective: each of its terms against the formula in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from carft_sweep.carft_core.algorithms.autoft import AutoFt, HeadedClip
from carft_sweep.carft_core.algorithms.flyp import Flyp
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.testing import batch_for, loss_of, toy_teacher
from tests.carft_core.algorithms.pairs import Array, log_softmax, walked

TERMS = [name.removesuffix("_weight") for name in AutoFt.model_fields]
NOTHING = dict.fromkeys(AutoFt.model_fields, 0.0)


def test_every_term_is_its_formula_and_counts_by_its_weight(tiny_clip: OpenedClip) -> None:
    teacher = toy_teacher(tiny_clip)
    student, batch = walked(AutoFt(), teacher), batch_for(teacher)
    assert isinstance(student, HeadedClip)
    clip, head = student.clip, student.head
    with torch.no_grad():
        logits = head(clip.image_features(batch.images)).double().numpy()
    labels = batch.labels.numpy()
    logs_of = log_softmax(logits)
    own = np.take_along_axis(logits, labels[:, None], 1)
    margins = np.maximum(0, 1 + logits - own)
    margins[np.arange(len(labels)), labels] = 0
    entropies = -(np.exp(logs_of) * logs_of).sum(1)
    wrong = logits.argmax(1) != labels
    assert 0 < wrong.sum() < len(wrong), "some are right and some wrong"
    start: dict[str, Tensor] = dict(teacher.classifier.named_parameters())
    tuned: dict[str, Tensor] = {
        f"visual.{name}": value for name, value in clip.visual.named_parameters()
    }
    tuned["head.weight"] = head.weight
    assert tuned.keys() == start.keys()

    def flat(tensors: dict[str, Tensor]) -> Array:
        return np.concatenate([tensors[name].detach().double().numpy().ravel() for name in start])

    weights, offsets = flat(tuned), flat(tuned) - flat(start)
    _, flyp = loss_of(Flyp(), clip, batch, teacher)
    expected = {
        "hinge": margins.sum(1).mean(),
        "entropy": entropies.mean(),
        "confidence": (entropies * wrong).mean(),
        "contrastive": flyp["loss"],
        "l1": np.abs(weights).mean(),
        "l2": (weights**2).mean(),
        "l1_start": np.abs(offsets).mean(),
        "l2_start": (offsets**2).mean(),
    }
    assert [*expected] == TERMS
    cross_entropy = -logs_of[np.arange(len(labels)), labels].mean()
    for name, value in expected.items():
        alone = AutoFt(**NOTHING | {f"{name}_weight": 2.0})
        _, logs = loss_of(alone, student, batch, teacher)
        assert logs[name] == pytest.approx(value, rel=1e-4), name
        assert logs["loss"] == pytest.approx(cross_entropy + 2 * value, rel=1e-4), name
    _, logs = loss_of(AutoFt(**NOTHING), student, batch, teacher)
    assert logs["loss"] == logs["cross_entropy"] == pytest.approx(cross_entropy, rel=1e-4)
