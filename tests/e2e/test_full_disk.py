"""A disk that is full ends a real sweep with a sentence, and what was done stays done."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import EPOCHS, LIMIT, WEIGHTS, MakeTiny

pytestmark = pytest.mark.timeout(900)


def until(process: subprocess.Popen[str], text: str, times: int = 1) -> str:
    """Read what a command says up to the line that has the text so many times before."""
    assert process.stderr is not None
    output = ""
    for line in process.stderr:
        output += line
        times -= text in line
        if not times:
            return output
    raise AssertionError(f"{process.wait(LIMIT)}: not told of {text!r}\n{output}")


def fill(disk: Path, room: int) -> Path:
    """Take all room of a disk but so many bytes; the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - room))
    return ballast


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.slow  # tests/sweeps/scheduler/test_full_disk.py has it at every write of toy runs
@pytest.mark.xdist_group("undisturbed")
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("room", [0, 100_000])
def test_a_full_disk_ends_the_sweep_with_one_message_and_loses_nothing(
    tiny: MakeTiny, undisturbed: dict[float, Any], small_disk: Path, room: int
) -> None:
    sweep = tiny("full", WEIGHTS[:3], home=small_disk / "home")
    process = sweep.start("run")
    until(process, "epoch", EPOCHS + 1)  # the first trial has all of its epochs
    ballast = fill(small_disk, room)
    _, stderr = process.communicate(timeout=LIMIT)
    assert (process.returncode, "Traceback" in stderr) == (1, False), stderr
    assert "disk is full" in stderr or "No space left on device" in stderr, stderr
    assert "resume full" in stderr
    assert sweep.workers() == []
    ballast.unlink()
    sweep.call("resume")
    assert sweep.outcomes().items() <= undisturbed.items()
    runs = sweep.mlflow()
    assert len(runs) == 1 + 1 + 3
    assert {run["status"] for run in runs} == {"FINISHED"}
