"""How `sweep.sbatch` takes signals and exit codes: a real Slurm, stand-ins for Ray and sweep."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clusters.conftest import SCRIPTS
from tests.clusters.slurm import Slurm
from tests.e2e.conftest import ROOT
from tests.services.processes import environment, until

pytestmark = [pytest.mark.xdist_group("ray"), pytest.mark.timeout(180)]
RAY = """\
#!/bin/bash
[ "$BEHAVES" != no-ray ] || exit 1
while [ "$1" != --temp-dir ]; do shift; done
stat --format='%a %n' "$(dirname "$2")" >>"$PLACE/folders"
echo $$ >"$PLACE/ray.$SLURM_JOB_ID"
trap 'exit 0' TERM
while :; do sleep 0.1; done
"""
# Asked to wait for Ray's nodes it does not, asked for Ray's version it may say that it is too old;
# else it is the real one.
PYTHON = """\
#!/bin/bash
[ "$BEHAVES $2" != "old-ray carft_sweep.sweeps.engines.ray_tokens" ] || exit 2
[ "$1" = - ] || exec {python} "$@"
[ "$BEHAVES" != no-ray ]
"""
# As the real one it begins behind Ray: of each start of the job there is a line of Ray's stand-in.
SWEEP = """\
#!/bin/bash
trap 'exit 3' TERM
until [ "$(cat "$PLACE/folders" 2>/dev/null | wc -l)" -gt "${SLURM_RESTART_COUNT:-0}" ]; do
  sleep 0.1
done
echo $$ >"$PLACE/driver.$SLURM_JOB_ID"
[ -z "${SLURM_RESTART_COUNT:-}" ] || exit 0
[ "$BEHAVES" = runs ] || exit "$BEHAVES"
while :; do sleep 0.1; done
"""


@dataclass(frozen=True)
class Job:
    """One of the script's."""

    slurm: Slurm
    id: str
    place: Path

    def output(self) -> str:
        return (self.place / f"{self.id}.log").read_text()

    def process(self, which: str) -> int:
        """The stand-in for `ray` or the `driver`, once it runs."""
        file = self.place / f"{which}.{self.id}"
        until(lambda: file.exists() and file.read_text().strip(), self.output, seconds=60)
        return int(file.read_text())

    def end(self) -> tuple[str, int, int]:
        """Its state, exit code and number of restarts, once it has ended for good."""
        self.slurm.until(self.id, "COMPLETED", "FAILED", seconds=60)
        job = self.slurm.call("scontrol", "show", "job", self.id)
        match = re.search(r"JobState=(\w+).* Restarts=(\d+) .*ExitCode=(\d+):", job, re.DOTALL)
        assert match is not None, job
        return match[1], int(match[3]), int(match[2])


def queued(slurm: Slurm, place: Path, behaves: str, **environ: str) -> Job:
    """A job whose sweep runs until it is told to stop, or ends with the exit code `behaves`."""
    programs = {"ray": RAY, "python": PYTHON.format(python=sys.executable), "carft-sweep": SWEEP}
    (place / "bin").mkdir(parents=True)
    for name, text in programs.items():
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    own = {"VENV": str(place), "PLACE": str(place), "SCRATCH": str(place), "BEHAVES": behaves}
    variables = environment(PYTHONPATH=str(ROOT), **own | environ)
    words = ["sbatch", "--parsable", f"--output={place}/%j.log", "--nodes=1", "--cpus-per-task=1"]
    words += ["--gpus-per-node=1", str(SCRIPTS / "sweep.sbatch"), "kl_weight"]
    return Job(slurm, slurm.call(*words, environ=variables), place)


CASES: Mapping[str, tuple[str, dict[str, str], tuple[str, int, int], str]] = {
    "near the limit it comes back": ("runs", {}, ("COMPLETED", 0, 1), "the time limit is near"),
    "with a killed ray it comes back": ("runs", {}, ("COMPLETED", 0, 1), "the sweep is done"),
    "with a killed driver it comes back": ("runs", {}, ("COMPLETED", 0, 1), "the sweep is done"),
    "it comes back so often and no more": (
        *("runs", {"RESTARTS": "0"}, ("FAILED", 3, 0)),
        "not queued again",
    ),
    "a sweep that is done ends it": ("0", {}, ("COMPLETED", 0, 0), "the sweep is done"),
    "a mistake ends it": ("2", {}, ("FAILED", 2, 0), ""),
    "a sweep that stops ends it": ("3", {}, ("FAILED", 3, 0), ""),
    "a ray that does not start ends it": ("no-ray", {}, ("FAILED", 1, 0), ""),
    "without the program no ray is started": (
        *("0", {"VENV": "/nowhere"}, ("FAILED", 2, 0)),
        "carft-sweep is not in VENV, /nowhere",
    ),
    "an old ray is not started": ("old-ray", {}, ("FAILED", 2, 0), ""),
}
"""Of each job how its sweep behaves, its environment, its end, and what it says."""


@pytest.fixture(scope="module")
def jobs(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """All at once: most of their time is Slurm's. To those that run is done what they are for."""
    place = tmp_path_factory.mktemp("jobs")
    made = {
        name: queued(slurm, place / str(number), behaves, **environ)
        for number, (name, (behaves, environ, _, _)) in enumerate(CASES.items())
    }
    for name in [name for name, (behaves, *_) in CASES.items() if behaves == "runs"]:
        job = made[name]
        job.process("driver")
        if "killed" in name:
            os.kill(job.process("ray" if "ray" in name else "driver"), signal.SIGKILL)
        else:
            slurm.call("scancel", "--batch", "--signal=USR1", job.id)
    return made


@pytest.mark.parametrize("name", CASES)
def test_a_job_ends_or_comes_back(jobs: dict[str, Job], name: str) -> None:
    (_, _, end, words), job = CASES[name], jobs[name]
    assert job.end() == end, job.output()
    assert words in job.output()
    assert "ray is" not in name or not (job.place / "folders").exists()


def test_rays_folder_is_another_one_each_time_and_nobody_elses(jobs: dict[str, Job]) -> None:
    job = jobs["near the limit it comes back"]
    job.end()
    assert list(job.place.glob("carft-*")) == [], "Ray's folder is left"
    folders = [line.split() for line in (job.place / "folders").read_text().splitlines()]
    assert len({name for _, name in folders}) == 2
    assert {mode for mode, _ in folders} == {"700"}
