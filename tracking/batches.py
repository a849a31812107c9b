"""What goes into one request of MLflow's `log-batch`: by number, and by size."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

METRICS, TAGS = 1000, 100
"""As many as MLflow takes; parameters are counted as tags are."""
BYTES = 900_000
"""MLflow refuses requests of a megabyte; the rest is for what surrounds the entries."""
_AROUND = 150


class Entry(Protocol):
    """A metric, parameter or tag of MLflow."""

    @property
    def key(self) -> str:
        """Its name."""

    @property
    def value(self) -> str | float:
        """What it holds."""


E = TypeVar("E", bound=Entry)


def batches(entries: Iterable[E], most: int) -> Iterator[list[E]]:
    """The entries in order, `most` or fewer at a time, and no more than fit into a request."""
    batch: list[E] = []
    size = 0
    for entry in entries:
        own = _AROUND + len(json.dumps(entry.key)) + len(json.dumps(entry.value))
        if batch and (len(batch) == most or size + own > BYTES):
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += own
    if batch:
        yield batch
