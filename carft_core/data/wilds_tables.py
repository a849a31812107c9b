"""The tables of WILDS' data sets, which say of each image its split, its class and whence it is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
from pyarrow import csv

from carft_core.errors import RequestError, unknown


class Image(NamedTuple):
    """A row of a table that is in the benchmark."""

    file: str
    """Its name in the folder of images."""
    split: str
    """WILDS' name: `train`, `val`, `test`, `id_val`, `id_test`."""
    label: int
    unit: str
    """What shows the same thing as other images do, such as a burst of one camera."""
    group: str = ""
    """What it belongs to where accuracy is told by group; empty: nothing."""


def read_columns(
    file: Path,
    needed: Mapping[str, pa.DataType],
    spare: Mapping[str, pa.DataType] | None = None,
) -> pa.Table:
    """Columns of a CSV file with a header; those of `spare` where it has them.

    Raises RequestError for a file that is missing, lacks columns, or has other values in one.
    """
    try:
        with csv.open_csv(file) as opened:
            found = opened.schema.names
        lacking = [name for name in needed if name not in found]
        if lacking:
            raise RequestError(
                f"{file} lacks columns: {', '.join(lacking)}; it has {', '.join(found)}"
            )
        wanted = {**needed, **{name: of for name, of in (spare or {}).items() if name in found}}
        options = csv.ConvertOptions(column_types=wanted, include_columns=list(wanted))
        table = csv.read_csv(file, convert_options=options)
    except FileNotFoundError:
        raise RequestError(f"{file} is missing; it is in WILDS' archive") from None
    except OSError as error:
        raise RequestError(f"{file} cannot be read: {error}") from None
    except pa.ArrowInvalid as error:
        raise RequestError(f"{file} is not the table that WILDS publishes: {error}") from None
    for name in needed:
        if table[name].null_count:
            row = table[name].is_null().index(True).as_py()
            raise RequestError(f"{file}: row {row} has no {name}")
    return table


def check_values(file: Path, table: pa.Table, column: str, known: Collection[str]) -> None:
    """Raises RequestError for a value of a column that is none of `known`."""
    for value in table[column].unique().to_pylist():
        if value not in known:
            row = table[column].index(value).as_py()
            raise RequestError(f"{file}: row {row}: {unknown(column, value, known)}")
