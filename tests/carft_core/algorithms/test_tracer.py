"""TRACER: its terms against their formulas in numpy, and its average against scipy's density."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import beta as beta_distribution

from carft_sweep.carft_core.algorithms.flyp import Flyp
from carft_sweep.carft_core.algorithms.tracer import Tracer
from carft_sweep.carft_core.models.averages import Averaged, beta_decay
from carft_sweep.carft_core.models.classifier import built
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.testing import batch_for, loss_of, toy_teacher
from tests.carft_core.algorithms.pairs import cross_entropy, features, log_softmax, walked


def test_the_terms_are_their_formulas(tiny_clip: OpenedClip) -> None:
    teacher = toy_teacher(tiny_clip)
    model, batch = built(walked(Tracer(), teacher), Averaged), batch_for(teacher)
    _, logs = loss_of(Tracer(), model, batch, teacher)
    s, f, t = features(model.model, batch)
    s_a, f_a, t_a = features(model.average, batch)
    anchor, own, texts, images = s_a * f_a @ t_a.T, s * f @ t.T, s * f @ t_a.T, s * t @ f_a.T
    entropies = [cross_entropy(it, it) for it in (anchor, anchor.T)]
    expected = {
        "features": ((f - f_a) ** 2).mean() + ((t - t_a) ** 2).mean(),
        "relations": cross_entropy(anchor, own) + cross_entropy(anchor.T, own.T) - sum(entropies),
        "interaction": -np.trace(log_softmax(texts) + log_softmax(images)) / len(f),
        "exchange": cross_entropy(anchor, texts) + cross_entropy(anchor.T, images) - sum(entropies),
    }
    expected = {name: it if name == "features" else it / 2 for name, it in expected.items()}
    for name, value in expected.items():
        assert logs[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name
    contrast = float(loss_of(Flyp(), model.model, batch, teacher)[0].detach())
    distilled = 2000 * expected.pop("features") + sum(expected.values())
    assert logs["loss"] == pytest.approx(contrast + 0.05 * logs["cross"] + 0.9 * distilled, 1e-5)


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_a_beta_average_weights_the_trajectory_by_the_density(beta: float) -> None:
    steps = 7
    walk = np.random.default_rng(0).normal(size=steps + 1)
    average = torch.tensor(walk[0])
    for step in range(steps):
        decay = beta_decay(step, steps, beta)
        average = decay * average + (1 - decay) * walk[step + 1]
    density = beta_distribution(beta, beta).pdf((np.arange(steps + 1) + 0.5) / (steps + 1))
    assert average.item() == pytest.approx((density * walk).sum() / density.sum(), rel=1e-9)
    assert beta_decay(0, 10_000, 100 * beta) == pytest.approx(0, abs=1e-9), "all densities are tiny"
