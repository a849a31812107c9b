"""The predictions that a comparison's runs keep as one frame: a row for each image and model."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.predictions import class_names, predictions_path, read_columns
from carft_sweep.tracking.comparison.runs import UNMERGED, Arm, RunRecord, split_merge
from carft_sweep.tracking.errors import TrackingError, unknown_name
from carft_sweep.tracking.report.formats import with_origin

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MOST_ROWS = 20_000_000
"""Rows of one frame: 0.6 GB, and about twice as much while it is made."""
_SHIFT, _OWN = "ood/", ("id/", "ood/")
"""What the names of shifts begin with, and those of splits whose classes are the family's."""
_COLUMNS = ("split", "id", "label", "prediction", "confidence")


@dataclass(frozen=True)
class _Model:
    """One evaluated model of a finished run, and where its predictions are."""

    task: Mapping[str, str]
    """Of several tasks, the parameter that tells them apart and its value."""
    arm: Arm
    run: RunRecord
    merge: str | None
    path: Path


def predictions_frame(
    comparison: Comparison,
    *,
    splits: str | Sequence[str] | None = None,
    settings: str | Sequence[str] | None = None,
    merges: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
) -> pd.DataFrame:
    """Return a row for each image of each split and model; see `carft_sweep.predictions`."""
    import pyarrow as arrow

    every = [*_models(comparison)]
    readable = [model for model in every if model.path.is_file()]
    if not readable:
        raise TrackingError(
            f"no finished run of {comparison.sweep} keeps predictions here: they are in the run "
            "folders of the home that trained it, unless trial.keep.predictions is false"
        )
    chosen = _of_settings(_of_merges(_of_seeds(readable, seeds), merges), settings)
    if lacking := len(every) - len(readable):
        warnings.warn(
            f"{lacking} of {len(every)} models of {comparison.sweep} keep no predictions here and "
            "have no rows",
            stacklevel=3,
        )
    counts = {model.path: _count(model.path) for model in chosen}
    wanted = _splits(splits, dict.fromkeys(name for each in counts.values() for name in each))
    rows = sum(n for each in counts.values() for name, n in each.items() if name in wanted)
    if rows > MOST_ROWS:
        raise TrackingError(
            f"{rows:,} predictions of {len(chosen)} models are more than fit into one frame "
            f"({MOST_ROWS:,}); choose some with splits=, settings=, merges= or seeds="
        )
    tables = [_table(model, wanted) for model in chosen]
    whole = arrow.concat_tables(tables, promote_options="default").unify_dictionaries()
    frame = whole.to_pandas(split_blocks=True, self_destruct=True)
    return with_origin(frame.astype({"seed": "Int64"}), comparison)


def _models(comparison: Comparison) -> Iterator[_Model]:
    """Yield every evaluated model of every finished run."""
    parts: list[tuple[Mapping[str, str], Comparison]] = [({}, comparison)]
    if comparison.task_table is not None:
        field = comparison.task_table.field
        parts = [({field: task}, part) for task, part in comparison.tasks.items()]
    for task, part in parts:
        for row in part.rows:
            for run in row.arm.done if row.arm.merge is None else ():
                for merge in (None, *run.merges):
                    path = predictions_path(run.folder or Path(run.digest), merge)
                    yield _Model(task, row.arm, run, merge, path)


def _of_seeds(models: Sequence[_Model], seeds: int | Sequence[int] | None) -> list[_Model]:
    """Choose by seed; what no seed changes stays."""
    if seeds is None:
        return [*models]
    wanted = [seeds] if isinstance(seeds, int) else [*seeds]
    seeds_there = sorted({model.run.seed for model in models if model.run.seed is not None})
    for seed in wanted:
        if seed not in seeds_there:
            raise TrackingError(unknown_name("seed", str(seed), map(str, seeds_there)))
    return [model for model in models if model.run.seed in (None, *wanted)]


def _of_merges(models: Sequence[_Model], merges: str | Sequence[str] | None) -> list[_Model]:
    """Choose by a merge, all its numbers or one: `wise_ft`, `wise_ft@0.5`, `unmerged`."""
    names = [(model.merge or UNMERGED, split_merge(model.merge or UNMERGED)[0]) for model in models]
    return _chosen(models, names, "merge", merges)


def _of_settings(models: Sequence[_Model], settings: str | Sequence[str] | None) -> list[_Model]:
    """Choose by a setting, or all of an algorithm."""
    names = [(model.arm.label, model.arm.algorithm) for model in models]
    return _chosen(models, names, "setting", settings)


def _chosen(
    models: Sequence[_Model],
    names: Sequence[tuple[str, ...]],
    kind: str,
    wanted: str | Sequence[str] | None,
) -> list[_Model]:
    """Return the models of which a name is wanted. Raises TrackingError for a name of none."""
    if wanted is None:
        return [*models]
    available = dict.fromkeys(name for each in names for name in each)
    every = _texts(wanted, kind, available)
    return [model for model, own in zip(models, names, strict=True) if not every.isdisjoint(own)]


def _texts(wanted: str | Sequence[str], kind: str, available: Iterable[str]) -> set[str]:
    names = [wanted] if isinstance(wanted, str) else [*wanted]
    available = [*available]
    for name in names:
        if name not in available:
            raise TrackingError(unknown_name(kind, name, available))
    return {*names}


def _splits(wanted: str | Sequence[str] | None, available: Iterable[str]) -> set[str]:
    """Choose splits by name, shifts also by theirs alone: `ood/outline`, `outline`."""
    names = [*available]
    if wanted is None:
        return {*names}
    short = {name.removeprefix(_SHIFT): name for name in names}
    return {short.get(name, name) for name in _texts(wanted, "split", [*names, *short])}


def _count(path: Path) -> Mapping[str, int]:
    """Count the predictions of each split of a file."""
    column = read_columns(path, ("split",))["split"]
    return {str(it["values"]): int(it["counts"]) for it in column.value_counts().to_pylist()}


def _table(model: _Model, splits: set[str]) -> pa.Table:
    """Make the rows of one model; texts are dictionaries, so that a row is some 30 bytes."""
    import pyarrow as arrow
    import pyarrow.compute as compute

    rows = read_columns(model.path, _COLUMNS)
    split = rows["split"].cast(arrow.string())
    is_wanted = compute.is_in(split, value_set=arrow.array(sorted(splits), arrow.string()))
    rows, split = rows.filter(is_wanted), split.filter(is_wanted)
    splits_here = split.combine_chunks().dictionary_encode()
    names = splits_here.dictionary.to_pylist()
    shifts = [it.removeprefix(_SHIFT) if it.startswith(_SHIFT) else None for it in names]
    of_family = np.array([it.startswith(_OWN) for it in names], bool)[splits_here.indices]
    numbers = [rows[name].to_numpy().astype(np.int64) for name in ("label", "prediction")]
    names_and_numbers = _names(
        class_names(model.run), max(int(it.max(initial=-1)) for it in numbers)
    )
    count = len(names_and_numbers) // 2

    def named(number: np.ndarray[tuple[int], np.dtype[np.int64]]) -> pa.Array:
        places = number + count * ~of_family
        return (
            arrow.array(names_and_numbers, arrow.string())
            .take(arrow.array(places))
            .dictionary_encode()
        )

    def constant(text: str | None) -> pa.Array:
        return arrow.repeat(arrow.scalar(text, arrow.string()), len(rows)).dictionary_encode()

    label, prediction = numbers
    number = None if model.merge is None else split_merge(model.merge)[1]
    columns = {
        **{field: constant(task) for field, task in model.task.items()},
        "split": splits_here,
        "shift": arrow.array(shifts, arrow.string()).take(splits_here.indices).dictionary_encode(),
        "class": named(label),
        "predicted": named(prediction),
        "correct": arrow.array(label == prediction),
        "confidence": rows["confidence"].cast(arrow.float32()),
        "setting": constant(model.arm.label),
        "algorithm": constant(model.arm.algorithm),
        "seed": arrow.repeat(arrow.scalar(model.run.seed, arrow.int64()), len(rows)),
        "merge": constant(model.merge),
        "alpha": arrow.repeat(arrow.scalar(number, arrow.float64()), len(rows)),
        "image": rows["id"].cast(arrow.string()).combine_chunks().dictionary_encode(),
    }
    return arrow.table(columns)


def _names(names: Sequence[str], greatest: int) -> list[str]:
    """Name classes up to a number, and behind them the same by number alone: `class 12`.

    A name that several classes have gets their numbers: `crane (134)`.
    """
    count = max(len(names), greatest + 1)
    often = Counter(names)
    unknown = [f"class {number}" for number in range(count)]
    labels = [f"{it} ({place})" if often[it] > 1 else it for place, it in enumerate(names)]
    return [*labels, *unknown[len(labels) :], *unknown]
