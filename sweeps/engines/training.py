"""The entry of every run outside tests: the training core.

A worker process imports it as soon as it starts, so that a run waits for none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip  # noqa: F401 - what models are opened with, which the core imports only then

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.training.loop import train
from carft_sweep.sweeps.engines.entry import Report


def train_with_core(
    config: Mapping[str, Any], seed: int, *, report: Report, workdir: Path
) -> Mapping[str, Any] | None:
    """Train and evaluate a run with `carft_core`; return its result, None if stopped."""
    result = train(
        trial_config(config), seed, report=lambda epoch: report(epoch.as_dict()), workdir=workdir
    )
    return None if result is None else result.as_dict()
