"""Two clocks: what an answer says, between two looks at ours."""

from __future__ import annotations

import pytest

from sweeps.doctor.base import Level, agree


@pytest.mark.parametrize(
    ("theirs", "level", "said"),
    [
        (100.5, "ok", "agrees with ours"),
        (99.0, "ok", "agrees with ours"),
        (96.0, "warning", "3 s behind ours"),
        (104.0, "warning", "3 s ahead of ours"),
        (400.0, "wrong", "299 s ahead of ours"),
    ],
)
def test_a_clock_is_judged_by_what_it_is_off_at_least(
    theirs: float, level: Level, said: str
) -> None:
    finding = agree("the server", theirs, 100.0, 101.0, grain=1.0)
    assert finding.level == level
    assert said in finding.told
