"""What an engine runs for each job: the training core, with its errors told as failure classes."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from sweeps.engines.base import Decision, FailureClass

CORE = "sweeps.engines.entry:train_with_core"
"""The entry of every job outside tests, as `module:function`."""
_NO_HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""PyTorch raises a bare RuntimeError for it."""
LOG = "log.txt"
_TAIL_LINES = 20
_TAIL_BYTES = 20_000
_CLASSES: Mapping[str, FailureClass] = {
    "NonFinite": "nan",
    "OutOfMemoryError": "out_of_memory",
    "MemoryError": "out_of_memory",
    "DownloadFailed": "crashed",
    "RequestError": "data",
}
"""By the name of an exception or of one it derives from, so that naming them imports nothing."""

Report = Callable[[Mapping[str, Any]], Decision]


class Entry(Protocol):
    """A function that trains one run: plain data in, plain data out, None when it was stopped."""

    def __call__(
        self, config: Mapping[str, Any], seed: int, *, report: Report, workdir: Path
    ) -> Mapping[str, Any] | None: ...


def train_with_core(
    config: Mapping[str, Any], seed: int, *, report: Report, workdir: Path
) -> Mapping[str, Any] | None:
    """Train and evaluate one run with `carft_core`."""
    from carft_core.config import trial_config
    from carft_core.train import Decision as CoreDecision
    from carft_core.train import EpochReport, train

    def told(epoch: EpochReport) -> CoreDecision:
        return CoreDecision(report(epoch.as_dict()).value)

    result = train(trial_config(config), seed, report=told, workdir=workdir)
    return None if result is None else result.as_dict()


def run_entry(name: str, job: Mapping[str, Any], report: Report) -> Mapping[str, Any] | None:
    """Import what a job asks for, then run it with the entry that `module:function` names."""
    if job["imports"]:
        from sweeps.spec.user_code import load

        load(job["imports"])
    return _entry(name)(
        job["config"],
        job["seed"],
        report=report,
        workdir=Path(job["workdir"]),
    )


def _entry(name: str) -> Entry:
    module, _, function = name.partition(":")
    return cast(Entry, getattr(importlib.import_module(module), function))


def failure_class(error: BaseException) -> FailureClass:
    """The class of what an entry raised."""
    for base in type(error).__mro__:
        if base.__name__ in _CLASSES:
            return _CLASSES[base.__name__]
    return "out_of_memory" if _NO_HOST_MEMORY in str(error) else "crashed"


def one_line(error: BaseException) -> str:
    """The first line of what an error says, with its kind where the message does not explain it."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    if failure_class(error) in ("nan", "data"):
        return first
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def log_tail(workdir: Path) -> str:
    """The last lines of a run's log; empty when there is none."""
    try:
        with (workdir / LOG).open("rb") as log:
            size = log.seek(0, 2)
            log.seek(max(0, size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])
