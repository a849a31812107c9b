"""FLYP against open_clip's own loss and head, its captions, and as a run."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.flyp import Flyp
from carft_sweep.carft_core.merges.wise_ft import WiseFt
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.contrastive import ContrastiveClip
from carft_sweep.carft_core.models.prompts import TemplateSet
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import batch_for
from carft_sweep.carft_core.training.optim import OptimConfig
from tests.carft_core.algorithms.pairs import walked

ONE = TemplateSet("one", ("a photo of a {}.",))


def moved(teacher: Teacher) -> ContrastiveClip:
    """A module whose towers and scale have left the teacher's."""
    return built(walked(Flyp(), teacher), ContrastiveClip)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def test_loss_and_gradients_are_those_of_open_clip(teacher: Teacher) -> None:
    single = replace(teacher, classes=ONE)
    batch, model = batch_for(single), moved(single)
    judge: Any = copy.deepcopy(model.clip)
    loss, logs = Flyp().loss(model, batch, single)
    loss.backward()

    names = [single.class_names[label] for label in batch.labels.tolist()]
    assert len(set(names)) < len(names), "a class stands in the batch twice"
    texts = single.clip.tokenizer([f"a photo of a {name}." for name in names])
    expected = ClipLoss()(*judge(batch.images, texts))
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    scale = float(judge.logit_scale.detach().exp())
    assert float(logs["logit_scale"].detach()) == pytest.approx(scale)
    ours, theirs = gradients(model.clip), gradients(judge)
    assert ours.keys() == theirs.keys() >= {"logit_scale", "visual.proj", "text_projection"}
    model.zero_grad()
    Flyp().loss(model.train(), batch_for(single, micro_batch=2), single)[0].backward()
    parts = gradients(model.clip)
    assert parts.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, rtol=1e-3, atol=1e-5), name
        assert torch.allclose(ours[name], parts[name], rtol=1e-4, atol=1e-6), name


def test_a_caption_is_of_the_images_class_and_its_template_is_drawn_from_the_seed(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(Flyp().build(teacher), ContrastiveClip)
    seen: list[Tensor] = []
    encode = model.text_features

    def watched(tokens: Tensor) -> Tensor:
        seen.append(tokens)
        return encode(tokens)

    monkeypatch.setattr(model, "text_features", watched)
    batch = batch_for(teacher)
    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        torch.manual_seed(seed)
        Flyp().loss(model, replace(batch, step=step), teacher)
        Flyp().loss(model, replace(batch, step=step), teacher)
    assert all(torch.equal(seen[at], seen[at + 1]) for at in range(0, 8, 2)), "sam has one problem"
    assert torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[0], seen[4])
    assert not torch.equal(seen[0], seen[6])
    prompts = list(teacher.classes.texts(teacher.class_names))
    tokens = teacher.clip.tokenizer(prompts)
    drawn = set()
    for captions in seen:
        for caption, label in zip(captions, batch.labels.tolist(), strict=True):
            (at,) = (tokens == caption).all(dim=1).nonzero()[:, 0].tolist()
            template, number = divmod(at, len(teacher.class_names))
            assert number == label
            drawn.add(template)
    assert len(drawn) > 1


def test_its_head_is_the_zero_shot_head_of_the_tuned_towers_and_is_merged(teacher: Teacher) -> None:
    model, images = moved(teacher), batch_for(teacher).images
    classifier = Flyp().classifier(model, teacher)
    expected = open_clip.build_zero_shot_classifier(
        model.clip,
        teacher.clip.tokenizer,
        teacher.class_names,
        [template.replace("{}", "{0}").format for template in teacher.classes.templates],
    )
    rows = classifier.head.weight / model.scale
    assert torch.allclose(rows, expected.T, atol=1e-5)
    assert not torch.allclose(rows, teacher.w_cls, atol=1e-3)
    with torch.no_grad():
        features = F.normalize(model.clip.visual(images), dim=1)  # type: ignore[operator]
        assert torch.allclose(classifier.features(images), features, atol=1e-6)
    merge = WiseFt(alphas=(0.25,))
    (merged,) = (merge.model(point, teacher, classifier) for point in merge.points())
    head = 0.75 * teacher.classifier.head.weight + 0.25 * classifier.head.weight
    assert torch.allclose(built(merged, ImageClassifier).head.weight, head)


def test_what_clip_holds_fixed_stays_so_and_nothing_is_shared(teacher: Teacher) -> None:
    fixed = replace(teacher, clip=replace(teacher.clip, fixed=frozenset({"visual.proj"})))
    model = Flyp().build(fixed)
    groups = Flyp().groups(model, OptimConfig())
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    names = {name for name, parameter in model.named_parameters() if id(parameter) not in trained}
    assert names == {"clip.visual.proj"}
    theirs = {tensor.data_ptr() for tensor in (*teacher.clip.model.parameters(), *teacher.w_cls)}
    assert not theirs & {tensor.data_ptr() for tensor in model.parameters()}
    assert not [name for name in model.state_dict() if "tokens" in name]
