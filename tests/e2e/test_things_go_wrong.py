"""What goes wrong in a real sweep ends as the policy says, and what was done stays done."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import EPOCHS, LIMIT, WEIGHTS, MakeTiny, repeatable

pytestmark = pytest.mark.timeout(900)
PLANTED = '''
"""Fine-tuning that goes wrong on request."""

import time
from typing import ClassVar, Literal

import torch

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.algorithms.fine_tune import FineTune


@ALGORITHMS.register
class Planted(FineTune):
    name: ClassVar[str] = "planted"
    summary: ClassVar[str] = "Fine-tuning that goes wrong on request"
    fault: Literal["none", "nan", "memory", "hang"] = "none"

    def loss(self, model, batch, teacher):
        loss, logs = super().loss(model, batch, teacher)
        if self.fault == "nan":
            loss = loss * float("nan")
        if self.fault == "memory" and len(batch.labels) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        if self.fault == "hang":
            time.sleep(LONG)
        return loss, logs


LONG = 3600
'''


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


@pytest.mark.slow  # tests/sweeps/engines has each class, under runs that train nothing
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_nan_too_little_memory_and_a_hang_end_as_their_class_says(
    tiny: MakeTiny, tmp_path: Path, engine: str
) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    sweep = tiny(
        "faults",
        [],
        epochs=2,
        **{"import": ["./planted.py"]},
        parameters={"algorithm.fault": {"values": ["nan", "memory", "hang", "none"]}},
        algorithm={"name": "planted"},
        baselines=[],
        timeout="60s",  # a fresh worker of Ray on a busy machine takes half of it
        retries={"timeout": 0},
    )
    _, stderr = sweep.call("run", "--engine", engine)
    trials = {trial["params"]["algorithm.fault"]: trial for trial in sweep.show()["trials"]}
    runs = {fault: trial["runs"][0] for fault, trial in trials.items()}
    ends = {fault: (trials[fault]["state"], run["attempts"]) for fault, run in runs.items()}
    assert ends == {
        "nan": ("failed", 1),  # would come again
        "memory": ("complete", 3),  # batches of 4, of 2, of 1
        "hang": ("failed", 1),
        "none": ("complete", 1),
    }
    assert trials["nan"]["reason"]["kind"] == "nan"
    assert trials["hang"]["reason"]["kind"] == "timeout"
    for name, value in repeatable(runs["none"]["metrics"]).items():
        assert runs["memory"]["metrics"][name] == pytest.approx(value, abs=0.02), name
    for words in ("2 runs failed", "nan: ", "longer than 60 s", "resume faults --failed"):
        assert words in stderr
    failures = {run["tags"]["carft.failure"] for run in sweep.mlflow() if run["status"] == "FAILED"}
    assert failures == {"nan", "timeout"}
    assert sweep.workers() == []


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
