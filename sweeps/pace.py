"""How long runs take and how much disk they need, by what was measured of others."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from carft_core.config import TrialConfig
from carft_core.files import read_json
from sweeps.runs import OPTIMISER_STATE, Runs

MOST = 200
"""So many runs of a home are looked at, the newest."""
WEIGHTS = ".safetensors"
"""How the names of files with weights end."""


@dataclass(frozen=True)
class Pace:
    """What the parts of one run take, in seconds."""

    step: float
    epoch: float
    """Behind each epoch: the validation and the checkpoint."""
    model: float
    """Behind the last one, for the run's own model and each merged one: every split."""

    def seconds(self, *, steps: int, epochs: int, models: int) -> float:
        """Of a run with so much before it."""
        return self.step * steps + self.epoch * epochs + self.model * models


@dataclass(frozen=True)
class Sample:
    """One run that was measured."""

    config: Mapping[str, Any]
    device: str
    pace: Pace
    bytes: int
    """That stay on disk once it is done, besides its weights."""
    weights: int = 0
    """Bytes of its weights, as far as they were kept."""

    def kept(self, config: TrialConfig) -> int:
        """The bytes that a run like it keeps on disk when it is done, with `config`."""
        return self.bytes + (self.weights if config.keep.weights else 0)


Likeness = Callable[[Mapping[str, Any]], object]


def _alike(config: Mapping[str, Any]) -> object:
    data = config["data"]
    return config["model"], data["family"], data.get("balanced"), config["optim"]["batch_size"]


def _alike_in_all(config: Mapping[str, Any]) -> object:
    return _alike(config), config["algorithm"]["name"]


def _anything(config: Mapping[str, Any]) -> object:
    del config
    return None


ALIKE = "runs with the same model, family, batch size and device"
ANY = "whatever runs there were: none had the same model, family, batch size and device"
_LIKENESS: Sequence[tuple[str, Likeness, bool]] = (
    (ALIKE, _alike_in_all, True),
    (ALIKE, _alike, True),
    (ANY, _anything, False),
)
"""From the best to the last resort; with the same device, or with any."""


class Experience:
    """Runs that were measured, and what they say of one that was not.

    `told` says what they are, where they stand for every run whatever it is.
    """

    def __init__(self, samples: Sequence[Sample], told: str | None = None) -> None:
        self._samples = samples
        self._told = told

    def of(self, config: TrialConfig) -> tuple[list[Sample], str] | None:
        """The runs most like one whose device is resolved, and in which way they are; None without
        any.
        """
        if self._told is not None:
            return list(self._samples), self._told
        asked, device = config.as_dict(), config.device.partition(":")[0]
        for how, key, same_device in _LIKENESS:
            found = [
                sample
                for sample in self._samples
                if key(sample.config) == key(asked) and (sample.device == device or not same_device)
            ]
            if found:
                return found, how
        return None


def usual(samples: Sequence[Sample]) -> Pace:
    """The medians, so that a run that slept for a night counts for no more than another."""
    return Pace(
        statistics.median(sample.pace.step for sample in samples),
        statistics.median(sample.pace.epoch for sample in samples),
        statistics.median(sample.pace.model for sample in samples),
    )


def experience(runs: Runs) -> Experience:
    """Of the runs of a home that were trained to their end."""
    trained = sorted(runs.path.glob("*/trained.json"), key=_age)[:MOST]
    return Experience([sample for file in trained for sample in _sample(runs, file.parent)])


def _sample(runs: Runs, folder: Path) -> Iterator[Sample]:
    known, state = read_json(folder / "config.json"), runs.read(folder.name)
    history = read_json(folder / "history.json") or []
    steps, waits = [], []
    for before, after in itertools.pairwise(history):
        count = after["step"] - before["step"]
        if count > 0:
            steps.append(after["seconds"] / count)
            span = (after["timestamp"] - before["timestamp"]) / 1000
            waits.append(max(0.0, span - after["seconds"]))
    if known is None or not steps:
        return
    ended = (read_json(folder / "trained.json") or {}).get("ended")
    end = state.ended - ended if state is not None and state.ended and ended else 0.0
    models = sum(1 for _ in folder.glob("evaluations/*/metrics.json"))
    yield Sample(
        known["config"],
        known["config"]["device"].partition(":")[0],
        Pace(statistics.median(steps), statistics.median(waits), max(0.0, end) / max(1, models)),
        *kept_bytes(folder),
    )


def kept_bytes(folder: Path) -> tuple[int, int]:
    """What a run has on disk, but for its optimiser's state: all besides its weights, and these."""
    files = [file for file in folder.rglob("*") if file.name != OPTIMISER_STATE and file.is_file()]
    weights = sum(file.stat().st_size for file in files if file.suffix == WEIGHTS)
    return sum(file.stat().st_size for file in files) - weights, weights


def _age(file: Path) -> float:
    return -file.stat().st_mtime
