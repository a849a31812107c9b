"""The measurement of many runs at once, in small: a real server that is slow, and busy at times."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.simulated_runs import METRICS, measure
from carft_sweep.tracking.ui_server import Server


@pytest.mark.slow  # a server, a proxy, a probe; test_projector.py has it of a store in memory
def test_every_point_of_many_runs_arrives_once_through_a_slow_server_that_refuses_some(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "of the test")  # which the measurement replaces
    told = measure(
        server.address,
        tmp_path / "home",
        runs=20,
        seconds=5,
        trouble={"delay": 0.05, "busy_every": 15},
        recovery=1,
        patience=60,
    )
    assert told["points"] == 20 * 6 * len(METRICS)
    assert told["wrong points"] == 0
    assert told["refused"] > 0
    assert told["points/batch"] > len(METRICS)
