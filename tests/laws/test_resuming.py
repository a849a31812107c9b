"""A run that was stopped ends as one that was not, whatever trains it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.merges import MERGES
from carft_sweep.carft_core.runs.evaluations import finish
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.training.optim import OPTIMISERS
from tests import domain_bed_tree
from tests.carft_core.trained import same, stopped, trained, weights

TAKE_STEPS = [name for name, cls in ALGORITHMS.items() if cls().takes_steps]
FIELDS: dict[str, dict[str, Any]] = {name: {"of": "car_ft"} for name in ("ema", "swad", "lora")}
FIELDS["swad"] |= {"converge": 1}
"""Of wrappers what they wrap."""


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return domain_bed_tree.make(tmp_path_factory.mktemp("pacs"), "pacs", per_domain=10)


def check_resumes(pacs: Path, model: Path, folder: Path, **changes: Any) -> TrialConfig:
    """Train a run of three epochs whole, and stopped after the first."""
    data = {"family": "pacs", "root": str(pacs), "test_domain": "sketch"}
    optim = {"lr": 1e-3, "steps": 3, "steps_per_epoch": 1, "batch_size": 4}
    fields = {"data": data, "optim": optim | changes.pop("optim", {}), "keep": {"result": "last"}}
    config = trial_config({"model": {"name": str(model)}, "device": "cpu", **fields, **changes})
    whole = trained(config, folder / "whole")
    stopped(config, folder / "stopped", after=1)
    assert trained(config, folder / "stopped").metrics == whole.metrics
    assert same(weights(folder / "stopped"), weights(folder / "whole"))
    histories = [RunFolder(folder / name).history() for name in ("whole", "stopped")]
    losses = [[epoch["metrics"].get("train/loss") for epoch in history] for history in histories]
    assert losses[0] == losses[1]
    assert finish(folder / "whole", config, 0).metrics == whole.metrics
    assert bool(config.merges) == ("wise_ft@0.5" in whole.merges)
    return config


@pytest.mark.parametrize("name", TAKE_STEPS)
def test_a_run_resumes_to_the_bit_and_is_merged(
    name: str, pacs: Path, tiny_clip_files: Path, tmp_path: Path
) -> None:
    merges = ["wise_ft"] if MERGES["wise_ft"]().refuses(ALGORITHMS[name]()) is None else []
    algorithm = {"name": name, **FIELDS.get(name, {})}
    check_resumes(pacs, tiny_clip_files, tmp_path, algorithm=algorithm, merges=merges)


@pytest.mark.parametrize("name", OPTIMISERS)
def test_an_optimiser_resumes_to_the_bit(
    name: str, pacs: Path, tiny_clip_files: Path, tmp_path: Path
) -> None:
    optim = {"name": name, "micro_batch": 3}
    check_resumes(pacs, tiny_clip_files, tmp_path, algorithm="fine_tune", optim=optim)
