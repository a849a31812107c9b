"""Runs of tests: trained to their end, or stopped on the way, and the weights that they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.runs.folder import RunFolder, RunResult, load_weights
from carft_sweep.carft_core.runs.result import Decision, EpochReport
from carft_sweep.carft_core.training.loop import train

Config = Callable[..., TrialConfig]
"""What `toy_config` and `pacs_config` are."""


def trained(config: TrialConfig, folder: Path, seed: int = 0) -> RunResult:
    """Train a run to its end, or from where it was stopped."""
    result = train(config, seed, workdir=folder)
    assert result is not None
    return result


def stopped(config: TrialConfig, folder: Path, after: int) -> None:
    """Train a run until an epoch has been reported."""

    def report(epoch: EpochReport) -> Decision:
        return Decision.STOP if epoch.epoch == after else Decision.CONTINUE

    assert train(config, 0, workdir=folder, report=report) is None


def weights(folder: Path) -> dict[str, Tensor]:
    """Return the last weights of a run."""
    return load_weights(RunFolder(folder).weights("last"))


def numbers(report: EpochReport) -> dict[str, float]:
    """What a report says that does not depend on the clock."""
    return {key: it for key, it in report.metrics.items() if not key.startswith("system/")}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Say whether two states are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
