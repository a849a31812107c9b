"""Comparisons for notebooks: `from tracking import load_comparison`, from MLflow alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tracking.compare import REFERENCE, Comparison
from tracking.filters import condition
from tracking.joint import Part, compared
from tracking.judging import Judging
from tracking.where import EXPERIMENT, home_folder, where


def load_comparison(
    *sweeps: str,
    home: str | Path | None = None,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    conditions: Sequence[str] = (),
    reference: str = REFERENCE,
    judging: Judging | None = None,
) -> Comparison:
    """The comparison of one sweep, or of several as one, as MLflow knows their runs.

    `sweeps` are names, or `NAME@HOME` where several homes on a server have one. The runs are read
    from `tracking_uri`, else from where the runs of `home` (CARFT_HOME, `.carft`) are kept; what
    their folders hold (predictions, curves) is there as long as they lie in the home.
    `conditions` are those of `compare --where`, such as `kl_weight>=0.3`; `reference` is the
    algorithm to compare with; `judging` goes before how the sweeps choose. Raises TrackingError
    for an unknown sweep, with the nearest name, and where the sweeps judge differently;
    ServiceUnreachable when the server does not answer.
    """
    if not sweeps:
        raise TypeError("load_comparison needs the name of a sweep")
    parts = _from(tracking_uri, experiment, sweeps) if tracking_uri else _of(home, sweeps)
    texts = [conditions] if isinstance(conditions, str) else conditions
    chosen = [condition(text) for text in texts]
    return compared(parts, judging=judging, conditions=chosen, reference=reference)


def _from(uri: str, experiment: str | None, sweeps: Sequence[str]) -> list[Part]:
    from tracking.mlflow_reader import MlflowReader
    from tracking.served import find

    reader = MlflowReader(uri, experiment or EXPERIMENT)
    there = reader.sweeps()
    return [reader.part(find(there, name), name) for name in dict.fromkeys(sweeps)]


def _of(home: str | Path | None, sweeps: Sequence[str]) -> list[Part]:
    """A home's own sweeps, also on a server that other homes use."""
    from tracking.mlflow_reader import MlflowReader
    from tracking.served import find

    folder = home_folder(None if home is None else os.fspath(home))
    place = where(folder)
    reader = MlflowReader(place.uri, place.experiment)
    there, own = reader.sweeps(), _id(folder)
    found = []
    for name in dict.fromkeys(sweeps):
        asked = name if "@" in name or own is None else f"{name}@{own}"
        found.append(_with_folders(reader.part(find(there, asked), name), folder / "runs"))
    return found


def _with_folders(part: Part, runs: Path) -> Part:
    """The part with the folders of those of its runs that lie here."""
    records = [
        replace(record, folder=folder) if (folder := runs / record.digest).is_dir() else record
        for record in part.records
    ]
    return replace(part, records=records)


def _id(folder: Path) -> str | None:
    """The home's id, where it has one; none is made for who only reads."""
    try:
        return (folder / "id").read_text().strip()
    except FileNotFoundError:
        return None
