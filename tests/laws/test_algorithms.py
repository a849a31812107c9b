"""What holds for every algorithm. A new one is tested by being registered."""

from __future__ import annotations

import json
import pickle

import pytest
import torch

from carft_core.algorithms import ALGORITHMS, Algorithm, Batch
from carft_core.clip import ImageClassifier, OpenedClip
from carft_core.config import trial_config
from carft_core.prompts import class_weights, context_weights, template_set, text_features
from carft_core.teacher import Teacher

TRAINING = [name for name, cls in ALGORITHMS.items() if cls.trains]


@pytest.fixture(scope="module")
def teacher(tiny_clip: OpenedClip) -> Teacher:
    templates = template_set("simple")
    w_raw = text_features(tiny_clip, templates, ["anchor", "bell", "cat"], cache=None)
    cpu = torch.device("cpu")
    return Teacher(tiny_clip, class_weights(w_raw), context_weights(w_raw), templates, cpu)


def batch_for(algorithm: Algorithm, teacher: Teacher, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(6, 3, 32, 32, generator=generator)
    wants = "features" in algorithm.teacher_quantities
    return Batch(
        images, torch.tensor([0, 1, 2, 0, 1, 2]), 0.0, teacher.features(images) if wants else None
    )


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_is_frozen_says_what_it_is_and_survives_json_and_pickle(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    assert algorithm.name == name
    assert algorithm.summary
    assert "Source:" in (type(algorithm).__doc__ or "")
    for field in type(algorithm).model_fields:
        with pytest.raises(ValueError, match="frozen"):
            setattr(algorithm, field, getattr(algorithm, field))
    assert type(algorithm).model_validate(json.loads(algorithm.model_dump_json())) == algorithm
    assert pickle.loads(pickle.dumps(algorithm)) == algorithm


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_algorithm_refuses_a_field_it_does_not_have(name: str) -> None:
    with pytest.raises(ValueError, match="no_such_field"):
        trial_config({"algorithm": {"name": name, "no_such_field": 1}})


@pytest.mark.parametrize("name", TRAINING)
def test_the_loss_is_finite_and_its_gradient_reaches_the_student_only(
    name: str, teacher: Teacher
) -> None:
    algorithm = ALGORITHMS[name]()
    student = algorithm.student(teacher)
    before = {key: value.clone() for key, value in teacher.classifier.state_dict().items()}
    terms = algorithm.terms(student, batch_for(algorithm, teacher), teacher)
    loss = torch.stack([t.weight * t.value for t in terms.values()]).sum()
    loss.backward()
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    assert torch.isfinite(loss)
    trained = [p for _, p in algorithm.trainable(student) if p.requires_grad]
    assert trained
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    assert all(p.grad is None for p in teacher.classifier.parameters())
    after = teacher.classifier.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", TRAINING)
def test_two_calls_on_the_same_batch_agree_to_the_bit(name: str, teacher: Teacher) -> None:
    algorithm = ALGORITHMS[name]()
    student = algorithm.student(teacher).eval()
    one = algorithm.terms(student, batch_for(algorithm, teacher), teacher)
    two = algorithm.terms(student, batch_for(algorithm, teacher), teacher)
    assert {k: float(t.value.detach()) for k, t in one.items()} == {
        k: float(t.value.detach()) for k, t in two.items()
    }


@pytest.mark.parametrize("name", TRAINING)
def test_a_loss_over_a_batch_is_the_mean_of_its_micro_batches(name: str, teacher: Teacher) -> None:
    algorithm = ALGORITHMS[name]()
    if algorithm.loss_depends_on_batch:
        pytest.skip("a contrastive loss is no mean over items; its micro-batch is in the digest")
    student = algorithm.student(teacher).eval()
    whole = batch_for(algorithm, teacher)
    features = whole.teacher_features
    halves = [
        Batch(whole.images[p], whole.labels[p], 0.0, None if features is None else features[p])
        for p in (slice(0, 3), slice(3, 6))
    ]
    terms = algorithm.terms(student, whole, teacher)
    parts = [algorithm.terms(student, half, teacher) for half in halves]
    for key, term in terms.items():
        mean = sum(float(part[key].value.detach()) for part in parts) / 2
        assert float(term.value.detach()) == pytest.approx(mean, abs=1e-6)


@pytest.mark.parametrize("name", TRAINING)
def test_the_loss_is_finite_in_bf16(name: str, teacher: Teacher) -> None:
    algorithm = ALGORITHMS[name]()
    student = algorithm.student(teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = algorithm.terms(student, batch_for(algorithm, teacher), teacher)
    assert all(torch.isfinite(term.value) for term in terms.values())


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_is_evaluated_starts_as_the_zero_shot_classifier(name: str, teacher: Teacher) -> None:
    algorithm = ALGORITHMS[name]()
    classifier = algorithm.classifier(algorithm.student(teacher), teacher)
    assert isinstance(classifier, ImageClassifier)
    images = batch_for(algorithm, teacher).images
    with torch.no_grad():
        assert torch.equal(classifier.eval()(images), teacher.classifier(images))
