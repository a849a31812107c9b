"""Everything that computes does so on another device than the CPU, with the CPU's numbers; and in
mixed precision no tower computes its large products in float32, whatever the algorithm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm, loss_and_terms
from carft_sweep.carft_core.algorithms.base import Soup
from carft_sweep.carft_core.merges import MERGES
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher, on_device
from carft_sweep.carft_core.testing import batch_for, loss_of, started
from carft_sweep.carft_core.training.optim import OptimConfig, freeze_all_but
from tests.carft_core.other_device import other_device, teacher_on

OPTIM = OptimConfig(name="sgd", lr=1e-3)  # Adam divides by gradients near 0, which are of rounding
SOLVED = tuple(name for name, cls in ALGORITHMS.items() if cls.solves)
STEPPED = tuple(name for name, cls in ALGORITHMS.items() if cls().takes_steps)


def logits_after(algorithm: Algorithm, teacher: Teacher, steps: int = 2) -> Tensor:
    """Of the classifier behind some steps, by everything that a run asks of an algorithm."""
    device = teacher.device
    torch.manual_seed(0)
    model = on_device(algorithm.build(teacher), device)
    groups = algorithm.groups(model, OPTIM)
    freeze_all_but(model, groups)
    optimiser = algorithm.optimiser(groups, OPTIM)
    algorithm.start(model, teacher)
    batch = batch_for(teacher)
    tensors: dict[str, Any] = {
        name: value.to(device) for name, value in vars(batch).items() if isinstance(value, Tensor)
    }

    def closure() -> Tensor:
        optimiser.zero_grad()
        moved = replace(batch, **tensors)
        loss, terms = loss_and_terms(algorithm, model, moved, teacher)
        assert {value.device for value in (loss, *terms.values())} == {device}
        loss.backward()
        return loss.detach()

    if algorithm.solves:
        algorithm.solve(model, teacher)
        steps = 0
    for step in range(steps):
        optimiser.step(closure)  # type: ignore[arg-type]  # a tensor is a float to it
        with torch.no_grad():
            algorithm.after_step(model, step, steps)
    algorithm.after_epoch(model, {"id/val/top1": 0.5, "id/val/nll": 1.0})
    return logits_of(algorithm.classifier(model, teacher), teacher)


def logits_of(classifier: Classifier, teacher: Teacher) -> Tensor:
    """Of the batch's images, on the teacher's device, as numbers of the CPU."""
    images = batch_for(teacher).images.to(teacher.device)
    with torch.no_grad():
        logits = classifier.eval().logits(classifier.features(images))
    assert logits.device == teacher.device
    return logits.cpu()


def assert_the_same_elsewhere(logits: Callable[[Teacher], Tensor], teacher: Teacher) -> None:
    with other_device() as device, torch.random.fork_rng(devices=[]):
        elsewhere = logits(teacher_on(teacher, device))
    with torch.random.fork_rng(devices=[]):
        assert torch.allclose(elsewhere, logits(teacher), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [*STEPPED, *SOLVED])
def test_an_algorithm_trains_and_classifies_elsewhere(name: str, teacher: Teacher) -> None:
    algorithm = ALGORITHMS[name]()
    assert_the_same_elsewhere(lambda teacher: logits_after(algorithm, teacher), teacher)


def tuned(teacher: Teacher, factor: float) -> Classifier:
    """The zero-shot classifier, somewhat different."""
    classifier = teacher.new_classifier()
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.mul_(factor)
    return classifier


@pytest.mark.parametrize("name", MERGES)
def test_a_merge_classifies_elsewhere(name: str, teacher: Teacher) -> None:
    merge = MERGES[name]()
    (point, *_) = merge.points()

    def logits(teacher: Teacher) -> Tensor:
        return logits_of(merge.model(point, teacher, tuned(teacher, 1.1)), teacher)

    assert_the_same_elsewhere(logits, teacher)


@pytest.mark.parametrize(
    "name", [name for name, cls in ALGORITHMS.items() if issubclass(cls, Soup)]
)
def test_a_soup_is_made_elsewhere(name: str, teacher: Teacher) -> None:
    soup = ALGORITHMS[name].model_validate({"members": [digit * 64 for digit in "abc"]})
    assert isinstance(soup, Soup)

    def logits(teacher: Teacher) -> Tensor:
        members = [tuned(teacher, factor) for factor in (0.9, 1.05, 1.1)]
        return logits_of(soup.combine(teacher, members), teacher)

    assert_the_same_elsewhere(logits, teacher)


def test_a_forgotten_copy_is_seen() -> None:
    with other_device() as device, pytest.raises(RuntimeError, match="on the same device"):
        torch.ones(2, device=device) + torch.ones(2)


PRODUCTS = ("mm.", "addmm.", "bmm.", "baddbmm.", "convolution", "_scaled_dot_product")
KNOWN = {"lora": {"mm.default"}}
"""By algorithm: of LoRA the changes are made in float32, for each layer and not each image."""


class LargeProducts(TorchDispatchMode):
    """Collects the types in which products over all tokens of a batch are computed."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.by_type: dict[torch.dtype, set[str]] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, tensors = operation.__name__, [x for x in tree_iter(args) if isinstance(x, Tensor)]
        if name.startswith(PRODUCTS) and any(
            tensor.numel() // tensor.shape[-1] >= self.tokens for tensor in tensors
        ):
            self.by_type.setdefault(tensors[0].dtype, set()).add(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", STEPPED)
def test_products_over_the_tokens_of_a_batch_are_in_bf16(name: str, teacher: Teacher) -> None:
    algorithm, batch = ALGORITHMS[name](), batch_for(teacher)
    model = started(algorithm, teacher)
    # As many as a tower has at least: the classes, contexts and images of a loss are fewer.
    with LargeProducts(tokens=16 * len(batch.labels)) as products:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = loss_of(algorithm, model, batch, teacher)
        loss.backward()
    assert products.by_type[torch.bfloat16]
    assert products.by_type.get(torch.float32, set()) == KNOWN.get(name, set())
