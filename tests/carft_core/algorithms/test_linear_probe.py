"""The linear probe against scikit-learn and the conditions of a minimum, and LP-FT behind it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm
from carft_sweep.carft_core.runs.evaluations import finish
from carft_sweep.carft_core.runs.folder import RunFolder, load_weights
from carft_sweep.carft_core.runs.identity import identify
from carft_sweep.carft_core.training import logistic_regression as solver
from carft_sweep.carft_core.training.logistic_regression import CONVERGED, logistic_regression
from carft_sweep.carft_core.training.loop import epochs
from tests.carft_core.refusals import refused
from tests.carft_core.trained import Config, trained, weights


def problem(count: int = 200, width: int = 12, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Unit-norm features that say something of the labels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (count,), generator=generator)
    centres = torch.randn(classes, width, generator=generator)
    noise = 1.5 * torch.randn(count, width, generator=generator)
    return F.normalize(centres[labels] + noise, dim=1), labels


@pytest.mark.parametrize("c", [0.1, 10.0, 1000.0])
def test_it_is_scikit_learns_logistic_regression(c: float) -> None:
    features, labels = problem()
    weight, values = logistic_regression(features, labels, torch.zeros(4, 12), c=c, max_iter=1000)
    judge = LogisticRegression(C=c, fit_intercept=False, tol=1e-10, max_iter=10_000)
    judge.fit(features.double().numpy(), labels.numpy())
    assert values["gradient"] <= CONVERGED
    np.testing.assert_allclose(weight.numpy(), judge.coef_, rtol=2e-3, atol=2e-3)
    ours = F.softmax(features.double() @ weight.T, dim=1).numpy()
    np.testing.assert_allclose(ours, judge.predict_proba(features.double().numpy()), atol=1e-4)


def test_the_gradient_vanishes_at_the_solution_about_another_centre() -> None:
    features, labels = problem()
    centre = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    solution, values = logistic_regression(features, labels, centre, c=5.0, max_iter=1000)
    rows, weight = features.double().numpy(), solution.numpy()
    exp = np.exp(rows @ weight.T)
    residual = exp / exp.sum(axis=1, keepdims=True) - np.eye(4)[labels.numpy()]
    penalty = (weight - centre.double().numpy()) / (5.0 * len(rows))
    gradient = residual.T @ rows / len(rows) + penalty
    assert np.abs(gradient).max() < 2 * CONVERGED
    assert values["gradient"] == pytest.approx(np.abs(gradient).max(), rel=1e-6)
    little, _ = logistic_regression(features, labels, centre, c=1e-6, max_iter=1000)
    assert torch.allclose(little.float(), centre, atol=1e-3), "it has no room"


def test_parts_of_the_images_have_the_solution_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    features, labels = problem()
    whole, _ = logistic_regression(features, labels, torch.zeros(4, 12), c=10.0, max_iter=1000)
    monkeypatch.setattr(solver, "LOGITS_AT_ONCE", 4 * 33)
    parts, _ = logistic_regression(features, labels, torch.zeros(4, 12), c=10.0, max_iter=1000)
    assert torch.allclose(whole, parts, rtol=1e-3, atol=1e-4)


def test_a_run_is_one_epoch_to_the_solution(toy_config: Config, tmp_path: Path) -> None:
    config = toy_config({"algorithm": "linear_probe"})
    reports = list(epochs(config, 0, workdir=tmp_path / "solved"))
    counts = [(report.epoch, report.epochs, report.step, report.steps) for report in reports]
    assert counts == [(0, 1, 0, 1), (1, 1, 1, 1)]
    before, after = (report.metrics for report in reports)
    assert after["id/val/top1"] > before["id/val/top1"]
    assert after["train/gradient"] <= CONVERGED
    cut_short = toy_config({"algorithm": {"name": "linear_probe", "max_iter": 1}})
    assert "raise algorithm.max_iter" in trained(cut_short, tmp_path / "few").warnings[0]


def test_it_moves_the_head_alone_and_is_merged(toy_config: Config, tmp_path: Path) -> None:
    merge = {"name": "wise_ft", "alphas": [0.0, 0.5, 1.0]}
    best = {"result": "best_val"}
    config = toy_config({"algorithm": "linear_probe", "merges": [merge], "keep": best})
    result = trained(config, tmp_path / "probe")
    zero_shot = trained(toy_config({"algorithm": "zero_shot"}), tmp_path / "zero_shot")
    assert result.merges["wise_ft@1"]["metrics"] == result.metrics
    start = result.merges["wise_ft@0"]["metrics"]
    assert start["id/test/nll"] == zero_shot.metrics["id/test/nll"]
    facts = result.facts
    assert (result.warnings, facts["budget"], facts["augmentation"]) == ([], None, None)
    kl = [value for key, value in result.metrics.items() if key.endswith("/kl")]
    assert max(kl) < 1e-9, "the tower is the zero-shot one"
    assert set(load_weights(RunFolder(tmp_path / "probe").weights("best_val"))) > {"head.weight"}


def test_no_seed_and_no_optimiser_moves_the_solution(toy_config: Config, tmp_path: Path) -> None:
    changes = [{}, {"optim.lr": 1.0, "optim.epochs": 7, "optim.batch_size": 3}]
    plain, other = (toy_config({"algorithm": "linear_probe", **change}) for change in changes)
    for seed, config in enumerate((plain, other)):
        trained(config, tmp_path / str(seed), seed)
    assert torch.equal(*(weights(tmp_path / name)["head.weight"] for name in "01"))
    assert identify(plain, 0).digest == identify(other, 0).digest
    assert identify(plain, 0).digest != identify(plain, 1).digest


@pytest.mark.usefixtures("registries")
def test_an_algorithm_that_solves_says_how() -> None:
    class Silent(Algorithm):
        name: ClassVar[str] = "silent"
        summary: ClassVar[str] = "Does not say how it solves"
        solves: ClassVar[bool] = True

    refused("it lacks `solve`", ALGORITHMS.register, Silent)


def test_lp_ft_starts_where_the_linear_probe_ends_and_trains_tower_and_head(
    toy_config: Config, tmp_path: Path
) -> None:
    changes = {"optim.epochs": 1, "merges": [{"name": "wise_ft", "alphas": [0.5]}]}
    lp_ft, probe = (
        toy_config({"algorithm": {"name": name, "C": 3.0}, **changes})
        for name in ("lp_ft", "linear_probe")
    )
    start, _ = epochs(lp_ft, 0, workdir=tmp_path / "lp_ft")
    *_, end = epochs(probe, 0, workdir=tmp_path / "probe")
    measured = {key: value for key, value in end.metrics.items() if key.startswith("id/")}
    assert measured.items() <= start.metrics.items()
    result = finish(tmp_path / "lp_ft", lp_ft, 0)
    assert result.merges["wise_ft@0.5"]["metrics"] != result.metrics
    tuned, probed = (weights(tmp_path / name) for name in ("lp_ft", "probe"))
    assert not any(torch.equal(tuned[key], probed[key]) for key in ("head.weight", "visual.proj"))
