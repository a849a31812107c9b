"""Whether a failed run is tried again, by its failure class, and when the sweep is given up."""

from __future__ import annotations

import errno
import os
import re
from collections import Counter, deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data.images import UNREADABLE
from carft_sweep.carft_core.runs.identity import coupling
from carft_sweep.sweeps.engines.base import Failure
from carft_sweep.sweeps.spec.settings import Retries


@dataclass(frozen=True)
class Retry:
    """A failed run is tried once more."""

    halve: bool
    """Whether in half the memory."""


@dataclass(frozen=True)
class GiveUp:
    """A failed run is not tried again."""

    reason: str


class RetryPolicy:
    """Decides whether a failed run is tried again, by how often this driver saw it fail alike."""

    def __init__(self, retries: Retries) -> None:
        self._allowed: Mapping[str, int] = retries.model_dump()
        self._failed: dict[str, Counter[str]] = {}
        self._nodes: dict[str, dict[str, None]] = {}

    def nodes_to_avoid(self, digest: str) -> tuple[str, ...]:
        """Return the nodes on which a run failed: another one shows whether they are at fault."""
        return tuple(self._nodes.get(digest, ()))

    def decide(self, digest: str, failure: Failure, config: TrialConfig) -> Retry | GiveUp:
        """Return whether and how to retry the run `digest`, which failed with `config`."""
        if is_full_disk(failure):
            return GiveUp("the disk is full")
        if failure.narrowed or failure.unfit:
            # It may happen once for each run that was side by side, or tried on that node.
            return Retry(halve=False)
        if failure.kind in NODE_KINDS and failure.node:
            self._nodes.setdefault(digest, {})[failure.node] = None
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
    if not coupling(config):
        micro = max(1, (optim.micro_batch or optim.batch_size) >> times)
        smaller["optim"] = optim.model_copy(update={"micro_batch": micro})
    return config.model_copy(update=smaller)


def can_be_halved(config: TrialConfig) -> bool:
    """Return whether batches can be halved without a change of the run's digest. A failure does not
    say whether memory ran out in training or in evaluation, so either suffices."""
    if config.eval.images_at_once > 1:
        return True
    return not coupling(config) and (config.optim.micro_batch or config.optim.batch_size) > 1


NODE_KINDS = ("crashed", "timeout")
"""Failures in which a node may have a part."""
NODE_LIMIT = 3
"""Failures on a node, without a success between them and of settings that failed nowhere else,
after which no run begins there any more."""


@dataclass(frozen=True)
class _Failed:
    cause: str
    setting: str
    node: str = field(compare=False)


class CircuitBreaker:
    """Says when runs keep failing for one cause or on one node, so that going on is waste.

    `limit` runs must have failed in a row; 0: never. The seeds of one setting that become NaN
    count once, since that is what a setting does, not what is broken. A full disk is enough once,
    and so is an image that cannot be decoded: whatever runs next needs them too. Failures that
    follow one node of several do not end the sweep: no run begins there any more.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._row: deque[_Failed] = deque(maxlen=max(1, limit))
        self._nodes: frozenset[str] = frozenset()
        self._unfit: dict[str, str] = {}
        self._on_node: dict[str, dict[str, list[str]]] = {}
        """By node and setting the failures there since the last success."""
        self._nodes_of: dict[str, set[str]] = {}
        """By setting the nodes on which it has failed."""

    def usable(self, nodes: Collection[str]) -> Collection[str]:
        """Return those of `nodes` (the names of all) on which runs may begin."""
        self._nodes = frozenset(nodes)
        return self._nodes - self.bad_nodes().keys()

    def bad_nodes(self) -> dict[str, str]:
        """Return the nodes on which no run may begin, each with the last failure there."""
        bad = dict(self._unfit)
        if not self._limit or len(self._nodes) < 2:
            return bad
        for node, settings in self._on_node.items():
            own = {name: why for name, why in settings.items() if self._nodes_of[name] == {node}}
            if sum(map(len, own.values())) >= min(self._limit, NODE_LIMIT):
                bad.setdefault(node, [*own.values()][-1][-1])
        return bad

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
        if failure.unfit:
            self._unfit[failure.node] = failure.message
        elif self._limit and failure.node and failure.kind in NODE_KINDS:
            settings = self._on_node.setdefault(failure.node, {})
            settings.setdefault(setting, []).append(f"{failure.kind}: {failure.message}")
            self._nodes_of.setdefault(setting, set()).add(failure.node)
        bad, failed = self.bad_nodes(), f"({failure.kind}): {failure.message}"
        if bad and self._nodes <= bad.keys():
            return f"no node is left on which runs succeed, the last one {failure.node}: " + (
                f"({failure.kind}) {failure.message}"
            )
        if failure.node in bad or not self._limit:
            return None
        cause = f"{failure.kind}: {re.sub('[0-9]+', '#', failure.message)}"
        entry = _Failed(cause, setting, failure.node)
        if failure.kind == "nan" and entry in self._row:
            return None
        self._row.append(entry)
        good = [item for item in self._row if item.node not in bad]
        if len(good) == self._limit and len({item.cause for item in good}) == 1:
            return f"{self._limit} runs in a row failed for one cause {failed}"
        if sum(map(len, self._on_node.get(failure.node, {}).values())) >= self._limit:
            return f"{self._limit} runs in a row failed on {failure.node}, the last one {failed}"
        return None


_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))


def is_full_disk(failure: Failure) -> bool:
    """Return whether the run failed because the disk, or the user's quota, was full."""
    return failure.kind == "crashed" and any(text in failure.message for text in _FULL)
