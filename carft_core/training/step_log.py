"""The points of a run within its epochs: loss, rate and speed, and how busy its machine is."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import append_lines, parse_json, read_lines
from carft_sweep.carft_core.runs.result import Point

EVERY = 10.0
"""Seconds of training between two points, at least: a day has at most 8,640."""
FILE = "steps.jsonl"

_LOG = logging.getLogger(__name__)


class Logs:
    """Weighted means of scalars by name; summed on their device, so that no GPU is waited for."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.weight = 0

    def add(self, values: Mapping[str, Tensor], weight: int) -> None:
        """Add scalars to the means with a weight."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value * weight
        self.weight += weight

    def means(self) -> dict[str, float]:
        """Return the weighted means so far."""
        return {name: float(total) / self.weight for name, total in self.sums.items()}


class StepLog:
    """The log in a run's `steps.jsonl`: a point at the first step after each EVERY seconds.

    The file only grows: a resumed run trains some steps again, and does not log those up to the
    file's last point. So no step has two points, and points that were sent to a tracker stay true.
    """

    def __init__(
        self,
        folder: Path,
        device: torch.device,
        *,
        writes: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._file, self._device = folder / FILE, device
        self._writes, self._clock = writes, clock
        self._last = max((point["step"] for point in read_points(folder)), default=0)
        self._logs, self._seconds, self._now = Logs(), 0.0, clock()
        psutil.cpu_percent()  # gives the mean since the call before

    def begin_epoch(self) -> None:
        """Exclude the time since the last step, in which the model was validated."""
        self._now = self._clock()

    def add(self, step: int, loss: Tensor, rate: float, images: int) -> None:
        """Count the `step`-th step, with its loss and rate; write a point every EVERY seconds."""
        seconds = self._lap()
        if not self._writes or step <= self._last:
            return
        self._seconds += seconds
        self._logs.add({"loss": loss}, images)
        if self._seconds < EVERY:
            return
        mean = self._logs.means()["loss"]  # waits for the device
        speed = self._logs.weight / (self._seconds + self._lap())
        self._logs, self._seconds = Logs(), 0.0
        if not math.isfinite(mean):  # it ends the run soon
            return
        metrics = {
            "train/loss_step": mean,
            "train/lr_step": rate,
            "system/images_per_s_step": speed,
        }
        metrics |= _cpu() | _gpu(self._device)
        point = {"step": step, "timestamp": time.time_ns() // 1_000_000, "metrics": metrics}
        try:
            append_lines(self._file, [json.dumps(point, allow_nan=False)], durable=False)
        except OSError as error:  # costs a point, not the run
            _LOG.warning("the point of step %d is not kept: %s", step, error)
        self._last = step

    def _lap(self) -> float:
        """Return the seconds since the last call."""
        before, self._now = self._now, self._clock()
        return self._now - before


def read_points(folder: Path, behind: int = -1) -> list[dict[str, Any]]:
    """Return the points of a run after step `behind`, in their order, without damaged lines."""
    file, points = folder / FILE, []
    for line in reversed(read_lines(file)):
        try:
            point: dict[str, Any] = parse_json(line, file, Point)
        except RequestError:
            continue
        if point["step"] <= behind:
            break
        points.append(point)
    return points[::-1]


def _cpu() -> dict[str, float]:
    """Return the load of processors and memory, by MLflow's names of system metrics."""
    memory = psutil.virtual_memory()
    return {
        "system/cpu_utilization_percentage": psutil.cpu_percent(),
        "system/system_memory_usage_megabytes": memory.used / 1e6,
        "system/system_memory_usage_percentage": memory.used / memory.total * 100,
    }


def _gpu(device: torch.device) -> dict[str, float]:
    """Return the load of the run's GPU, whichever process uses it; empty without CUDA."""
    if device.type != "cuda":
        return {}
    name = f"system/gpu_{device.index or 0}"
    free, total = torch.cuda.mem_get_info(device)
    metrics = {
        f"{name}_memory_usage_megabytes": (total - free) / 1e6,
        f"{name}_memory_usage_percentage": (total - free) / total * 100,
    }
    with contextlib.suppress(Exception):  # no nvidia-ml-py, or a part of a GPU, of which none knows
        metrics[f"{name}_utilization_percentage"] = float(torch.cuda.utilization(device))
    return metrics
