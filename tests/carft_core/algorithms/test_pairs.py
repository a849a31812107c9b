"""FLYP by open_clip's own loss and head; AutoFT, CaRot, CLIPood, R-Adapter, StarFT and TRACER:
each term against its formula in numpy."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss
from scipy.stats import beta as beta_distribution
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.autoft import AutoFt, HeadedClip
from carft_sweep.carft_core.algorithms.carot import CaRot
from carft_sweep.carft_core.algorithms.clipood import ClipOod
from carft_sweep.carft_core.algorithms.flyp import Flyp
from carft_sweep.carft_core.algorithms.r_adapter import Adapter, RAdapter
from carft_sweep.carft_core.algorithms.starft import StarFt
from carft_sweep.carft_core.algorithms.tracer import Tracer
from carft_sweep.carft_core.merges.wise_ft import WiseFt
from carft_sweep.carft_core.models.averages import Averaged, beta_decay
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.contrastive import ContrastiveClip, caption_tokens
from carft_sweep.carft_core.models.prompts import TemplateSet
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import batch_for, loss_of, started
from carft_sweep.carft_core.training.optim import OptimConfig
from tests.carft_core.algorithms.pairs import Array, cross_entropy, features, log_softmax, walked
from tests.carft_core.stand_ins import watched

ONE = TemplateSet("one", ("a photo of a {}.",))


def moved(teacher: Teacher) -> ContrastiveClip:
    """A module whose towers and scale have left the teacher's."""
    return built(walked(Flyp(), teacher), ContrastiveClip)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


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
    seen = watched(monkeypatch, model, "text_features", lambda tokens: tokens)
    batch = batch_for(teacher)
    for seed, step in ((0, 0), (0, 0), (0, 1), (1, 0)):
        torch.manual_seed(seed)
        Flyp().loss(model, replace(batch, step=step), teacher)
        Flyp().loss(model, replace(batch, step=step), teacher)
    assert all(torch.equal(seen[at], seen[at + 1]) for at in range(0, 8, 2)), "sam has one problem"
    assert torch.equal(seen[0], seen[2])
    assert not any(torch.equal(seen[0], seen[at]) for at in (4, 6))
    tokens = teacher.clip.tokenizer(list(teacher.classes.texts(teacher.class_names)))
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


TERMS = [name.removesuffix("_weight") for name in AutoFt.model_fields]
NOTHING = dict.fromkeys(AutoFt.model_fields, 0.0)
BACKGROUND = TemplateSet("background", ("a {} at night",))


def test_every_term_of_autoft_is_its_formula_and_counts_by_its_weight(teacher: Teacher) -> None:
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
    tuned: dict[str, Tensor] = {f"visual.{name}": p for name, p in clip.visual.named_parameters()}
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
    entropy = -logs_of[np.arange(len(labels)), labels].mean()
    for name, value in expected.items():
        _, logs = loss_of(AutoFt(**NOTHING | {f"{name}_weight": 2.0}), student, batch, teacher)
        assert logs[name] == pytest.approx(value, rel=1e-4), name
        assert logs["loss"] == pytest.approx(entropy + 2 * value, rel=1e-4), name
    _, logs = loss_of(AutoFt(**NOTHING), student, batch, teacher)
    assert logs["loss"] == logs["cross_entropy"] == pytest.approx(entropy, rel=1e-4)


def test_the_terms_of_carot_are_their_formulas(teacher: Teacher) -> None:
    model, batch = built(walked(CaRot(), teacher), Averaged), batch_for(teacher)
    _, logs = loss_of(CaRot(), model, batch, teacher)
    clip: Any = model.model.clip
    visual, text = (p.detach().double().numpy() for p in (clip.visual.proj, clip.text_projection))
    cross, gram = visual @ text.T, visual.T @ visual - np.eye(visual.shape[1])
    assert logs["cross"] == pytest.approx(np.sqrt((cross**2).sum()), rel=1e-5)
    assert logs["orthogonality"] == pytest.approx(np.sqrt((gram**2).sum()), rel=1e-5)
    new, old = (
        scale * images @ texts.T
        for scale, images, texts in (features(part, batch) for part in (model.model, model.average))
    )
    expected = cross_entropy(old, new) + cross_entropy(old.T, new.T)
    assert logs["distillation"] == pytest.approx(expected, rel=1e-5)
    contrast = float(loss_of(Flyp(), model.model, batch, teacher)[0].detach())
    terms = 0.05 * logs["cross"] + 0.2 * logs["orthogonality"] + 1.5 * logs["distillation"]
    assert logs["loss"] == pytest.approx(contrast + terms, rel=1e-5)


def test_carots_average_has_a_momentum_that_rises(teacher: Teacher) -> None:
    method = CaRot(every=2)
    model: Any = built(walked(method, teacher), Averaged)
    weight, average = model.model.clip.logit_scale, model.average.clip.logit_scale
    for step, momentum in ((0, 0.05), (1, 1.0), (2, 0.05 + 0.85 * 0.5), (4, 0.9), (18, 0.9)):
        with torch.no_grad():
            weight.fill_(1.0)
            average.fill_(0.0)
            method.after_step(model, step, 20)
        assert average.item() == pytest.approx(1 - momentum, rel=1e-6)


def test_clipoods_loss_is_the_formula_and_its_result_the_average(teacher: Teacher) -> None:
    method, batch = ClipOod(), batch_for(teacher)
    model = built(started(method, teacher), Averaged)
    trained = built(model.model, ImageClassifier)
    assert trained.head.weight.requires_grad is False
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn(parameter.shape))
        images = trained.features(batch.images).double().numpy()
    texts, labels = teacher.w_cls.double().numpy(), batch.labels.numpy()
    logits = images @ texts.T + 0.3 * (1 - texts[labels] @ texts.T)
    for margin, values in ((0.3, logits), (0.0, images @ texts.T)):
        _, logs = loss_of(ClipOod(margin=margin), model, batch, teacher)
        expected = -log_softmax(teacher.scale * values)[np.arange(len(labels)), labels].mean()
        assert logs["loss"] == pytest.approx(expected, rel=1e-4)
    assert logs["loss"] == logs["cross_entropy"]
    weight, average = next(model.model.parameters()), next(model.average.parameters())
    decay = beta_decay(3, 10, 0.5)
    mean = decay * average.double() + (1 - decay) * weight.double()
    with torch.no_grad():
        method.after_step(model, 3, 10)
    torch.testing.assert_close(average.double(), mean, rtol=1e-5, atol=1e-6)
    assert method.classifier(model, teacher) is model.average


def test_r_adapters_loss_is_the_formula(teacher: Teacher) -> None:
    model, batch = walked(RAdapter(), teacher).eval(), batch_for(teacher)
    _, logs = loss_of(RAdapter(), model, batch, teacher)
    scale, images, texts = features(built(model, Averaged).model, batch)
    labels = batch.labels.numpy()
    directions = []
    for similarities in (images @ texts.T, texts @ images.T):
        rows = []
        for row, label in zip(similarities, labels, strict=True):
            own = labels == label
            target = np.where(own, 0.98 / own.sum(), 0.02 / (~own).sum())
            rows.append(-(target * log_softmax(scale * (row + 0.05 * ~own)[None])[0]).sum())
        directions.append(np.mean(rows))
    assert [logs["image_to_text"], logs["text_to_image"]] == pytest.approx(directions, rel=1e-5)
    assert logs["loss"] == pytest.approx(np.mean(directions), rel=1e-5)


def test_r_adapters_folded_tower_is_the_average_and_half_of_it_is_wise_ft(teacher: Teacher) -> None:
    method, images = RAdapter(), batch_for(teacher).images
    model = built(method.build(teacher), Averaged)
    generator = torch.Generator().manual_seed(0)
    adapters = [module for module in model.average.modules() if isinstance(module, Adapter)]
    assert len(adapters) == 2 * (2 + 1), "two in each block of both towers"
    with torch.no_grad():
        for adapter in adapters:
            adapter.matrix.copy_(0.3 * torch.randn(32, 32, generator=generator))
    classifier = method.classifier(model, teacher).eval()
    merge = WiseFt(alphas=(0.5,))
    (half,) = (merge.model(point, teacher, classifier) for point in merge.points())
    with torch.no_grad():
        for tuned, share in ((classifier, 1.0), (half, 0.5)):
            average = copy.deepcopy(built(model.average, ContrastiveClip)).eval()
            for part in average.modules():
                if isinstance(part, Adapter):
                    part.scale.mul_(share)
            expected = average.image_features(images)
            torch.testing.assert_close(tuned.features(images), expected, rtol=1e-4, atol=1e-5)
    assert (expected - teacher.image_features(images)).abs().max() > 0.01


def test_an_adapter_is_dropped_for_some_images_in_training_alone() -> None:
    adapter, tokens = Adapter(4, 0.5), torch.ones(200, 3, 4)
    with torch.no_grad():
        adapter.matrix.copy_(torch.eye(4))
        torch.manual_seed(0)
        trained, evaluated = adapter.train()(tokens), adapter.eval()(tokens)
    torch.testing.assert_close(evaluated, 1.1 * tokens)
    assert set(trained[:, 0, 0].mul(10).round().tolist()) == {10.0, 12.0}
    assert trained.eq(trained[:, :1, :1]).all(), "whole images"


def test_starfts_kl_is_the_formula_and_its_weight_sinks(teacher: Teacher) -> None:
    teacher = replace(teacher, contexts=BACKGROUND)
    model, batch = walked(StarFt(), teacher), batch_for(teacher)
    _, images, _ = features(model, batch)
    tokens = caption_tokens(teacher, BACKGROUND)[0, batch.labels]
    with torch.no_grad():
        texts = built(model, ContrastiveClip).text_features(tokens).double().numpy()
        zero_shot = (batch.zero_shot(), teacher.text_features(tokens))
        old_images, old_texts = (rows.double().numpy() for rows in zero_shot)
    labels = batch.labels.numpy()
    own = labels[:, None] == labels
    old, new = (
        log_softmax(np.where(own, -1e8, teacher.scale * f @ u.T))
        for f, u in ((old_images, old_texts), (images, texts))
    )
    expected = (np.exp(old) * (old - new)).sum(axis=1).mean()
    assert expected > 1e-3
    for step, weight in ((0, 0.5 * 0.9), (9, 0.0)):
        own_step = replace(batch, step=step)
        contrast, _ = loss_of(Flyp(), model, own_step, teacher)
        loss, logs = loss_of(StarFt(), model, own_step, teacher)
        assert logs["spurious_kl"] == pytest.approx(expected, rel=1e-4)
        assert logs["loss"] == pytest.approx(float(contrast.detach()) + weight * expected, rel=1e-5)
    assert torch.equal(loss, contrast), "nothing is added in the end"


def test_the_terms_of_tracer_are_their_formulas(teacher: Teacher) -> None:
    model, batch = built(walked(Tracer(), teacher), Averaged), batch_for(teacher)
    _, logs = loss_of(Tracer(), model, batch, teacher)
    s, f, t = features(model.model, batch)
    s_a, f_a, t_a = features(model.average, batch)
    anchor, own, texts, images = s_a * f_a @ t_a.T, s * f @ t.T, s * f @ t_a.T, s * t @ f_a.T
    entropies = [cross_entropy(logits, logits) for logits in (anchor, anchor.T)]
    expected = {
        "features": ((f - f_a) ** 2).mean() + ((t - t_a) ** 2).mean(),
        "relations": cross_entropy(anchor, own) + cross_entropy(anchor.T, own.T) - sum(entropies),
        "interaction": -np.trace(log_softmax(texts) + log_softmax(images)) / len(f),
        "exchange": cross_entropy(anchor, texts) + cross_entropy(anchor.T, images) - sum(entropies),
    }
    expected = {name: term if name == "features" else term / 2 for name, term in expected.items()}
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    contrast = float(loss_of(Flyp(), model.model, batch, teacher)[0].detach())
    distilled = 2000 * expected.pop("features") + sum(expected.values())
    assert logs["loss"] == pytest.approx(contrast + 0.05 * logs["cross"] + 0.9 * distilled, 1e-5)


def test_a_beta_average_weights_the_trajectory_by_scipys_density() -> None:
    steps = 7
    walk = np.random.default_rng(0).normal(size=steps + 1)
    for beta in (0.5, 1.0, 2.0):
        average = torch.tensor(walk[0])
        for step in range(steps):
            decay = beta_decay(step, steps, beta)
            average = decay * average + (1 - decay) * walk[step + 1]
        density = beta_distribution(beta, beta).pdf((np.arange(steps + 1) + 0.5) / (steps + 1))
        assert average.item() == pytest.approx((density * walk).sum() / density.sum(), rel=1e-9)
        assert beta_decay(0, 10_000, 100 * beta) == pytest.approx(0, abs=1e-9), "all are tiny"
