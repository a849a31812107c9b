"""CAR-FT's formula, and the traps that silently turn it into fine-tuning."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from carft_core.algorithms.base import Batch
from carft_core.algorithms.car_ft import CarFt
from carft_core.clip import ImageClassifier, OpenedClip
from carft_core.prompts import class_weights, context_weights, template_set, text_features
from carft_core.teacher import Teacher


@pytest.fixture(scope="module")
def teacher(tiny_clip: OpenedClip) -> Teacher:
    classes, contexts = template_set("simple"), template_set("openai")
    names = ["anchor", "bell", "cat"]
    w_cls = class_weights(text_features(tiny_clip, classes, names, device=torch.device("cpu")))
    w_ctx = context_weights(text_features(tiny_clip, contexts, names, device=torch.device("cpu")))
    return Teacher(tiny_clip, w_cls, w_ctx, contexts, torch.device("cpu"))


@pytest.fixture
def batch(teacher: Teacher) -> Batch:
    images = torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Batch(images, torch.tensor([0, 1, 2, 0, 1]), 0.0, teacher.features(images))


def naive_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    exp = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exp / exp.sum(axis=1, keepdims=True)


def moved(teacher: Teacher) -> ImageClassifier:
    """A student that has left the teacher a little."""
    student = teacher.new_classifier()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return student.eval()


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
def test_the_kl_is_the_papers_formula(teacher: Teacher, batch: Batch, direction: str) -> None:
    student = moved(teacher)
    terms = CarFt(kl_direction=direction).terms(student, batch, teacher)  # type: ignore[arg-type]
    w_ctx = teacher.w_ctx.double().numpy()
    with torch.no_grad():
        tuned = student.features(batch.images).double().numpy()
    assert batch.teacher_features is not None
    frozen = batch.teacher_features.double().numpy()
    p = naive_softmax(teacher.scale * frozen @ w_ctx.T)
    q = naive_softmax(teacher.scale * tuned @ w_ctx.T)
    if direction == "student_teacher":
        p, q = q, p
    expected = (p * (np.log(p) - np.log(q))).sum(axis=1).mean()
    assert expected > 1e-3
    assert float(terms["context_kl"].value.detach()) == pytest.approx(expected, rel=1e-4)


def test_the_kl_is_exactly_zero_before_the_first_step(teacher: Teacher, batch: Batch) -> None:
    student = teacher.new_classifier().eval()
    terms = CarFt().terms(student, batch, teacher)
    assert float(terms["context_kl"].value.detach()) == 0.0


def test_a_context_scale_of_one_makes_the_kl_vanish(teacher: Teacher, batch: Batch) -> None:
    student = moved(teacher)
    with_scale = float(CarFt().terms(student, batch, teacher)["context_kl"].value.detach())
    without = float(
        CarFt(context_scale=1.0).terms(student, batch, teacher)["context_kl"].value.detach()
    )
    assert without < with_scale / 50


def test_the_kl_does_not_depend_on_the_batch_size(teacher: Teacher, batch: Batch) -> None:
    student = moved(teacher)
    assert batch.teacher_features is not None
    doubled = Batch(
        batch.images.repeat(2, 1, 1, 1),
        batch.labels.repeat(2),
        0.0,
        batch.teacher_features.repeat(2, 1),
    )
    one = float(CarFt().terms(student, batch, teacher)["context_kl"].value.detach())
    two = float(CarFt().terms(student, doubled, teacher)["context_kl"].value.detach())
    assert one == pytest.approx(two, rel=1e-5)


def test_weight_zero_is_logged_but_not_in_the_graph(teacher: Teacher, batch: Batch) -> None:
    student = moved(teacher)
    term = CarFt(kl_weight=0.0).terms(student, batch, teacher)["context_kl"]
    assert float(term.value) > 0
    assert term.weight == 0
    assert not term.value.requires_grad


def test_the_teachers_context_entropy_is_that_of_its_softmax(
    teacher: Teacher, batch: Batch
) -> None:
    assert batch.teacher_features is not None
    p = naive_softmax(
        teacher.scale * batch.teacher_features.double().numpy() @ teacher.w_ctx.double().numpy().T
    )
    expected = -(p * np.log(p)).sum(axis=1).mean()
    told = CarFt().probe(batch, teacher)["teacher_context_entropy"]
    assert told == pytest.approx(expected, rel=1e-4)


def test_a_kl_too_small_to_act_is_warned_of() -> None:
    small = [{"train/context_kl": 0.0}, {"train/context_kl": 2e-4}]
    large = [{"train/context_kl": 0.0}, {"train/context_kl": 0.2}]
    assert "too small to act" in CarFt(kl_weight=1.0).warnings(small)[0]
    assert "a single template?" in CarFt(kl_weight=1.0).warnings([small[0], small[0]])[0]
    assert CarFt(kl_weight=1.0).warnings(large) == []
    assert CarFt(kl_weight=0.0).warnings(small) == []


@pytest.mark.parametrize("kl_weight", [-1.0, float("nan"), float("inf"), "1", True])
def test_a_kl_weight_must_be_a_finite_number_from_zero_on(kl_weight: object) -> None:
    with pytest.raises(ValueError, match="kl_weight"):
        CarFt(kl_weight=kl_weight)  # type: ignore[arg-type]
