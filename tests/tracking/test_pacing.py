"""A spool asks less often of a store that is slow, busy or away, and recovers at once."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.spool import LONGEST_ASKED, Pacing

SECONDS = st.floats(0, 1000)
GONE_WELL = st.tuples(st.just("delivered"), SECONDS, st.booleans())
FAILED = st.tuples(st.just("failed"), st.none() | SECONDS, st.booleans())


@given(st.lists(GONE_WELL | FAILED, max_size=30))
def test_no_history_makes_it_hurry_or_stop(history: list[tuple[str, float | None, bool]]) -> None:
    pacing = Pacing(1, 60)
    for kind, seconds, flag in history:
        if kind == "delivered":
            assert seconds is not None
            pacing.delivered(seconds, full=flag)
            assert pacing.pause <= 60
        else:
            pacing.failed(progress=flag, asked=seconds)
            assert pacing.least >= min(seconds or 0, LONGEST_ASKED)
        assert 1 <= pacing.pause <= LONGEST_ASKED
        assert 0 <= pacing.least <= pacing.pause
    pacing.delivered(0.01, full=False)
    assert (pacing.pause, pacing.least) == (1, 0)


@given(st.floats(0, 60))
def test_delivering_takes_at_most_three_quarters_of_the_time(seconds: float) -> None:
    pacing = Pacing(1, 60)
    pacing.delivered(seconds, full=False)
    assert seconds / (seconds + pacing.pause) <= 0.75 + 1e-9
    pacing.delivered(seconds, full=True)
    assert pacing.pause == 1


def test_pauses_double_until_something_arrives() -> None:
    pacing = Pacing(1, 10)

    def pause(*, progress: bool) -> float:
        pacing.failed(progress=progress, asked=None)
        return pacing.pause

    assert [pause(progress=False) for _ in range(5)] == [2, 4, 8, 10, 10]
    assert [pause(progress=True) for _ in range(3)] == [2, 2, 2]
    assert pause(progress=False) == 4


@pytest.mark.parametrize(("asked", "pause", "least"), [(0, 2, 0), (30, 30, 30), (1e6, 600, 600)])
def test_a_store_is_left_alone_as_long_as_it_asks(asked: float, pause: float, least: float) -> None:
    pacing = Pacing(1, 10)
    pacing.failed(progress=True, asked=asked)
    assert (pacing.pause, pacing.least) == (pause, least)
