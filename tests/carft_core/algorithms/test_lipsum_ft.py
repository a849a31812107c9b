"""Lipsum-FT: the energy gap against its formula in numpy, and its random texts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from carft_sweep.carft_core.algorithms.lipsum_ft import LipsumFt
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import batch_for, loss_of
from tests.golden.write import moved

START, END = 49406, 49407


def test_the_gap_is_the_formula(teacher: Teacher) -> None:
    student, batch = moved(teacher, 1), replace(batch_for(teacher), step=3)
    _, logs = loss_of(LipsumFt(gap_weight=2.0, texts=5), student, batch, teacher)
    tokens = teacher.clip.random_texts(5, 8, torch.Generator().manual_seed(1 + 3))
    with torch.no_grad():
        texts = teacher.clip.model.encode_text(tokens).double().numpy()  # type: ignore[operator]
        towers = (student, teacher.classifier)
        tuned, frozen = (tower.features(batch.images).double().numpy() for tower in towers)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    scale = float(teacher.clip.model.logit_scale.exp())  # type: ignore[operator]
    gaps = [
        sum((scale * one @ text - scale * two @ text) ** 2 for text in texts) / (2 * len(texts))
        for one, two in zip(tuned, frozen, strict=True)
    ]
    assert np.mean(gaps) > 1e-6
    assert logs["energy_gap"] == pytest.approx(np.mean(gaps), rel=1e-3)
    assert logs["loss"] == pytest.approx(logs["cross_entropy"] + 2 * logs["energy_gap"])


def test_a_step_has_texts_of_its_own_and_weight_zero_is_fine_tuning(teacher: Teacher) -> None:
    student, batch = moved(teacher, 1), batch_for(teacher)
    gaps = {
        loss_of(LipsumFt(), student, replace(batch, step=step), teacher)[1]["energy_gap"]
        for step in (0, 0, 1)
    }
    assert len(gaps) == 2
    loss, logs = LipsumFt(gap_weight=0.0).loss(student, batch, teacher)
    assert loss is logs["cross_entropy"]
    assert not logs["energy_gap"].requires_grad


def test_random_texts_are_words_between_the_marks_as_the_tokenizer_writes_them(
    tiny_clip: OpenedClip,
) -> None:
    texts = tiny_clip.random_texts(200, 8, torch.Generator().manual_seed(0))
    assert texts.shape == tiny_clip.tokenizer(["a"] * 200).shape
    assert texts[:, 0].eq(START).all()
    assert texts[:, 9].eq(END).all()
    assert not texts[:, 10:].any()
    words = texts[:, 1:9]
    assert 0 <= words.min() < 500
    assert START - 500 < words.max() < START
    with pytest.raises(RequestError, match=r"algorithm\.tokens: .* reads 77 tokens"):
        tiny_clip.random_texts(1, 76, torch.Generator())
    other = replace(tiny_clip, tokenizer=lambda texts: tiny_clip.tokenizer(texts))
    with pytest.raises(RequestError, match="another tokenizer"):
        other.random_texts(1, 8, torch.Generator())
