"""SWAD: which epochs are averaged, resuming to the bit, and what cannot be its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.algorithms.swad import Swad, Valley
from carft_sweep.carft_core.errors import InvalidConfig
from carft_sweep.carft_core.runs.folder import RunFolder
from tests.carft_core.trained import Config, trained, weights

SHARP = [9, 8, 7, 6, 5, 4, 3, 2, 2.2, 2.3, 2.1, 2.4, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2]
"""A valley from 7 on, whose last epoch below the threshold 2.82 is 11."""


def shares(losses: Sequence[float], **fields: float) -> list[float]:
    """How much of the result is of each epoch: the weights of an epoch's two steps have the mean 1
    at its own place."""
    swad = Swad.model_validate(fields)
    model = Valley(nn.Linear(len(losses), 1, bias=False), max(swad.converge, swad.tolerance))
    weight = model.model.get_parameter("weight")
    for epoch, loss in enumerate(losses):
        with torch.no_grad():
            for step, value in ((2 * epoch, 0.5), (2 * epoch + 1, 1.5)):
                weight.zero_()
                weight[0, epoch] = value
                swad.after_step(model, step, 2 * len(losses))
        swad.after_epoch(model, {"id/val/nll": loss})
    assert model.is_done
    return model.average.get_parameter("weight").flatten().tolist()


def papers(losses: Sequence[float], converge: int, tolerance: int, ratio: float) -> list[float]:
    """Algorithm 1 as it is written, over a list of all losses."""
    first, end, threshold = None, len(losses) - 1, 0.0
    for i in range(len(losses)):
        window = losses[max(0, i - converge + 1) : i + 1]
        if first is None:
            if len(window) == converge and window[0] == min(window):
                first, threshold = i - converge + 1, (1 + ratio) * sum(window) / converge
        elif threshold < min(losses[max(0, i - tolerance + 1) : i + 1]):
            end = i - tolerance
            break
    first = len(losses) - 1 if first is None else first
    return [(first <= i <= end) / (end + 1 - first) for i in range(len(losses))]


@pytest.mark.parametrize("converge", [1, 3, 5])
@pytest.mark.parametrize("tolerance", [1, 2, 6])
def test_the_epochs_of_the_papers_algorithm_are_averaged(converge: int, tolerance: int) -> None:
    generator = torch.Generator().manual_seed(0)
    curves = [SHARP, SHARP[:10], SHARP[:7]]
    curves += [(3 * torch.rand(12, generator=generator)).tolist() for _ in range(6)]
    for losses in curves:
        expected = papers(losses, converge, tolerance, 0.3)
        assert shares(losses, converge=converge, tolerance=tolerance) == pytest.approx(expected)


def test_a_valley_has_the_epochs_of_the_authors_code() -> None:
    """Numbers that khanrc/swad gives for the same losses."""
    assert shares(SHARP) == pytest.approx([0.0] * 7 + [0.2] * 5 + [0.0] * 10)


def test_a_run_validates_what_trains(toy_config: Config, tmp_path: Path) -> None:
    algorithm = {"name": "swad", "converge": 1, "of": {"name": "car_ft"}}
    merges = [{"name": "wise_ft", "alphas": [0.5]}]
    config = toy_config({"algorithm": algorithm, "optim.epochs": 3, "merges": merges})

    whole = trained(config, tmp_path / "whole")
    plain = trained(toy_config({"optim.epochs": 3}), tmp_path / "plain")
    assert whole.metrics != plain.metrics
    state = weights(tmp_path / "whole")
    for key, value in weights(tmp_path / "plain").items():
        assert torch.equal(state[f"model.{key}"], value)
    losses = [
        [report["metrics"]["id/val/nll"] for report in RunFolder(tmp_path / name).history()]
        for name in ("whole", "plain")
    ]
    assert losses[0] == losses[1]


def test_the_best_epoch_cannot_be_its_result(toy_config: Config) -> None:
    for algorithm in ("swad", {"name": "ema", "of": "swad"}):
        with pytest.raises(InvalidConfig, match=r"keep\.result: .* behind the last epoch"):
            toy_config({"algorithm": algorithm, "keep": {"result": "best_val"}})
    assert not ALGORITHMS["ema"]().needs_last_epoch
