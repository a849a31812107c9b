"""What holds for every algorithm."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from carft_core.algorithms import ALGORITHMS, Algorithm, Batch
from carft_core.clip import ImageClassifier, open_model
from carft_core.contracts.base import must, must_be_plain_settings, must_be_registered
from carft_core.prompts import class_weights, context_weights, template_set, text_features
from carft_core.teacher import Teacher

LABELS = (0, 1, 2, 0, 1, 2)


def check_algorithm(cls: type[Algorithm], teacher: Teacher | None = None) -> None:
    """Hold a registered algorithm, with its fields at their defaults, to every law.

    On the CPU, with a few random images of 32 pixels; `teacher` has three classes and is by
    default made of the built-in CLIP. Raises BrokenContract with what must hold and does not.
    """
    for law in ALGORITHM_LAWS:
        law(cls, teacher or built_in_teacher())


@functools.cache
def built_in_teacher() -> Teacher:
    """The built-in CLIP as the zero-shot classifier of three things."""
    clip = open_model("builtin")
    contexts = template_set("simple")
    w_raw = text_features(clip, contexts, ["anchor", "bell", "cat"], cache=None)
    cpu = torch.device("cpu")
    return Teacher(clip, class_weights(w_raw), context_weights(w_raw), contexts, cpu)


def batch_for(algorithm: Algorithm, teacher: Teacher) -> Batch:
    """Six random images of three classes, with what the algorithm asks of the teacher."""
    images = torch.randn(len(LABELS), 3, 32, 32, generator=torch.Generator().manual_seed(0))
    features = teacher.features(images) if "features" in algorithm.teacher_quantities else None
    return Batch(images, torch.tensor(LABELS), 0.0, features)


def it_is_registered_frozen_and_survives_json_and_pickle(
    cls: type[Algorithm], teacher: Teacher
) -> None:
    """A sweep file speaks of it by its name, and workers get it whole."""
    del teacher
    must_be_registered(ALGORITHMS, cls.name, cls)
    must_be_plain_settings(cls, cls.name)


def the_loss_is_finite_and_its_gradient_reaches_the_student_only(
    cls: type[Algorithm], teacher: Teacher
) -> None:
    """A step of training moves what is said to train, and leaves the teacher as it was."""
    algorithm = cls()
    if not algorithm.trains:
        return
    student = algorithm.student(teacher)
    before = {key: value.clone() for key, value in teacher.classifier.state_dict().items()}
    terms = algorithm.terms(student, batch_for(algorithm, teacher), teacher)
    loss = torch.stack([term.weight * term.value for term in terms.values()]).sum()
    loss.backward()
    loss = loss.detach()
    torch.optim.SGD(student.parameters(), lr=0.1).step()
    must(bool(torch.isfinite(loss)), f"{cls.name}: the loss must be finite, and is {float(loss)}")
    trained = [p for _, p in algorithm.trainable(student) if p.requires_grad]
    must(bool(trained), f"{cls.name}: some parameter must be trainable")
    must(
        any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in trained),
        f"{cls.name}: the gradient of the loss must reach some trainable parameter",
    )
    after = teacher.classifier.state_dict()
    must(
        all(p.grad is None for p in teacher.classifier.parameters())
        and all(torch.equal(before[key], after[key]) for key in before),
        f"{cls.name}: the teacher must stay as it is, without a gradient",
    )


def two_calls_on_the_same_batch_agree_to_the_bit(cls: type[Algorithm], teacher: Teacher) -> None:
    """A loss keeps nothing between two calls, and draws nothing at random."""
    algorithm = cls()
    if not algorithm.trains:
        return
    student = algorithm.student(teacher).eval()
    one, two = (algorithm.terms(student, batch_for(algorithm, teacher), teacher) for _ in range(2))
    must(
        {key: float(term.value.detach()) for key, term in one.items()}
        == {key: float(term.value.detach()) for key, term in two.items()},
        f"{cls.name}: its terms must be the same whenever they are computed",
    )


def a_loss_over_a_batch_is_the_mean_over_its_micro_batches(
    cls: type[Algorithm], teacher: Teacher
) -> None:
    """Else `loss_depends_on_batch` says so, as for a contrastive loss, and the micro-batch is a
    part of the run's identity."""
    algorithm = cls()
    if not algorithm.trains or algorithm.loss_depends_on_batch:
        return
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
        got = float(term.value.detach())
        mean = sum(float(part[key].value.detach()) for part in parts) / 2
        must(
            math.isclose(got, mean, rel_tol=1e-6, abs_tol=1e-6),
            f"{cls.name}: {key} must be a mean over the batch: it is {got}, and over halves "
            f"{mean}; if it is none by its nature, set loss_depends_on_batch = True",
        )


def the_loss_is_finite_in_bf16(cls: type[Algorithm], teacher: Teacher) -> None:
    """Training in mixed precision gives numbers."""
    algorithm = cls()
    if not algorithm.trains:
        return
    student = algorithm.student(teacher)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = algorithm.terms(student, batch_for(algorithm, teacher), teacher)
    for key, term in terms.items():
        must(bool(torch.isfinite(term.value)), f"{cls.name}: {key} must be finite in bf16")


def what_is_evaluated_starts_as_the_zero_shot_classifier(
    cls: type[Algorithm], teacher: Teacher
) -> None:
    """Before the first step its classifier is the teacher's, to the bit."""
    algorithm = cls()
    classifier = algorithm.classifier(algorithm.student(teacher), teacher)
    must(
        isinstance(classifier, ImageClassifier),
        f"{cls.name}: `classifier` gives an ImageClassifier",
    )
    images = batch_for(algorithm, teacher).images
    with torch.no_grad():
        same = torch.equal(classifier.eval()(images), teacher.classifier(images))
    must(same, f"{cls.name}: before training its classifier must be the zero-shot one")


ALGORITHM_LAWS: tuple[Callable[[type[Algorithm], Teacher], None], ...] = (
    it_is_registered_frozen_and_survives_json_and_pickle,
    the_loss_is_finite_and_its_gradient_reaches_the_student_only,
    two_calls_on_the_same_batch_agree_to_the_bit,
    a_loss_over_a_batch_is_the_mean_over_its_micro_batches,
    the_loss_is_finite_in_bf16,
    what_is_evaluated_starts_as_the_zero_shot_classifier,
)
"""Each raises BrokenContract; its name is what holds."""
