"""The predictions that runs keep, as files."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from carft_sweep.regular_files import open_regular
from carft_sweep.tracking.comparison.runs import UNMERGED, RunRecord
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.program import program

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow.parquet import FileMetaData


def predictions_path(folder: Path, merge: str | None) -> Path:
    """Return the path of a run's predictions of the unmerged model (`merge` None) or of a merge."""
    return folder / "evaluations" / (merge or UNMERGED) / "predictions.parquet"


def read_columns(path: Path, names: Sequence[str]) -> pa.Table:
    """Read columns of a predictions file, texts dictionary-encoded. Raises TrackingError for a
    missing column, a value of a wrong type, or more content than predictions can have."""
    import pyarrow
    import pyarrow.parquet as parquet

    texts = [name for name in names if name not in _NUMBERS]
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            metadata = parquet.read_metadata(file)
            _check_size(metadata, names, os.fstat(file.fileno()).st_size)
            # As dictionaries: a file may repeat one long text without end.
            reader = parquet.ParquetFile(file, metadata=metadata, read_dictionary=texts)
            table = reader.read(list(names)).select(list(names))
        for name in names:
            _check_column(name, table[name])
    except (pyarrow.ArrowException, KeyError, OSError, ValueError) as error:
        raise _no_predictions(path, error) from None
    return table


_MOST_BYTES, _MOST_CHARACTERS = 1 << 28, 1 << 27
"""Limits of the columns' uncompressed bytes, and of a text column's rows times longest text."""
_NUMBERS = {"label": "integers", "prediction": "integers", "confidence": "fractions"}
"""Columns of numbers, and what they hold; the other columns are texts."""


def _check_size(metadata: FileMetaData, names: Sequence[str], size: int) -> None:
    """Raise ValueError where columns are larger than predictions can be: more rows than the file
    has bytes (`size`; a real row takes some 20), or `_MOST_BYTES` uncompressed."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    columns = (group.column(number) for group in groups for number in range(group.num_columns))
    unpacked = sum(c.total_uncompressed_size for c in columns if c.path_in_schema in names)
    if metadata.num_rows > size or unpacked > _MOST_BYTES:
        raise ValueError(f"{metadata.num_rows} rows of {unpacked} bytes, unpacked, in {size}")


def _check_column(name: str, column: pa.ChunkedArray) -> None:
    """Raise ValueError where a column has a wrong type, a missing value, or bad or long text."""
    import pyarrow.compute as compute
    from pyarrow import types

    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    wanted = _NUMBERS.get(name, "texts")
    is_right = {
        "integers": types.is_integer,
        "fractions": types.is_floating,
        "texts": lambda kind: types.is_string(kind) or types.is_large_string(kind),
    }[wanted]
    if not is_right(kind) or column.null_count:
        raise ValueError(f"column {name} is {column.type} and not {wanted}, or lacks a value")
    column.validate(full=True)  # else invalid UTF-8 fails where it is read
    if wanted == "texts":
        lengths = (compute.binary_length(chunk.dictionary) for chunk in column.chunks)
        longest = max((compute.max(own).as_py() or 0 for own in lengths), default=0)
        if (characters := longest * len(column)) > _MOST_CHARACTERS:
            raise ValueError(f"column {name} has up to {characters} characters")


def _no_predictions(path: Path, error: Exception) -> TrackingError:
    return TrackingError(
        f"{path} holds no predictions ({' '.join(str(error).split())[:300]}); remove the folder "
        f"{path.parent}, and the next `{program()} run` of the sweep evaluates the model again"
    )


CLASS_NAMES = b"carft.class_names"


def class_names(run: RunRecord) -> tuple[str, ...]:
    """Return the class names in a run's predictions, in the order of the labels; empty where the
    run has no predictions. Raises TrackingError for an invalid file."""
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


# `to_numpy` imports pandas, which takes 0.2 s and 60 MB.
def coded(column: pa.ChunkedArray) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    """Return the distinct texts of a dictionary-encoded column, sorted, and for each row the
    position of its text among them."""
    whole = column.unify_dictionaries().combine_chunks()
    names, place = _sorted(whole.dictionary)
    return names, place[np.from_dlpack(whole.indices)]


_SORTED: deque[tuple[pa.Array, tuple[NDArray[np.str_], NDArray[np.intp]]]] = deque(maxlen=4)
"""The last dictionaries, with their result. All files of one data set have the same, and to sort a
large one takes most of the time of reading a file."""


def _sorted(dictionary: pa.Array) -> tuple[NDArray[np.str_], NDArray[np.intp]]:
    """Return the distinct texts of a dictionary, sorted, and each entry's position among them."""
    for earlier, texts_and_places in _SORTED:
        if earlier.equals(dictionary):
            return texts_and_places
    names = np.array(dictionary.to_pylist(), np.str_)
    _SORTED.append((dictionary, np.unique(names, return_inverse=True)))
    return _SORTED[-1][1]


def numbers(column: pa.ChunkedArray) -> NDArray[Any]:
    """Return a column of numbers as an array."""
    return np.from_dlpack(column.combine_chunks())
