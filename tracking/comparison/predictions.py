"""The predictions that runs keep, as files and by image."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from carft_sweep.regular_files import open_regular
from carft_sweep.tracking.comparison.runs import UNMERGED, Arm, RunRecord
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.program import program

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import FileMetaData


@dataclass(frozen=True)
class Predictions:
    """Which images of the ID test and of the shifts that are in the OOD mean an arm's runs have
    right, in an order that all files share."""

    split: NDArray[np.str_]
    """[N] `id/test` or `ood/<shift>`."""
    item: NDArray[np.str_]
    label: NDArray[np.int64]
    share: NDArray[np.float64]
    """[N] of the runs that have the image right."""

    def same_items(self, other: Predictions) -> bool:
        """Whether both are of the same images."""
        pairs = ((self.split, other.split), (self.item, other.item), (self.label, other.label))
        return all(np.array_equal(one, two) for one, two in pairs)

    @property
    def right(self) -> NDArray[np.bool_]:
        """[N] whether more than half of the runs have the image right."""
        right: NDArray[np.bool_] = self.share > 0.5
        return right


def predictions_path(folder: Path, merge: str | None) -> Path:
    """Locate the predictions that a run keeps of its unmerged model or of a merge."""
    return folder / "evaluations" / (merge or UNMERGED) / "predictions.parquet"


def read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    """Read these columns of kept predictions. Raises TrackingError for a file without them."""
    import pyarrow
    import pyarrow.parquet as parquet

    texts = [name for name in names if name not in _NUMBERS]
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            metadata = parquet.read_metadata(file)
            _check_size(metadata, names, os.fstat(file.fileno()).st_size)
            # As dictionaries: a file may repeat one long text without end.
            opened = parquet.ParquetFile(file, metadata=metadata, read_dictionary=texts)
            table = opened.read(list(names)).select(list(names))
        for name in names:
            _check_column(name, table[name])
    except (pyarrow.ArrowException, KeyError, OSError, ValueError) as error:
        raise _no_predictions(path, error) from None
    return table


_MOST_BYTES, _MOST_CHARACTERS = 1 << 28, 1 << 27
"""Of the columns, unpacked, and of the texts of one, as long as its longest."""


def _check_size(metadata: FileMetaData, names: Sequence[str], size: int) -> None:
    """Raise ValueError for columns that take more memory than predictions in `size` bytes: their
    images have names of their own, so that a row takes some 20 bytes, packed.
    """
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    columns = [
        column
        for group in groups
        for column in (group.column(number) for number in range(group.num_columns))
        if column.path_in_schema.partition(".")[0] in names
    ]
    values = max(metadata.num_rows, *(column.num_values for column in columns), 0)
    if values > size:
        raise ValueError(f"{values} values in {size} bytes")
    if (unpacked := sum(column.total_uncompressed_size for column in columns)) > _MOST_BYTES:
        raise ValueError(f"{unpacked} bytes, unpacked")


_LISTS = ("top5", "logits")
_NUMBERS = {
    **dict.fromkeys(("label", "prediction", "top5"), "integers"),
    **dict.fromkeys(("p_label", "confidence", "logits"), "fractions"),
}
"""What a column of numbers, or of lists of them, holds; the others are texts."""


def _check_column(name: str, column: pa.ChunkedArray) -> None:
    """Raise ValueError where a column is of another type than it has, lacks a value, or has texts
    that are none.
    """
    import pyarrow.compute as compute
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    if name in _LISTS:
        kind = kind.value_type if types.is_list(kind) else None
    wanted = _NUMBERS.get(name, "texts")
    is_right = {
        "integers": types.is_integer,
        "fractions": types.is_floating,
        "texts": lambda kind: types.is_string(kind) or types.is_large_string(kind),
    }[wanted]
    if kind is None or not is_right(kind):
        raise ValueError(f"column {name} is {column.type} and not {wanted}")
    column.validate(full=True)  # a text that is none breaks where it is read
    if wanted == "texts":
        lengths = (
            compute.max(compute.binary_length(it.dictionary)).as_py() for it in column.chunks
        )
        if (
            characters := max((it or 0 for it in lengths), default=0) * len(column)
        ) > _MOST_CHARACTERS:
            raise ValueError(f"column {name} has up to {characters} characters")
    if name != "logits" and column.null_count:
        raise ValueError(f"column {name} lacks {column.null_count} values")
    if name in _NUMBERS and name not in _LISTS and len(column):
        least = compute.min(column).as_py()
        if least is None or not least >= 0:
            raise ValueError(f"column {name} goes down to {least}")


def _no_predictions(path: Path, error: Exception) -> TrackingError:
    return TrackingError(
        f"{path} holds no predictions ({' '.join(str(error).split())[:300]}); remove the folder "
        f"{path.parent}, and the next `{program()} run` of the sweep evaluates the model again"
    )


CLASS_NAMES = b"carft.class_names"


def class_names(run: RunRecord) -> tuple[str, ...]:
    """Read what a run's predictions call the classes, in the order of the labels; none where it
    keeps no predictions. Raises TrackingError for a file that is none.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    path = None if run.folder is None else predictions_path(run.folder, None)
    if path is None or not path.is_file():
        return ()
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            metadata = parquet.read_schema(file).metadata or {}
        names = json.loads(metadata.get(CLASS_NAMES, "[]"))
    except (pyarrow.ArrowException, OSError, ValueError, RecursionError) as error:
        raise _no_predictions(path, error) from None
    return tuple(map(str, names)) if isinstance(names, list) else ()


def read_predictions(arm: Arm, seeds: Sequence[int | None]) -> Predictions | None:
    """Read what an arm's runs with these seeds predict; None where one keeps no predictions, or
    they see other images. An arm that no seed changes has its one run.

    Raises TrackingError for a file that is none.
    """
    runs = [run for run in arm.done if run.seed in seeds or not arm.has_seeds]
    paths = [predictions_path(run.folder, arm.merge) for run in runs if run.folder is not None]
    if not paths or len(paths) < len(runs) or not all(path.is_file() for path in paths):
        return None
    first, *others = (_read(path, runs[0].outside_means) for path in paths)
    if not all(first.same_items(other) for other in others):
        return None
    return replace(first, share=np.mean([it.share for it in (first, *others)], axis=0))


def _read(path: Path, outside: frozenset[str]) -> Predictions:
    table = read_columns(path, ("split", "id", "label", "prediction"))
    split, item = (texts(table[name]) for name in ("split", "id"))
    label, prediction = (numbers(table[name]).astype(np.int64) for name in ("label", "prediction"))
    in_means = np.char.startswith(split, "ood/") & ~np.isin(split, sorted(outside))
    order = np.lexsort((item, split))
    order = order[(in_means | (split == "id/test"))[order]]
    right = (prediction == label).astype(np.float64)
    return Predictions(split[order], item[order], label[order], right[order])


# `to_numpy` imports pandas, which takes 0.2 s and 60 MB.
def texts(column: pa.ChunkedArray) -> NDArray[np.str_]:
    """Return a column of texts."""
    import pyarrow as arrow

    return np.array(column.cast(arrow.string()).to_pylist(), np.str_)


def coded(column: pa.ChunkedArray) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    """Return the different texts of a column that was read as a dictionary, sorted, and the place
    of each row's among them."""
    whole = column.unify_dictionaries().combine_chunks()
    names, place = _sorted(whole.dictionary)
    return names, place[np.from_dlpack(whole.indices)]


_SORTED: deque[tuple[pa.Array, tuple[NDArray[np.str_], NDArray[np.intp]]]] = deque(maxlen=4)
"""The last dictionaries. All files of one data set have the same, and to sort a large one takes
most of the time of reading a file."""


def _sorted(dictionary: pa.Array) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    """Sort the different texts of a dictionary, and find the place of each of its texts."""
    for earlier, texts_and_places in _SORTED:
        if earlier.equals(dictionary):
            return texts_and_places
    names = np.array(dictionary.to_pylist(), np.str_)
    _SORTED.append((dictionary, np.unique(names, return_inverse=True)))
    return _SORTED[-1][1]


def numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of numbers."""
    return np.from_dlpack(column.combine_chunks())
