"""Steps and whole runs beside a bare PyTorch loop over preloaded tensors."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.floor.bare import Bare
from benchmarks.floor.measurement import Effort, Measurement, take_turns
from benchmarks.floor.preload import preload, recipe_config
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.training.loop import epochs, train

KL_WEIGHT = 1.0
SEED = 0
ALGORITHMS: Mapping[str, float | None] = {"fine_tune": None, "car_ft": KL_WEIGHT}
"""By name, with the weight of the KL term."""
QUICK: Mapping[str, Mapping[str, Any]] = {
    "data": {"train_fraction": 0.25, "shifts": ["pixel"]},
    "optim": {"epochs": 1},
}
BARE = "bare loop"


def measure_steps(effort: Effort) -> Iterator[Measurement]:
    """Measure the seconds of training alone, without what is evaluated in between."""
    changes = {**QUICK} if effort.quick else {"optim": {"epochs": 1}}
    bare = Bare(preload(recipe_config("car_ft", **changes), SEED))
    sides: dict[str, Callable[[], float | None]] = {
        BARE: lambda: float(bare.train(None)[1]),
        **{
            name: (lambda config: lambda: _training_seconds(config))(recipe_config(name, **changes))
            for name in ALGORITHMS
        },
    }
    seconds = take_turns(effort.rounds, sides)
    for name in ALGORITHMS:
        yield Measurement(f"{name} step", f"{BARE}, fine_tune", seconds[BARE], seconds[name])
    fine_tune, car_ft = (seconds[name] for name in ("fine_tune", "car_ft"))
    yield Measurement("car_ft step beside fine_tune", "fine_tune step", fine_tune, car_ft)


def measure_runs(effort: Effort) -> Iterator[Measurement]:
    """Measure whole runs: training, validation, evaluation, and all files."""
    changes = {**QUICK} if effort.quick else {}
    bare = Bare(preload(recipe_config("car_ft", **changes), SEED))
    for name, kl_weight in ALGORITHMS.items():
        config = recipe_config(name, **changes)

        def run_bare(weight: float | None = kl_weight) -> None:
            bare.run(weight)

        def run_ours(config: TrialConfig = config) -> None:
            with _scratch() as folder:
                train(config, SEED, workdir=folder)

        seconds = take_turns(effort.rounds, {BARE: run_bare, name: run_ours})
        yield Measurement(f"{name} run", f"{BARE}, {name}", seconds[BARE], seconds[name])


def _training_seconds(config: TrialConfig) -> float:
    with _scratch() as folder:
        return sum(report.seconds for report in epochs(config, SEED, workdir=folder))


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as folder:
        yield Path(folder)
