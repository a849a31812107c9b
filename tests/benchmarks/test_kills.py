"""A small part of the benchmark of kills, with every law that it looks at."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs inotify")


@pytest.mark.slow  # it computes for half a minute
@pytest.mark.timeout(900)
def test_a_sweep_whose_processes_are_killed_a_dozen_times_ends_as_an_undisturbed_one(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "benchmarks.chaos.kills", "--kills", "12", "--seed", "4"]
    command += ["--points", "3", "--every", "0.3", "--json", str(tmp_path / "report.json")]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["broken"] == [], done.stdout + done.stderr
    assert report["killed"] == 12
    assert {"driver", "worker"} <= report["kills"].keys()
    assert done.returncode == 0
