"""What waits in the home for a tracking server, and what one has refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from sweeps.claim import holder
from sweeps.doctor.base import Asked, Check, Finding, ok, warning
from tracking.journal import records_behind, records_refused, sweeps_behind
from tracking.where import where


def _waiting(asked: Asked) -> Iterator[Finding]:
    ours = where(asked.home.path).spool
    for folder in _folders(asked):
        for name in sweeps_behind(folder):
            told = f"{records_behind(folder, name)} records of {name} wait"
            driver = holder(asked.home.sweep(name))
            if driver is not None:
                yield ok(f"{told}; {driver} is delivering them")
            elif folder == ours:
                yield warning(told)
            else:
                yield warning(
                    f"{told} for another server or experiment than is named now",
                    "set MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME as they were for the run, "
                    "then carft-sweep sync",
                )


def _refused(asked: Asked) -> Iterator[Finding]:
    for folder in _folders(asked):
        for file, count in records_refused(folder).items():
            yield warning(f"the server refused {count} records; they lie with reasons in {file}")


def _folders(asked: Asked) -> list[Path]:
    """The home's own spool, and those for other places."""
    spool = asked.home.path.resolve() / "spool"
    below = (path for path in spool.glob("*") if path.is_dir() and path.suffix != ".files")
    return [spool, *sorted(below)]


CHECKS = (
    Check(
        "spool.waiting",
        "records that wait for the tracking server though nobody delivers them",
        "carft-sweep sync",
        _waiting,
    ),
    Check(
        "spool.refused",
        "records that the tracking server has refused",
        "read the reasons; remove the file once they are understood",
        _refused,
    ),
)
