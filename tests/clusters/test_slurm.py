"""`sweep.sbatch` in a real Slurm: it stops before the limit, comes back, and ends as one run."""

from __future__ import annotations

import time
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest

from tests.clusters.conftest import SCRIPTS, ran_on, variables
from tests.clusters.slurm import CPUS, GPUS, Slurm
from tests.e2e.conftest import MakeTiny, Tiny

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(600)]
WEIGHTS = [0.0, 0.5]


class Job:
    """One that `sbatch` has queued, with its log."""

    def __init__(self, slurm: Slurm, sweep: Tiny, *options: str, **environ: str) -> None:
        self.slurm = slurm
        self.log = sweep.home.with_name("job.log")
        words = ["sbatch", "--parsable", f"--output={self.log}", "--time=10"]
        words += [f"--cpus-per-task={CPUS}", f"--gpus-per-node={GPUS}", *options]
        words += [str(SCRIPTS / "sweep.sbatch"), str(sweep.file)]
        self.id = slurm.call(*words, environ=variables(sweep, **environ))

    def said(self) -> str:
        """Its log up to now."""
        return self.log.read_text() if self.log.exists() else ""

    def until(self, words: str, seconds: float = 150) -> None:
        """Wait for words in the log."""
        last = time.monotonic() + seconds
        while words not in self.said():
            assert time.monotonic() < last, f"{self.slurm.state(self.id)}\n{self.said()}"
            time.sleep(0.1)

    def end(self) -> str:
        """Its state once it has ended for good."""
        state = self.slurm.until(self.id, "COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL")
        assert list(Path("/tmp").glob(f"carft-{self.id}-*")) == [], "Ray's folders are left"
        return state


def undisturbed(tiny: MakeTiny, tmp_path: Path, **keys: Any) -> dict[float, Any]:
    """What the same sweep gives without Slurm and Ray."""
    sweep = tiny("job", WEIGHTS, home=tmp_path / "undisturbed", **keys)
    sweep.call("run", "--engine", "local", "--set", "resources.gpus=0")
    return sweep.outcomes()


@pytest.mark.parametrize("nodes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_near_the_time_limit_it_queues_itself_again_and_ends_as_if_never_stopped(
    slurm: Slurm, tiny: MakeTiny, tmp_path: Path, nodes: int
) -> None:
    gpu = {"cpus": 1, "gpus": 1}  # which is Slurm's to hand out
    sweep = tiny("job", WEIGHTS, epochs=12, resources=gpu)
    job = Job(slurm, sweep, f"--nodes={nodes}")
    job.until("epoch 1/")
    slurm.call("scancel", "--batch", "--signal=USR1", job.id)  # as Slurm does near the limit
    job.until("queued again")
    assert sweep.show()["state"] == "interrupted"
    assert job.end() == "COMPLETED", job.said()
    assert f"Ray on {nodes} of {nodes} nodes" in job.said()
    assert job.said().count("  epoch 1/") == len(WEIGHTS), "an epoch was trained twice"
    assert "the sweep is done" in job.said()
    assert sweep.outcomes() == undisturbed(tiny, tmp_path, epochs=12)
    names = {node.name for node in slurm.nodes} if slurm.nodes[0].inside else {gethostname()}
    assert ran_on(sweep.mlflow()) <= names


@pytest.mark.slow
def test_slurm_itself_sends_the_signal_before_the_limit(slurm: Slurm, tiny: MakeTiny) -> None:
    sweep = tiny("job", WEIGHTS, epochs=600, resources={"cpus": 1})
    job = Job(slurm, sweep, "--nodes=1", "--time=2", "--signal=B:USR1@30", RESTARTS="1")
    job.until("queued again", seconds=200)
    job.until("not queued again", seconds=200)
    assert job.end() == "FAILED"  # after its only restart, with exit code 3
    assert "the time limit is near" in job.said()
    assert sweep.show()["state"] == "interrupted"
