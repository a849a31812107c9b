"""The user's own cache: what is costly to learn of data, never kept beside them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from carft_core.files import write_atomically


def user_cache() -> Path:
    """`CARFT_CACHE`, else `carft-sweep` in `XDG_CACHE_HOME`, else in `~/.cache`.

    It need not be there yet, and may be deleted at any time. Source: XDG Base Directory
    Specification, by which a relative path counts as none.
    """
    own = os.environ.get("CARFT_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "carft-sweep"


def keep(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of the cache; one that cannot be written costs time, nothing else."""
    with contextlib.suppress(OSError):
        write_atomically(file, write)


def keep_table(file: Path, table: pa.Table) -> None:
    """The same with a table."""
    keep(file, lambda new: pq.write_table(table, new, compression="zstd", use_dictionary=False))


def kept_table(file: Path) -> pa.Table | None:
    """A table of the cache; None where there is none, or the file is damaged."""
    try:
        return pq.read_table(file)
    except (OSError, ValueError):  # ValueError: pyarrow's for what is no parquet file
        return None
