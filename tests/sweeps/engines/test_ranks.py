"""A worker starts the other processes of a run, which end with it and fail together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.errors import NonFinite
from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines import ranks
from carft_sweep.sweeps.engines.base import Job
from carft_sweep.sweeps.engines.ranks import RANKS, count_ranks
from tests.sweeps.engines.conftest import MakeEngine, MakeJob
from tests.sweeps.toy_runs import OutOfMemoryError, Recorder, epoch_report, gone_within

ENTRY = "tests.sweeps.engines.test_ranks:add_up"


def add_up(
    config: Mapping[str, Any], seed: int, *, report: Any, workdir: Path
) -> Mapping[str, Any] | None:
    """Sum the ranks' numbers in each of three epochs; rank 1 fails in the second if told to."""
    import torch
    from torch import nn

    from carft_sweep.carft_core.training.ranks import current_ranks

    del seed
    os.environ |= {RANKS: config["ranks"]} if "ranks" in config else {}
    world = current_ranks()
    (workdir / f"rank{world.rank}").write_text(str(os.getpid()))
    parameter, total = nn.Parameter(torch.zeros(1)), 0.0
    for epoch in range(3):
        match (config.get("fails"), epoch, world.rank):
            case ("memory", 1, 1):
                raise OutOfMemoryError("the GPU of rank 1 is full")
            case ("killed", 1, 1):
                os.kill(os.getpid(), signal.SIGKILL)
            case ("nan", 1, _):
                raise NonFinite("the loss is nan")
            case ("first", 1, 0):
                raise OutOfMemoryError("the GPU of rank 0 is full")
        parameter.grad = torch.ones(1) * (world.rank + 1)
        world.sum_gradients([parameter], {})
        total += float(parameter.grad)
        if epoch == 1 and config.get("fails") == "hangs" and world.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        while epoch == 1 and config.get("fails") == "hangs":
            time.sleep(0.1)
        if world.agree(report(epoch_report(epoch, 2)) is Decision.STOP):
            return None
    return {"pid": os.getpid(), "total": total, "warnings": []}


@pytest.fixture(autouse=True)
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RANKS, "2")
    # Of a driver that torchrun itself started.
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("RANK", "5")


def pids(job: Job) -> list[int]:
    return [int(Path(job.workdir, f"rank{rank}").read_text()) for rank in range(2)]


def test_a_run_gets_a_process_for_each_gpu_that_it_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert count_ranks({"device": "cuda"}) == 2
    monkeypatch.delenv(RANKS)
    counts = {name: count_ranks({"device": name}) for name in ("cuda", "cuda:1", "cpu", "mps")}
    assert counts == {"cuda": 4, "cuda:1": 1, "cpu": 1, "mps": 1}
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert count_ranks({"device": "cuda"}) == 1


@pytest.mark.slow
def test_a_worker_of_ray_starts_ranks_too(on_ray: MakeEngine, job: MakeJob) -> None:
    recorder = Recorder([job("a", ranks="2"), job("b")])
    on_ray(ENTRY).run(recorder)
    assert recorder.failures == {}
    assert [recorder.results[name]["total"] for name in ("a", "b")] == [3.0, 9.0]


@pytest.mark.slow
def test_a_run_that_is_stopped_stops_on_both(on_local: MakeEngine, job: MakeJob) -> None:
    recorder = Recorder([run := job("a")])
    recorder.decide = lambda *_: Decision.STOP
    on_local(ENTRY).run(recorder)
    assert recorder.events[-1] == ("stopped", "a")
    assert gone_within(10, pids(run)[1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "kind", "message"),
    [
        ("memory", "out_of_memory", "OutOfMemoryError: the GPU of rank 1 is full"),
        ("first", "out_of_memory", "OutOfMemoryError: the GPU of rank 0 is full"),
        ("nan", "nan", "the loss is nan"),
        ("killed", "crashed", "process 1 of the run was killed by signal 9"),
        ("hangs", "crashed", "process 1 of the run was killed by signal 9"),
    ],
)
def test_the_failure_of_one_rank_is_that_of_the_run_and_the_next_run_is_well(
    on_local: MakeEngine, job: MakeJob, fails: str, kind: str, message: str
) -> None:
    broken, well = job("a", fails=fails), job("b")
    recorder = Recorder([broken, well])
    began = time.monotonic()
    on_local(ENTRY).run(recorder)
    failure = recorder.failures["a"]
    assert (failure.kind, failure.message, failure.log_tail != "") == (kind, message, True)
    assert recorder.results["b"]["total"] == 9.0
    assert all(gone_within(10, pid) for pid in pids(broken))
    assert time.monotonic() - began < 100 + 2 * ranks.GRACE


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_its_ranks_along(on_local: MakeEngine, job: MakeJob) -> None:
    def kill(job: Job, _: Mapping[str, Any]) -> Decision:
        os.kill(pids(job)[0], signal.SIGKILL)
        return Decision.CONTINUE

    recorder = Recorder([run := job("a")])
    recorder.decide = kill
    on_local(ENTRY).run(recorder)
    assert recorder.failures["a"].kind == "crashed"
    assert all(gone_within(10, pid) for pid in pids(run))
