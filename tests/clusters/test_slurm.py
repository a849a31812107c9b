"""`sweep.sbatch` in a real Slurm: it stops before the limit, comes back, and ends as one run."""

from __future__ import annotations

import time
from pathlib import Path
from socket import gethostname
from typing import Any

import pytest

from tests.clusters.conftest import SCRIPTS, ran_on, state, variables
from tests.clusters.slurm import CPUS, GPUS, Slurm
from tests.e2e.conftest import MakeTiny, Tiny
from tests.services.mlflow_server import MlflowServer
from tests.services.processes import until

# Minutes: Ray is started again and again. `test_slurm_signals.py` has the script alone.
pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(600), pytest.mark.slow]
WEIGHTS = [0.0, 0.5]


class Job:
    """One that `sbatch` has queued, with its log."""

    def __init__(self, slurm: Slurm, sweep: Tiny, *options: str, **environ: str) -> None:
        self.slurm = slurm
        self.log = sweep.file.with_suffix(".log")
        words = ["sbatch", "--parsable", f"--output={self.log}", "--time=10"]
        words += [f"--cpus-per-task={CPUS}", f"--gpus-per-node={GPUS}", *options]
        words += [str(SCRIPTS / "sweep.sbatch"), str(sweep.file)]
        self.id = slurm.call(*words, environ=variables(sweep, **environ))

    def output(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def until(self, words: str, seconds: float = 300) -> None:
        """Wait for words in the log."""
        until(lambda: words in self.output(), self.describe, seconds=seconds)

    def describe(self) -> str:
        return f"{self.slurm.state(self.id)}\n{self.output()}"

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


@pytest.mark.parametrize("nodes", [1, 2])
def test_near_the_time_limit_it_queues_itself_again_and_ends_as_if_never_stopped(
    slurm: Slurm, tiny: MakeTiny, tmp_path: Path, nodes: int
) -> None:
    gpu = {"cpus": 1, "gpus": 1}  # which is Slurm's to hand out
    sweep = tiny("job", WEIGHTS, epochs=12, resources=gpu)
    job = Job(slurm, sweep, f"--nodes={nodes}")
    job.until("epoch 1/")
    slurm.call("scancel", "--batch", "--signal=USR1", job.id)  # as Slurm does near the limit
    job.until("queued again")
    assert state(sweep) == "interrupted"
    assert job.end() == "COMPLETED", job.output()
    assert f"Ray on {nodes} of {nodes} nodes" in job.output()
    assert job.output().count("  epoch 1/") == len(WEIGHTS), "an epoch was trained twice"
    assert "the sweep is done" in job.output()
    assert sweep.outcomes() == undisturbed(tiny, tmp_path, epochs=12)
    names = {node.name for node in slurm.nodes} if slurm.nodes[0].inside else {gethostname()}
    assert ran_on(sweep.mlflow()) <= names


def test_slurm_itself_sends_the_signal_before_the_limit(slurm: Slurm, tiny: MakeTiny) -> None:
    sweep = tiny("job", WEIGHTS, epochs=10_000, resources={"cpus": 1})
    job = Job(slurm, sweep, "--nodes=1", "--time=2", "--signal=B:USR1@30", RESTARTS="1")
    job.until("queued again", seconds=200)
    job.until("not queued again", seconds=200)
    assert job.end() == "FAILED"  # after its only restart, with exit code 3
    assert "the time limit is near" in job.output()
    assert state(sweep) == "interrupted"


def test_scancel_ends_it_for_good(slurm: Slurm, tiny: MakeTiny) -> None:
    sweep = tiny("job", WEIGHTS, epochs=600, resources={"cpus": 1})
    job = Job(slurm, sweep, "--nodes=1")
    job.until("epoch 1/")
    slurm.call("scancel", job.id)
    slurm.until(job.id, "CANCELLED")
    time.sleep(8)  # longer than a job that is queued again waits
    assert slurm.state(job.id) == "CANCELLED"
    assert "queued again" not in job.output()


def test_two_jobs_share_a_node_and_a_preempted_one_comes_back(
    slurm: Slurm, tiny: MakeTiny, tmp_path: Path
) -> None:
    half = ("--nodes=1", "--nodelist=n1", "--cpus-per-task=1", "--gpus-per-node=1")
    preempted = tiny("one", WEIGHTS, epochs=100, resources={"cpus": 1}, home=tmp_path / "one")
    short = tiny("two", WEIGHTS, epochs=12, resources={"cpus": 1}, home=tmp_path / "two")
    jobs = [Job(slurm, sweep, *half) for sweep in (preempted, short)]
    jobs[0].until("epoch 1/")
    assert jobs[1].end() == "COMPLETED", jobs[1].output()
    assert slurm.state(jobs[0].id) == "RUNNING", "it went with the other's Ray"
    slurm.call("srun", "--partition=high", "--nodelist=n1", "--exclusive", "true")
    jobs[0].until("DUE TO PREEMPTION")
    assert jobs[0].end() == "COMPLETED", jobs[0].output()
    assert preempted.outcomes() == undisturbed(tiny, tmp_path, epochs=100)
    assert short.outcomes() == undisturbed(tiny, tmp_path / "2", epochs=12)


def test_what_a_node_without_a_network_keeps_is_delivered_from_the_login_node(
    slurm: Slurm, tiny: MakeTiny, mlflow_server: MlflowServer
) -> None:
    if not slurm.nodes[0].inside:
        pytest.skip("needs network namespaces: here a node reaches the server")
    sweep = tiny("away", WEIGHTS, resources={"cpus": 1})
    job = Job(slurm, sweep, "--nodes=1", **mlflow_server.environ)  # it listens on 127.0.0.1
    assert job.end() == "COMPLETED", job.output()
    sweep.call("sync", expect=0, **mlflow_server.environ)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in mlflow_server.environ.items():
            patch.setenv(name, value)
        runs = sweep.mlflow(mlflow_server.address)
    states = [run["status"] for run in runs if run["tags"]["carft.sweep"] == "away"]
    assert states == ["FINISHED"] * (2 + len(WEIGHTS))
