"""The time left that a sweep shows, over simulated histories of which the truth is known."""

from __future__ import annotations

import heapq
from collections.abc import Sequence

import pytest

from carft_sweep.sweeps.scheduler.progress import Progress, seconds_left
from tests.sweeps.conftest import named

RUN = 60.0
"""Seconds of a run, where nothing else is said."""
REPORT = {"epoch": 0, "epochs": 5, "metrics": {}}


def history(
    monkeypatch: pytest.MonkeyPatch,
    lengths: Sequence[float],
    at_once: int,
    *,
    reused: int = 0,
    failing: Sequence[int] = (),
    pause: float = 0.0,
) -> list[tuple[float, float]]:
    """What was said to be left when each run but the first two and the last had ended, and what was
    left in truth.

    `failing` are runs whose first attempt fails in the middle; `pause` passes before each attempt.
    """
    now = [1000.0]
    monkeypatch.setattr("carft_sweep.sweeps.scheduler.progress.time.monotonic", lambda: now[0])
    progress = Progress(lambda _: None)
    progress.begin(reused + len(lengths))
    for number in range(reused):
        progress.done(named(f"reused {number}"), {}, reused=True)
    attempts = [*range(len(lengths))][::-1]
    failed: set[int] = set()
    under_way: list[tuple[float, int, bool]] = []
    beginning: list[tuple[float, int]] = []
    estimates: list[tuple[float, float]] = []
    while attempts or under_way or beginning:
        while attempts and len(under_way) + len(beginning) < at_once:
            heapq.heappush(beginning, (now[0] + pause, attempts.pop()))
        if beginning and (not under_way or beginning[0][0] <= under_way[0][0]):
            now[0], number = heapq.heappop(beginning)
            progress.epoch(named(f"run {number}"), REPORT)
            fails = number in failing and number not in failed
            length = lengths[number] / 2 if fails else lengths[number]
            heapq.heappush(under_way, (now[0] + length, number, fails))
            continue
        now[0], number, fails = heapq.heappop(under_way)
        if fails:
            failed.add(number)
            attempts.append(number)
            progress.fail(named(f"run {number}"), "crashed", "KeyError", again=True)
            continue
        progress.done(named(f"run {number}"), {}, reused=False)
        estimate = progress.left()
        assert estimate is not None
        estimates.append((now[0], estimate))
    return [(estimate, now[0] - at) for at, estimate in estimates[2:-1]]


@pytest.mark.parametrize("at_once", [1, 2, 3, 4])
@pytest.mark.parametrize("runs", [8, 26, 101])
def test_of_runs_of_one_length_the_time_left_is_true(
    monkeypatch: pytest.MonkeyPatch, runs: int, at_once: int
) -> None:
    for estimate, truth in history(monkeypatch, [RUN] * runs, at_once, reused=3):
        assert estimate == pytest.approx(truth)


@pytest.mark.parametrize("at_once", [1, 2, 3, 4])
def test_what_passes_between_two_runs_and_is_tried_again_is_all_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    estimates = history(monkeypatch, [RUN] * 26, at_once, failing=[4, 9, 20], pause=3.0)
    for estimate, truth in estimates:
        assert truth - 0.1 * truth - 2 * RUN <= estimate <= truth + RUN


def test_the_last_runs_are_not_divided_among_places_that_have_none() -> None:
    ended = [(0.0, 60.0), (0.0, 60.0)]
    assert seconds_left(ended, [60.0], 1, now=70.0) == 50.0
    assert seconds_left(ended, [60.0], 3, now=60.0) == 120.0
    assert seconds_left(ended, [0.0], 1, now=100.0) == 0.0
    assert seconds_left([], [0.0], 1, now=100.0) is None
