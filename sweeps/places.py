"""Places that an option names for what a command writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from carft_core.errors import RequestError


@contextmanager
def written(option: str, place: Path) -> Iterator[None]:
    """Raise RequestError for an OSError within that is about the place or what lies there."""
    try:
        yield
    except OSError as error:
        where = Path(error.filename) if isinstance(error.filename, str) else place
        if not {where, *where.parents} & {place, *place.parents[:-1]}:
            raise
        raise RequestError(f"{option}: {place} cannot be written: {error.strerror}") from None
