"""What holds for every merge. A new one is tested by being registered."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from carft_sweep.carft_core.merges import MERGES, Merge
from carft_sweep.carft_core.testing import MERGE_LAWS, check_merge

BUILT_IN = tuple(MERGES)


@pytest.mark.parametrize("law", MERGE_LAWS, ids=lambda law: law.__name__)
@pytest.mark.parametrize("name", BUILT_IN)
def test_a_merge_keeps_the_law(name: str, law: Callable[[type[Merge]], None]) -> None:
    law(MERGES[name])


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_shipped_merges_say_where_they_come_from(name: str) -> None:
    assert "Source:" in (MERGES[name].__doc__ or "")


def test_all_laws_are_held_as_users_call_them() -> None:
    check_merge(MERGES["wise_ft"])
