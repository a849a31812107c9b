"""Runs of tests: trained to their end, or stopped on the way, and the weights that they leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.runs.evaluations import RunResult
from carft_sweep.carft_core.runs.folder import RunFolder, load_weights
from carft_sweep.carft_core.runs.result import Decision, EpochReport
from carft_sweep.carft_core.training.loop import epochs, train

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


def killed_after(epoch: int, config: TrialConfig, folder: Path) -> list[EpochReport]:
    """The reports of a run that ends without a word behind an epoch, as by SIGKILL."""
    reports = epochs(config, 0, workdir=folder)
    before = [next(reports) for _ in range(epoch + 1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunFolder, "save_checkpoint", lambda *_: None)  # it has no time for it
        reports.close()
    return before


def weights(folder: Path) -> dict[str, Tensor]:
    return load_weights(RunFolder(folder).weights("last"))


def numbers(report: EpochReport | RunResult) -> dict[str, float]:
    """What a report says that does not depend on the clock."""
    return {key: value for key, value in report.metrics.items() if not key.startswith("system/")}


def same(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    """Say whether two states are equal to the bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
