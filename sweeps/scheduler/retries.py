"""What becomes of failed runs by their class, and when a sweep is given up for them."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data.images import UNREADABLE
from carft_sweep.carft_core.runs.identity import couples_items
from carft_sweep.sweeps.engines.base import Failure
from carft_sweep.sweeps.spec.settings import Retries


@dataclass(frozen=True)
class Retry:
    """A failed run is tried once more."""

    halve: bool
    """In half the memory."""


@dataclass(frozen=True)
class GiveUp:
    """A failed run is not tried again."""

    reason: str


class RetryPolicy:
    """Decides whether a failed run is tried again, by how often this driver saw it fail alike."""

    def __init__(self, retries: Retries) -> None:
        self._allowed: Mapping[str, int] = retries.model_dump()
        self._failed: dict[str, Counter[str]] = {}

    def decide(self, digest: str, failure: Failure, config: TrialConfig) -> Retry | GiveUp:
        """Return whether and how to retry the run `digest`, which failed with `config`."""
        if is_full_disk(failure):
            return GiveUp("the disk is full")
        if failure.narrowed:
            return Retry(halve=False)  # it may happen once for each run that was side by side
        failed = self._failed.setdefault(digest, Counter())
        failed[failure.kind] += 1
        allowed = self._allowed.get(failure.kind, 0)
        if failed[failure.kind] > allowed:
            return GiveUp(f"retries.{failure.kind} is {allowed}")
        is_memory = failure.kind == "out_of_memory"
        if is_memory and not can_be_halved(config):
            return GiveUp("its batches cannot be made smaller")
        return Retry(halve=is_memory)


def halved(config: TrialConfig, times: int) -> TrialConfig:
    """Return the config with micro-batches and evaluation batches halved `times` times, for less
    memory. The effective batch stays, and with it the run's digest. Where items of a batch are
    coupled, micro-batches stay too."""
    if not times:
        return config
    optim, evaluation = config.optim, config.eval
    batch = max(1, evaluation.images_at_once >> times)
    smaller: dict[str, object] = {"eval": evaluation.model_copy(update={"batch_size": batch})}
    if not couples_items(config):
        micro = max(1, (optim.micro_batch or optim.batch_size) >> times)
        smaller["optim"] = optim.model_copy(update={"micro_batch": micro})
    return config.model_copy(update=smaller)


def can_be_halved(config: TrialConfig) -> bool:
    """Return whether batches can be halved without a change of the run's digest. A failure does not
    say whether memory ran out in training or in evaluation, so either suffices."""
    if config.eval.images_at_once > 1:
        return True
    return not couples_items(config) and (config.optim.micro_batch or config.optim.batch_size) > 1


@dataclass(frozen=True)
class _Failed:
    cause: str
    setting: str


class CircuitBreaker:
    """Decides when to stop a sweep whose runs keep failing for one cause, or on one node.

    `limit` runs must have failed in a row; 0: never. The seeds of one setting that become NaN
    count once, since that is what a setting does, not what is broken. A full disk is enough once,
    and so is an image that cannot be decoded: whatever runs next needs them too.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._row: deque[_Failed] = deque(maxlen=max(1, limit))
        self._on_node: Counter[str] = Counter()

    def succeeded(self, worker: str = "") -> None:
        """Count a finished run of a worker (`ray:HOST:PID`), which shows that its node works."""
        self._row.clear()
        words = worker.split(":")
        if len(words) == 3:
            self._on_node.pop(words[1], None)
        else:
            self._on_node.clear()

    def failed(self, failure: Failure, setting: str) -> str | None:
        """Count a failed run of a setting (shared by its seeds); return why to stop, or None."""
        if is_full_disk(failure):
            return f"the disk is full ({failure.message})"
        if UNREADABLE in failure.message and "[Errno" not in failure.message:
            return failure.message
        if not self._limit:
            return None
        cause = f"{failure.kind}: {re.sub('[0-9]+', '#', failure.message)}"
        entry = _Failed(cause, setting)
        if failure.kind == "nan" and entry in self._row:
            return None
        self._row.append(entry)
        if len(self._row) == self._limit and len({item.cause for item in self._row}) == 1:
            return (
                f"{self._limit} runs in a row failed for one cause ({failure.kind}): "
                f"{failure.message}"
            )
        if not failure.node or failure.kind in ("nan", "data"):
            return None  # a node has no part in these
        self._on_node[failure.node] += 1
        if self._on_node[failure.node] >= self._limit:
            return (
                f"{self._limit} runs in a row failed on {failure.node}, the last one "
                f"({failure.kind}): {failure.message}"
            )
        return None


_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


def is_full_disk(failure: Failure) -> bool:
    """Return whether the run failed because the disk, or the user's quota, was full."""
    return failure.kind == "crashed" and any(text in failure.message for text in _FULL)
