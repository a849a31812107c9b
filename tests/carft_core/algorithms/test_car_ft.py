"""CAR-FT's formula, and the traps that silently turn it into fine-tuning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Batch
from carft_sweep.carft_core.algorithms.car_ft import CarFt
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.models.prompts import context_weights, template_set, text_features
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import batch_for, toy_teacher
from tests.carft_core.algorithms.pairs import walked


@pytest.fixture(scope="module")
def teacher(tiny_clip: OpenedClip) -> Teacher:
    teacher, contexts = toy_teacher(tiny_clip), template_set("openai")
    features = text_features(tiny_clip, contexts, teacher.class_names, device=teacher.device)
    return replace(teacher, contexts=contexts, w_ctx=context_weights(features))


@pytest.fixture
def batch(teacher: Teacher) -> Batch:
    return batch_for(teacher)


def logged(algorithm: CarFt, student: ImageClassifier, batch: Batch, teacher: Teacher) -> float:
    _, logs = algorithm.loss(student, batch, teacher)
    return float(logs["context_kl"].detach())


def distributions(teacher: Teacher, *features: Tensor) -> list[NDArray[np.float64]]:
    """Over the contexts, by numpy."""
    w_ctx, probabilities = teacher.w_ctx.double().numpy(), []
    for rows in features:
        logits = teacher.scale * rows.detach().double().numpy() @ w_ctx.T
        exp = np.exp(logits - logits.max(axis=1, keepdims=True))
        probabilities.append(exp / exp.sum(axis=1, keepdims=True))
    return probabilities


def moved(teacher: Teacher) -> ImageClassifier:
    return built(walked(CarFt(), teacher), ImageClassifier).eval()


def test_kl_and_entropy_are_the_papers_formulas(teacher: Teacher, batch: Batch) -> None:
    student = moved(teacher)
    p, q = distributions(teacher, batch.zero_shot(), student.features(batch.images))
    for direction, target, other in (("teacher_student", p, q), ("student_teacher", q, p)):
        algorithm = CarFt.model_validate({"kl_direction": direction})
        expected = (target * (np.log(target) - np.log(other))).sum(axis=1).mean()
        assert expected > 1e-3
        _, logs = algorithm.loss(student, batch, teacher)
        assert float(logs["context_kl"].detach()) == pytest.approx(expected, rel=1e-4)
        entropy = -(p * np.log(p)).sum(axis=1).mean()
        assert float(logs["teacher_context_entropy"]) == pytest.approx(entropy, rel=1e-4)


def test_the_loss_is_the_cross_entropy_plus_the_weighted_kl(teacher: Teacher, batch: Batch) -> None:
    smoothed, student = replace(batch, label_smoothing=0.1), moved(teacher)
    loss, logs = CarFt(kl_weight=0.3).loss(student, smoothed, teacher)
    expected = F.cross_entropy(student(batch.images), batch.labels, label_smoothing=0.1)
    assert float(logs["cross_entropy"].detach()) == pytest.approx(float(expected.detach()))
    total = logs["cross_entropy"] + 0.3 * logs["context_kl"]
    assert float(loss.detach()) == pytest.approx(float(total.detach()))
    loss.backward()
    assert all(parameter.grad is not None for parameter in student.parameters())


def test_the_kl_is_zero_before_a_step_and_small_unscaled(teacher: Teacher, batch: Batch) -> None:
    student = teacher.new_classifier().eval()
    assert logged(CarFt(), student, batch, teacher) == 0.0
    assert logged(CarFt(), student.train(), batch, teacher) == 0.0
    student = moved(teacher)
    without = logged(CarFt(context_scale=1.0), student, batch, teacher)
    assert without < logged(CarFt(), student, batch, teacher) / 50


def test_a_batch_without_the_teacher_is_refused(teacher: Teacher, batch: Batch) -> None:
    alone = Batch(images=batch.images, labels=batch.labels, index=batch.index)
    with pytest.raises(ValueError, match="without the teacher's features"):
        CarFt().loss(moved(teacher), alone, teacher)


def test_a_kl_too_small_to_act_is_warned_of() -> None:
    small = [{"train/context_kl": 0.0}, {"train/context_kl": 2e-4}]
    large = [{"train/context_kl": 0.0}, {"train/context_kl": 0.2}]
    assert "too small to act" in CarFt(kl_weight=1.0).warnings(small)[0]
    assert "a single template?" in CarFt(kl_weight=1.0).warnings([small[0], small[0]])[0]
    assert CarFt(kl_weight=1.0).warnings(large) == []
    assert CarFt(kl_weight=0.0).warnings(small) == []


def test_a_kl_weight_must_be_a_finite_number_from_zero_on() -> None:
    for wrong in (-1.0, float("nan"), float("inf"), "1", True):
        with pytest.raises(ValueError, match="kl_weight"):
            CarFt(kl_weight=wrong)  # type: ignore[arg-type]
