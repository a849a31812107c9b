"""The predictions that a comparison's runs keep as one frame: a row for each image and model."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.predictions import class_names, predictions_path, read_columns
from carft_sweep.tracking.comparison.runs import UNMERGED, RunRecord, split_merge
from carft_sweep.tracking.errors import TrackingError, unknown_name

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

MOST_ROWS = 20_000_000
"""Most rows of one frame: 0.6 GB, and about twice as much while it is made."""
_SHIFT, _OWN = "ood/", ("id/", "ood/")
"""Beginning of the names of shifts, and of splits whose classes are the family's."""
_COLUMNS = ("split", "id", "label", "prediction", "confidence")


class _Model(NamedTuple):
    """One evaluated model of a finished run, and where its predictions are."""

    setting: str
    algorithm: str
    seed: int | None
    merge: str
    """Label of the merged model; `UNMERGED` for the model that the run trained."""
    merge_name: str
    alpha: float | None
    run: RunRecord
    path: Path
    task: Mapping[str, str]
    """With several tasks, the parameter that tells them apart and its value; else empty."""


def predictions_frame(
    comparison: Comparison,
    *,
    splits: str | Sequence[str] | None = None,
    settings: str | Sequence[str] | None = None,
    merges: str | Sequence[str] | None = None,
    seeds: int | Sequence[int] | None = None,
) -> pd.DataFrame:
    """Return a frame with a row per image, split and model; see `carft_sweep.predictions`."""
    import pandas as pd
    import pyarrow as arrow

    every = pd.DataFrame(_models(comparison), columns=_Model._fields, dtype=object)
    models = every[[path.is_file() for path in every["path"]]]
    if models.empty:
        raise TrackingError(
            f"no finished run of {comparison.sweep} keeps predictions here: they are in the run "
            "folders of the home that trained it, unless trial.keep.predictions is false"
        )
    if lacking := len(every) - len(models):
        warnings.warn(
            f"{lacking} of {len(every)} models of {comparison.sweep} keep no predictions here and "
            "have no rows",
            stacklevel=3,
        )
    # What no seed changes stays, whichever seeds are chosen.
    for kind, wanted, columns in (
        ("seed", seeds, ["seed"]),
        ("merge", merges, ["merge", "merge_name"]),
        ("setting", settings, ["setting", "algorithm"]),
    ):
        names = models[columns]
        chosen = _choose(kind, wanted, dict.fromkeys(names.to_numpy().ravel()))
        models = models[names.isin([*chosen, None]).any(axis=1)]
    counts = [_count(path) for path in models["path"]]
    available = dict.fromkeys(name for count in counts for name in count)
    short = {name.removeprefix(_SHIFT): name for name in available}
    wanted_splits = {short.get(s, s) for s in _choose("split", splits, {**available, **short})}
    rows = sum(n for count in counts for name, n in count.items() if name in wanted_splits)
    if rows > MOST_ROWS:
        raise TrackingError(
            f"{rows:,} predictions of {len(models)} models are more than fit into one frame "
            f"({MOST_ROWS:,}); choose some with splits=, settings=, merges= or seeds="
        )
    tables = [_table(_Model(*model), wanted_splits) for model in models.to_numpy()]
    whole = arrow.concat_tables(tables, promote_options="default").unify_dictionaries()
    frame = whole.to_pandas(split_blocks=True, self_destruct=True)
    return frame.astype({"seed": "Int64"})


def _models(comparison: Comparison) -> Iterator[_Model]:
    """Yield every evaluated model of every finished run."""
    parts: list[tuple[Mapping[str, str], Comparison]] = [({}, comparison)]
    if (field := comparison.spec.tasks) is not None and comparison.tasks:
        parts = [({field: task}, part) for task, part in comparison.tasks.items()]
    for task, part in parts:
        arms = [row.arm for row in part.rows if row.arm.merge is None]
        for arm, run in [(of, run) for of in arms for run in of.done]:
            for merge in (None, *run.merges):
                path = predictions_path(run.folder or Path(run.digest), merge)
                label = merge or UNMERGED
                split = split_merge(label)
                yield _Model(arm.label, arm.algorithm, run.seed, label, *split, run, path, task)


def _choose(kind: str, wanted: Any, available: Iterable[Any]) -> list[Any]:
    """Return the wanted names; None: all. Raises TrackingError for an unknown name."""
    names = [name for name in available if name is not None]
    if wanted is None:
        return names
    chosen = [wanted] if isinstance(wanted, (str, int)) else [*wanted]
    for name in chosen:
        if name not in names:
            raise TrackingError(unknown_name(kind, str(name), map(str, sorted(names))))
    return chosen


def _count(path: Path) -> Mapping[str, int]:
    """Return the number of predictions of each split in a file."""
    column = read_columns(path, ("split",))["split"]
    return {str(row["values"]): int(row["counts"]) for row in column.value_counts().to_pylist()}


def _table(model: _Model, splits: set[str]) -> pa.Table:
    """Return a model's predictions of `splits`, texts dictionary-encoded: some 30 bytes a row."""
    import pandas as pd
    import pyarrow as arrow

    rows = read_columns(model.path, _COLUMNS).to_pandas()
    rows = rows[rows["split"].isin(splits)]
    split = rows["split"].astype(object)
    is_of_family = split.str.startswith(_OWN)
    labels = dict(enumerate(_class_labels(class_names(model.run))))

    def named(numbers: pd.Series) -> pd.Series:
        names = numbers.where(is_of_family).map(labels).astype(object)
        return names.where(names.notna(), "class " + numbers.astype(str))

    text = arrow.dictionary(arrow.int32(), arrow.string())
    columns = {
        **{field: (text, task) for field, task in model.task.items()},
        "split": (text, split),
        "shift": (text, split.where(split.str.startswith(_SHIFT)).str.removeprefix(_SHIFT)),
        "class": (text, named(rows["label"])),
        "predicted": (text, named(rows["prediction"])),
        "correct": (arrow.bool_(), rows["label"] == rows["prediction"]),
        "confidence": (arrow.float32(), rows["confidence"]),
        "setting": (text, model.setting),
        "algorithm": (text, model.algorithm),
        "seed": (arrow.int64(), model.seed),
        "merge": (text, None if model.merge == UNMERGED else model.merge),
        "alpha": (arrow.float64(), model.alpha),
        "image": (text, rows["id"].astype(object)),
    }
    frame = pd.DataFrame({name: values for name, (_, values) in columns.items()}, rows.index)
    schema = arrow.schema([(name, kind) for name, (kind, _) in columns.items()])
    return arrow.Table.from_pandas(frame, schema, preserve_index=False)


def _class_labels(names: Sequence[str]) -> list[str]:
    """Return class names with numbers after a name that several classes have: `crane (134)`."""
    often = Counter(names)
    return [f"{name} ({place})" if often[name] > 1 else name for place, name in enumerate(names)]
