"""L2-SP, feature distillation, LDIFS, Lipsum-FT and MIRO: their terms by formulas in numpy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from carft_sweep.carft_core.algorithms import Algorithm
from carft_sweep.carft_core.algorithms.car_ft import CarFt
from carft_sweep.carft_core.algorithms.coral import Coral
from carft_sweep.carft_core.algorithms.feature_distillation import FeatureDistillation
from carft_sweep.carft_core.algorithms.l2_sp import L2Sp
from carft_sweep.carft_core.algorithms.ldifs import Ldifs
from carft_sweep.carft_core.algorithms.lipsum_ft import LipsumFt
from carft_sweep.carft_core.algorithms.miro import Miro, WithVariances
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.towers import outputs_by_depth
from carft_sweep.carft_core.testing import batch_for, loss_of
from carft_sweep.carft_core.training.optim import OptimConfig
from tests.carft_core.algorithms.pairs import walked
from tests.carft_core.refusals import refused
from tests.golden.write import moved

START, END = 49406, 49407


@torch.no_grad()
def by_both(student: Any, teacher: Teacher, images: Tensor, method: Any) -> Any:
    """What `method` makes of the images with the tower that is tuned and with the frozen one."""
    return [method(tower, images) for tower in (student.visual, teacher.classifier.visual)]


def in_numpy(visual: Any, images: Tensor) -> NDArray[np.float64]:
    features: NDArray[np.float64] = visual(images).double().numpy()
    return features


def test_l2_sp_is_half_the_squared_distance_of_the_tower_alone(teacher: Teacher) -> None:
    student, before = moved(teacher, 1), teacher.classifier.state_dict()
    _, logs = loss_of(L2Sp(alpha=3.0), student, batch_for(teacher), teacher)
    offsets = [
        (tensor.double() - before[name].double()).numpy().ravel()
        for name, tensor in student.state_dict().items()
        if name != "head.weight"
    ]
    expected = np.linalg.norm(np.concatenate(offsets)) ** 2
    assert expected > 1e-3
    assert logs["distance"] == pytest.approx(expected, rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["cross_entropy"] + 3 / 2 * logs["distance"])


def test_feature_distillation_is_of_the_towers_outputs(teacher: Teacher) -> None:
    student, batch = moved(teacher, 1), batch_for(teacher)
    _, logs = loss_of(FeatureDistillation(distillation_weight=3.0), student, batch, teacher)
    tuned, frozen = by_both(student, teacher, batch.images, in_numpy)
    expected = ((tuned - frozen) ** 2).sum() / tuned.size
    assert expected > 1e-7
    assert logs["distance"] == pytest.approx(expected, rel=1e-4)
    assert logs["loss"] == pytest.approx(logs["cross_entropy"] + 3 * logs["distance"])


def tokens(visual: Any, images: Tensor) -> list[NDArray[np.float64]]:
    """After the first norm and after each of the two blocks of the tiny ViT, by its own parts."""
    out = [visual._embeds(images)]
    for block in visual.transformer.resblocks:
        out.append(block(out[-1]))
    return [layer.double().numpy() for layer in out]


def test_ldifs_is_of_the_tokens_at_all_depths(teacher: Teacher) -> None:
    student, batch = moved(teacher, 1), batch_for(teacher)
    _, logs = loss_of(Ldifs(ldifs_weight=3.0), student, batch, teacher)
    squares = []
    for layers in zip(*by_both(student, teacher, batch.images, tokens), strict=True):
        tuned, frozen = (layer / np.sqrt((layer**2).sum(axis=1, keepdims=True)) for layer in layers)
        squares.append(((tuned - frozen) ** 2).sum() / tuned.size)
    assert np.mean(squares) > 1e-7
    assert logs["distance"] == pytest.approx(np.mean(squares), rel=1e-4)
    assert logs["loss"] == pytest.approx(logs["cross_entropy"] + 3 * logs["distance"])
    assert loss_of(Ldifs(), teacher.new_classifier(), batch, teacher)[1]["distance"] == 0


def test_lipsum_fts_gap_is_of_the_energies_with_random_texts(teacher: Teacher) -> None:
    student, batch = moved(teacher, 1), replace(batch_for(teacher), step=3)
    _, logs = loss_of(LipsumFt(gap_weight=2.0, texts=5), student, batch, teacher)
    clip: Any = teacher.clip.model
    tokens = teacher.clip.random_texts(5, 8, torch.Generator().manual_seed(1 + 3))
    with torch.no_grad():
        texts, scale = clip.encode_text(tokens).double().numpy(), float(clip.logit_scale.exp())
        towers = (student, teacher.classifier)
        tuned, frozen = (tower.features(batch.images).double().numpy() for tower in towers)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    gaps = [
        sum((scale * row @ text - scale * start @ text) ** 2 for text in texts) / (2 * len(texts))
        for row, start in zip(tuned, frozen, strict=True)
    ]
    assert np.mean(gaps) > 1e-6
    assert logs["energy_gap"] == pytest.approx(np.mean(gaps), rel=1e-3)
    assert logs["loss"] == pytest.approx(logs["cross_entropy"] + 2 * logs["energy_gap"])
    steps = [loss_of(LipsumFt(), student, replace(batch, step=step), teacher)[1] for step in (0, 1)]
    assert steps[0]["energy_gap"] != steps[1]["energy_gap"], "a step has texts of its own"


def test_random_texts_are_words_between_marks_as_a_tokenizer_writes(tiny_clip: OpenedClip) -> None:
    texts = tiny_clip.random_texts(200, 8, torch.Generator().manual_seed(0))
    assert texts.shape == tiny_clip.tokenizer(["a"] * 200).shape
    assert texts[:, 0].eq(START).all()
    assert texts[:, 9].eq(END).all()
    assert not texts[:, 10:].any()
    words = texts[:, 1:9]
    assert 0 <= words.min() < 500
    assert START - 500 < words.max() < START
    draw = torch.Generator()
    refused(r"algorithm\.tokens: .* reads 77 tokens", tiny_clip.random_texts, 1, 76, draw)
    other = replace(tiny_clip, tokenizer=lambda texts: tiny_clip.tokenizer(texts))
    refused("another tokenizer", other.random_texts, 1, 8, draw)


def test_miros_variances_weigh_the_distance_at_each_depth_and_have_a_rate(teacher: Teacher) -> None:
    method, batch = Miro(information_weight=0.7), batch_for(teacher)
    model = walked(method, teacher)
    assert isinstance(model, WithVariances)
    _, logs = loss_of(method, model, batch, teacher)
    towers = by_both(model.classifier, teacher, batch.images, outputs_by_depth)
    expected = 0.0
    for layer, frozen, raw in zip(towers[0][1], towers[1][1], model.raw, strict=True):
        variance = np.log1p(np.exp(raw.detach().double().numpy())) + 1e-5
        assert variance == pytest.approx(0.1, rel=0.8)
        squares = (layer.double().numpy() - frozen.double().numpy()) ** 2
        expected += (squares / variance + np.log(variance)).mean() / 2
    assert logs["information"] == pytest.approx(expected, rel=1e-5)
    assert logs["loss"] == pytest.approx(logs["cross_entropy"] + 0.7 * expected, rel=1e-5)
    start: Any = method.build(teacher)
    assert all(torch.allclose(variances, torch.tensor(0.1)) for variances in start.variances())
    *of_weights, of_variances = method.groups(start, OptimConfig())
    assert [group["lr_scale"] for group in of_weights] == [1.0]
    assert of_variances["lr_scale"] == 10
    assert [*map(id, of_variances["params"])] == [*map(id, start.raw)]


@pytest.mark.parametrize(
    "method",
    [
        L2Sp(alpha=0.0),
        FeatureDistillation(distillation_weight=0.0),
        Ldifs(ldifs_weight=0.0),
        LipsumFt(gap_weight=0.0),
        Miro(information_weight=0.0),
        CarFt(kl_weight=0.0),
        Coral(coral_weight=0.0),
    ],
    ids=lambda method: method.name,
)
def test_weight_zero_is_fine_tuning(method: Algorithm, teacher: Teacher) -> None:
    loss, logs = method.loss(walked(method, teacher), batch_for(teacher), teacher)
    assert loss is logs["cross_entropy"]
    terms = [term for name, term in logs.items() if name != "cross_entropy"]
    assert terms
    assert not any(term.requires_grad for term in terms)
    assert all(float(term) != 0 for term in terms), "they are logged all the same"
