"""How `sweep.sbatch` takes signals and exit codes: a real Slurm, stand-ins for Ray and sweep."""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clusters.conftest import SCRIPTS
from tests.clusters.slurm import Slurm
from tests.e2e.conftest import ROOT
from tests.services.processes import environment

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

    def said(self) -> str:
        """Its log."""
        return (self.place / f"{self.id}.log").read_text()

    def process(self, which: str) -> int:
        """The stand-in for `ray` or the `driver`, once it runs."""
        file = self.place / f"{which}.{self.id}"
        last = time.monotonic() + 60
        while not (file.exists() and file.read_text().strip()):
            assert time.monotonic() < last, self.said()
            time.sleep(0.1)
        return int(file.read_text())

    def end(self) -> tuple[str, int, int]:
        """Its state, exit code and number of restarts, once it has ended for good."""
        self.slurm.until(self.id, "COMPLETED", "FAILED", seconds=60)
        told = self.slurm.call("scontrol", "show", "job", self.id)
        found = re.search(r"JobState=(\w+).* Restarts=(\d+) .*ExitCode=(\d+):", told, re.DOTALL)
        assert found is not None, told
        return found[1], int(found[3]), int(found[2])


def queued(slurm: Slurm, place: Path, behaves: str, **environ: str) -> Job:
    """A job whose sweep runs until it is told to stop, or ends with the exit code `behaves`."""
    programs = {"ray": RAY, "python": PYTHON.format(python=sys.executable), "carft-sweep": SWEEP}
    (place / "bin").mkdir(parents=True)
    for name, text in programs.items():
        (place / "bin" / name).write_text(text)
        (place / "bin" / name).chmod(0o755)
    told = {"VENV": str(place), "PLACE": str(place), "SCRATCH": str(place), "BEHAVES": behaves}
    variables = environment(PYTHONPATH=str(ROOT), **told | environ)
    words = ["sbatch", "--parsable", f"--output={place}/%j.log", "--nodes=1", "--cpus-per-task=1"]
    words += ["--gpus-per-node=1", str(SCRIPTS / "sweep.sbatch"), "kl_weight"]
    return Job(slurm, slurm.call(*words, environ=variables), place)


def test_near_the_limit_it_comes_back_until_the_sweep_is_done(slurm: Slurm, tmp_path: Path) -> None:
    job = queued(slurm, tmp_path, "runs")
    job.process("driver")
    slurm.call("scancel", "--batch", "--signal=USR1", job.id)
    assert job.end() == ("COMPLETED", 0, 1), job.said()
    assert "the time limit is near" in job.said()
    assert "the sweep is done" in job.said()
    assert list(tmp_path.glob("carft-*")) == [], "Ray's folder is left"
    # Of the two times another one, which nobody could have made first.
    folders = [line.split() for line in (tmp_path / "folders").read_text().splitlines()]
    assert len({name for _, name in folders}) == 2
    assert {mode for mode, _ in folders} == {"700"}


# Jobs of one test run at once: most of their time is Slurm's.
def test_what_is_killed_is_a_reason_to_come_back(slurm: Slurm, tmp_path: Path) -> None:
    jobs = {which: queued(slurm, tmp_path / which, "runs") for which in ("ray", "driver")}
    for which, job in jobs.items():
        job.process("driver")
        os.kill(job.process(which), signal.SIGKILL)
    for job in jobs.values():
        assert job.end() == ("COMPLETED", 0, 1), job.said()


def test_a_sweep_that_ends_by_itself_ends_the_job_with_its_code(
    slurm: Slurm, tmp_path: Path
) -> None:
    jobs = {code: queued(slurm, tmp_path / str(code), str(code)) for code in (0, 2, 3)}
    for code, job in jobs.items():
        assert job.end() == ("FAILED" if code else "COMPLETED", code, 0), job.said()


def test_a_ray_that_does_not_start_is_no_reason_to_come_back(slurm: Slurm, tmp_path: Path) -> None:
    job = queued(slurm, tmp_path, "no-ray")
    assert job.end() == ("FAILED", 1, 0), job.said()


def test_it_comes_back_so_often_and_no_more(slurm: Slurm, tmp_path: Path) -> None:
    job = queued(slurm, tmp_path, "runs", RESTARTS="0")
    job.process("driver")
    slurm.call("scancel", "--batch", "--signal=USR1", job.id)
    assert job.end() == ("FAILED", 3, 0), job.said()
    assert "not queued again" in job.said()


def test_what_cannot_serve_is_said_before_ray_is_started(slurm: Slurm, tmp_path: Path) -> None:
    jobs = [
        queued(slurm, tmp_path / "folder", "0", VENV="/nowhere"),
        queued(slurm, tmp_path / "old", "old-ray"),
    ]
    for job in jobs:
        assert job.end() == ("FAILED", 2, 0), job.said()
        assert not (job.place / "folders").exists()
    assert "carft-sweep is not in VENV, /nowhere" in jobs[0].said()
