"""The entry that a worker calls for each job, and the failure classes of its errors."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.regular_files import RefusedFile, open_regular
from carft_sweep.sweeps.engines.base import FailureClass

CORE = "carft_sweep.sweeps.engines.training:train_with_core"
"""The entry of every job outside tests, as `module:function`."""
_NO_HOST_MEMORY = "DefaultCPUAllocator: can't allocate memory"
"""In the plain RuntimeError that PyTorch raises where the machine's memory is full."""
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


class RankFailed(RuntimeError):
    """Another process (rank) of the same run failed: with its message, and its failure class."""

    def __init__(self, kind: FailureClass, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class Entry(Protocol):
    """A function that trains one run: plain data in, plain data out, None when it was stopped."""

    def __call__(
        self, config: Mapping[str, Any], seed: int, *, report: Report, workdir: Path
    ) -> Mapping[str, Any] | None: ...


def run_entry(name: str, job: Mapping[str, Any], report: Report) -> Mapping[str, Any] | None:
    """Import the modules of a job, then run the job by the entry `name` (`module:function`); return
    its result, or None if stopped."""
    if job["imports"]:
        from carft_sweep.sweeps.spec.user_code import load

        load(job["imports"])
    return load_entry(name)(job["config"], job["seed"], report=report, workdir=Path(job["workdir"]))


def load_entry(name: str) -> Entry:
    """Return the entry `name` (`module:function`), after importing its module."""
    module, _, function = name.partition(":")
    return cast(Entry, getattr(importlib.import_module(module), function))


def classify(error: BaseException) -> tuple[FailureClass, str]:
    """Return the class of an entry's exception, and the first line of its message, with the error's
    type where the message does not explain itself."""
    if isinstance(error, RankFailed):
        return error.kind, str(error)
    text = str(error).strip()
    first = text.splitlines()[0] if text else ""
    named = (_CLASSES[base.__name__] for base in type(error).__mro__ if base.__name__ in _CLASSES)
    kind = next(named, "out_of_memory" if _NO_HOST_MEMORY in text else "crashed")
    if kind in ("nan", "data"):
        return kind, first
    return kind, f"{type(error).__name__}: {first}" if first else type(error).__name__


def open_log(workdir: Path | str, flags: int) -> int:
    """Open a run's log and return its descriptor. Raises RequestError for an irregular file."""
    try:
        return open_regular(Path(workdir, LOG), flags)
    except RefusedFile as error:
        raise RequestError(f"{error.filename} {error.strerror}; remove it") from None


def log_tail(workdir: str) -> str:
    """Return the last lines of a run's log; empty if there is no log."""
    try:
        with os.fdopen(open_log(workdir, os.O_RDONLY), "rb") as log:
            size = log.seek(0, 2)
            log.seek(max(0, size - _TAIL_BYTES))
            text = log.read().decode(errors="replace")
    except (OSError, RequestError):
        return ""
    return "\n".join(text.splitlines()[-_TAIL_LINES:])
