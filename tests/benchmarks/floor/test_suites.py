"""Every suite does the work of both sides and measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from benchmarks.floor.measurement import Effort, Measurement
from benchmarks.floor.starting import measure_starts
from benchmarks.floor.training import measure_runs, measure_steps


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize(
    ("measure", "count"),
    [(measure_steps, 3), (measure_runs, 2), (measure_starts, 3)],
)
def test_every_suite_measures(
    measure: Callable[[Effort], Iterator[Measurement]], count: int
) -> None:
    measured = [*measure(Effort(1, quick=True))]
    assert len({(line.name, line.floor_name) for line in measured}) == count
    for line in measured:
        assert len(line.floor) == len(line.ours) == 1
        assert min(*line.floor, *line.ours) > 0
