"""Short ways to write a setting: lengths of time, and shares of a GPU."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.sweeps.spec.durations import LONGEST, seconds
from carft_sweep.sweeps.spec.settings import check_gpus


@given(parts=st.tuples(*[st.integers(0, 99)] * 3, st.integers(1, 99)))
def test_a_length_of_time_is_the_sum_of_its_parts(parts: tuple[int, ...]) -> None:
    days, hours, minutes, rest = parts
    text = f"{days}d{hours}h{minutes}m{rest}s"
    assert seconds(text) == ((days * 24 + hours) * 60 + minutes) * 60 + rest
    written = {90: 90.0, 0.5: 0.5, "90": 90.0, "1.5h": 5400.0, " 10m ": 600.0}
    assert [*map(seconds, written)] == [*written.values()]


@pytest.mark.parametrize(
    "written",
    [*(0, -1, math.inf, math.nan, True, None, [], "", "m", "30m2h", "2x", "1h 30m"), LONGEST + 1],
)
def test_what_is_no_length_of_time_is_refused_with_what_is(written: object) -> None:
    with pytest.raises(ValueError, match=r"must be a number of seconds over 0.*such as 1d, 2h30m"):
        seconds(written)


@given(runs=st.integers(2, 100), noise=st.floats(-0.001, 0.001))
def test_so_many_runs_fit_on_one_gpu_as_their_share_says(runs: int, noise: float) -> None:
    share = check_gpus(1 / runs + (noise if runs <= 10 else 0))
    assert runs * share <= 1
    assert (runs + 1) * share > 1
    assert share == check_gpus(share)
    assert share == int(share * 10_000 + 0.5) / 10_000  # no finer than Ray counts


def test_whole_gpus_none_and_a_rounded_share_are_taken_and_another_is_refused() -> None:
    for written, expected in ((0, 0), (1, 1), (8, 8), (2.0, 2), (0.333, 0.3333)):
        assert check_gpus(written) == expected
    halves = dict.fromkeys((0.4, 0.6), "0.5, for 2 runs")
    for written, nearest in {**halves, 0.29: "0.3333, for 3 runs", 0.75: "1, f"}.items():
        with pytest.raises(ValueError, match=re.escape(f"the nearest is {nearest}")):
            check_gpus(written)
