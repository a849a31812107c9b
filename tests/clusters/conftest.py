"""The scripts of docs/clusters, run as they stand on hosts that are namespaces of this machine."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.clusters import slurm as slurms
from tests.clusters.hosts import Host, hosts
from tests.clusters.slurm import Slurm
from tests.e2e.conftest import APART, LIMIT, ROOT, Tiny
from tests.e2e.conftest import images as images
from tests.e2e.conftest import tiny as tiny
from tests.services.processes import environment

SCRIPTS = ROOT / "docs" / "clusters"
VENV = Path(sys.executable).parent.parent
"""Where carft-sweep is installed, as the scripts want to know it."""


def variables(sweep: Tiny, **more: str) -> dict[str, str]:
    """The environment of a user who calls a script: this clone, the sweep's home."""
    known = environment(
        VENV=str(VENV), CARFT_HOME=str(sweep.home), PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1"
    )
    return {name: value for name, value in known.items() if name not in APART} | more


def call(*words: str, environ: Mapping[str, str], folder: Path | None = None) -> str:
    """What a command that succeeds says, on either output."""
    done = subprocess.run(
        words,
        env=dict(environ),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def state(sweep: Tiny) -> str:
    """`done`, `interrupted`, ..., as `list` tells it."""
    listed = call(str(VENV / "bin" / "carft-sweep"), "list", "--json", environ=variables(sweep))
    told: str = next(s["state"] for s in json.loads(listed) if s["name"] == sweep.file.stem)
    return told


def ran_on(runs: Sequence[Mapping[str, Any]]) -> set[str]:
    """The hosts that trained runs, as MLflow was told."""
    return {r["tags"]["carft.worker"].split(":")[1] for r in runs if "carft.worker" in r["tags"]}


@pytest.fixture(scope="session")
def machines() -> Iterator[list[Host]]:
    """This machine, and two more."""
    with hosts(["here", "n1", "n2"]) as made:
        yield made


@pytest.fixture(scope="session")
def slurm(machines: list[Host]) -> Iterator[Slurm]:
    """Slurm with a node on each of the other two."""
    if slurms.LACKS:
        pytest.skip(slurms.LACKS)
    with slurms.running(machines[0], machines[1:]) as made:
        yield made
