"""Evidence that charts are drawn of."""

from __future__ import annotations

import pytest

from tests.tracking.charted import full
from tracking.evidence.data import Evidence


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """Of a sweep of which every chart has something to show."""
    return full(tmp_path_factory.mktemp("charted"))
