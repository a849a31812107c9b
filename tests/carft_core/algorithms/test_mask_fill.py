"""Mask-Fill: which pixels come from another image, by loops, and which tower has an object mask."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms import Algorithm
from carft_sweep.carft_core.algorithms.base import PARTS
from carft_sweep.carft_core.algorithms.mask_fill import MaskFill, label_relevance
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.models.clip import checkpoint_gradients
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.towers import attention_layers, attention_maps
from carft_sweep.carft_core.testing import ALGORITHM_LAWS, batch_for, built_in_teacher
from tests.carft_core.refusals import refused


def tuned(teacher: Teacher) -> ImageClassifier:
    classifier, generator = teacher.new_classifier(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in classifier.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return classifier.eval()


def by_loops(teacher: Teacher, model: ImageClassifier, hidden: Tensor) -> tuple[float, float]:
    """Return the cross-entropy and the distance, with the cells [B, n, n] that are hidden."""
    batch = batch_for(teacher)
    generator = batch.generator()
    sources = torch.randperm(len(batch.images), generator=generator)
    masked, side = batch.images.clone(), batch.images.shape[2]
    for image in range(len(masked)):
        for row in range(side):
            for column in range(side):
                cell = row * hidden.shape[1] // side, column * hidden.shape[2] // side
                if hidden[image][cell]:
                    masked[image, :, row, column] = batch.images[sources[image], :, row, column]
    with torch.no_grad():
        distance = (model.embed(masked) - teacher.classifier.embed(masked)).square().mean()
        return F.cross_entropy(model(batch.images), batch.labels).item(), distance.item()


def test_the_random_mask_is_one_of_cells(teacher: Teacher) -> None:
    model, batch = tuned(teacher), batch_for(teacher)
    generator = batch.generator()
    torch.randperm(len(batch.images), generator=generator)
    hidden = torch.rand(len(batch.images), 5, 5, generator=generator) < 0.4
    entropy, distance = by_loops(teacher, model, hidden)
    loss, terms = MaskFill(share=0.4, cells=5).loss(model, batch, teacher)
    assert terms["distance"].item() == pytest.approx(distance, rel=1e-5)
    assert loss.item() == pytest.approx(entropy + 30 * distance, rel=1e-5)


def test_the_object_mask_hides_what_is_relevant_for_the_label(teacher: Teacher) -> None:
    model, batch = tuned(teacher), batch_for(teacher)
    relevance = label_relevance(model, batch.images, batch.labels)[:, 0]
    hidden = relevance / relevance.amax(dim=(1, 2), keepdim=True) > 0.3
    assert 0 < hidden.float().mean() < 1
    entropy, distance = by_loops(teacher, model, hidden)
    loss, _ = MaskFill(mask="object").loss(model, batch, teacher)
    assert loss.item() == pytest.approx(entropy + 30 * distance, rel=1e-5)


def test_the_maps_are_those_of_attention_itself_and_make_the_outputs(teacher: Teacher) -> None:
    visual, images = teacher.classifier.visual, batch_for(teacher).images
    seen: list[Tensor] = []
    layers = attention_layers(visual)
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: seen.append(args[0])) for layer in layers
    ]
    with torch.no_grad(), attention_maps(visual) as maps:
        outputs = visual(images)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        torch.testing.assert_close(outputs, visual(images))
        for layer, tokens, attention in zip(layers, seen, maps, strict=True):
            expected = layer(tokens, tokens, tokens, average_attn_weights=False)[1]
            torch.testing.assert_close(attention, expected)
    assert not any(layer._forward_hooks for layer in layers)


def test_relevance_is_the_rollout_of_positive_attention_times_gradient(teacher: Teacher) -> None:
    model, batch = tuned(teacher), batch_for(teacher)
    image, label = batch.images[:1], batch.labels[:1]
    with attention_maps(model.visual) as maps:
        logit = model(image)[0, label[0]]
    rollout = torch.eye(maps[0].shape[-1])
    for attention in maps:
        (gradient,) = torch.autograd.grad(logit, attention, retain_graph=True)
        heads = [F.relu(a * g) for a, g in zip(attention[0], gradient[0], strict=True)]
        rollout = rollout + torch.stack(heads).mean(dim=0) @ rollout
    relevance = label_relevance(model, image, label)
    expected = rollout[0, 1:].detach().reshape(1, 1, 4, 4)
    torch.testing.assert_close(relevance, expected)
    assert all(parameter.grad is None for parameter in model.parameters())
    checkpoint_gradients(model, model.visual)
    torch.testing.assert_close(label_relevance(model, image, label), expected)


class ObjectMask(MaskFill):
    """With another default, since laws hold for defaults."""

    mask: Literal["random", "object"] = "object"


@pytest.mark.parametrize("law", ALGORITHM_LAWS[1:], ids=lambda law: law.__name__)
def test_the_object_mask_keeps_laws(
    law: Callable[[type[Algorithm], Teacher], None], teacher: Teacher
) -> None:
    law(ObjectMask, teacher)


def test_a_tower_without_class_attention_has_no_object_mask() -> None:
    (used,) = MaskFill(mask="object").uses
    refused("choose a ViT of open_clip's own", PARTS[used], built_in_teacher().clip)
    assert not MaskFill().uses
