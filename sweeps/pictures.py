"""What the data of sweeps looks like: its class names, and images that a model kept or lost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from carft_core.errors import RequestError
from carft_core.files import read_json
from sweeps.as_run import AsRun
from sweeps.home import Home
from sweeps.imports import load
from sweeps.mirror import Kept, beside_trials
from tracking.compare import Comparison
from tracking.gallery import Gallery, pick
from tracking.page import Pictures
from tracking.records import CONFIRMED, RunRecord
from tracking.verdict import Finding, zero_shot_of

if TYPE_CHECKING:
    from carft_core.config import TrialConfig


@dataclass(frozen=True)
class Look:
    """What a report knows of the data, as far as it is there."""

    class_names: tuple[str, ...] = ()
    pictures: Pictures | None = None


def look_at_data(home: Home, sweeps: Sequence[Kept], comparison: Comparison) -> Look:
    """The class names of the data that the selected setting was trained on, and its gallery.

    Data that cannot be opened here, or has changed, has no names and no thumbnails; runs without
    predictions have no gallery. Nothing is raised for either.
    """
    judged = _judged(comparison)
    runs = _runs(comparison) if judged is None else judged.candidate.done
    claimed = next((found for run in runs if (found := _claimed(run)) is not None), None)
    gallery = None if judged is None else _gallery(judged, comparison)
    if claimed is None:
        return Look(pictures=None if gallery is None else Pictures(gallery, {}, ()))
    with contextlib.suppress(RequestError), _where_it_ran(home, sweeps, claimed["digest"]):
        return _seen(claimed, gallery)
    return Look(pictures=None if gallery is None else Pictures(gallery, {}, ()))


def _seen(claimed: dict[str, Any], gallery: Gallery | None) -> Look:
    """Raises RequestError where the data cannot be opened, or is not what it was."""
    from carft_core.config import trial_config
    from carft_core.data import open_data

    config, digest = trial_config(claimed["config"]), claimed["identity"]["data"]["digest"]
    data = open_data(config.data)
    if data.digest_of_training != digest:
        raise RequestError(f"the data of {config.data.family} has changed")
    names = tuple(data.class_names)
    if gallery is None:
        return Look(names)
    return Look(names, Pictures(gallery, _thumbnails(config, gallery, digest), names))


def _thumbnails(config: TrialConfig, gallery: Gallery, digest: str) -> dict[tuple[str, str], bytes]:
    from carft_core.thumbnails import thumbnails

    wanted: dict[str, list[str]] = {}
    for picture in gallery.pictures:
        wanted.setdefault(picture.split, []).append(picture.item)
    return thumbnails(config, wanted, data_digest=digest)


def _gallery(judged: Finding, comparison: Comparison) -> Gallery | None:
    zero_shots = [row.arm for row in comparison.rows if row.arm.is_zero_shot]
    zero_shot = zero_shot_of(judged.reference, zero_shots)
    if zero_shot is None:
        return None
    seeds = judged.difference.seeds
    return pick(judged.candidate, judged.reference, zero_shot.done[0], seeds)


def _judged(comparison: Comparison) -> Finding | None:
    """The finding on the selected setting, else the first one."""
    chosen = comparison.selected
    found = [
        finding
        for finding in comparison.findings
        if finding.candidate.trains and finding.reference.trains and finding.difference.seeds
    ]
    for finding in found:
        if chosen and finding.candidate.label.removesuffix(CONFIRMED) == chosen.label:
            return finding
    return found[0] if found else None


def _runs(comparison: Comparison) -> list[RunRecord]:
    return [run for row in comparison.rows if row.arm.merge is None for run in row.arm.done]


def _claimed(run: RunRecord) -> dict[str, Any] | None:
    """What the run's folder says that it is, where it tells of the data."""
    found: dict[str, Any] | None = None
    if run.folder is not None:
        found = read_json(run.folder / "config.json")
    return found if found and "identity" in found else None


@contextlib.contextmanager
def _where_it_ran(home: Home, sweeps: Sequence[Kept], digest: str) -> Iterator[None]:
    """In the working folder of the sweep that has the run, with the user's own modules."""
    for sweep in sweeps:
        load(sweep.spec.get("import", ()))
    owner = next((sweep for sweep in sweeps if _has(sweep, digest)), sweeps[0])
    with AsRun.read(home.sweep(owner.name)).in_its_folder():
        yield


def _has(sweep: Kept, digest: str) -> bool:
    settings = [*beside_trials(sweep), *map(vars, sweep.trials())]
    return any(digest in setting["runs"].values() for setting in settings)
