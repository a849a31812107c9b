"""A spool that waits for moments only, before a store in trouble."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.spool.troubled import Troubled
from tracking.spool import Spool


@pytest.fixture
def store() -> Troubled:
    return Troubled()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "spool"


@pytest.fixture
def spool(store: Troubled, folder: Path) -> Iterator[Spool]:
    made = Spool(store, folder, pace=0.01, longest_pause=0.05)
    yield made
    made.close()
