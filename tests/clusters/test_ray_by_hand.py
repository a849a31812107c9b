"""`start_head.sh` and `start_worker.sh`: a cluster of three hosts, with ports that are known."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from carft_sweep.sweeps.cli import UNREACHABLE
from tests.clusters.by_hand import ALL, Cluster, running
from tests.clusters.conftest import SCRIPTS, VENV, call, refused, state, variables
from tests.clusters.hosts import Host
from tests.e2e.conftest import MakeTiny
from tests.services.processes import ended

pytestmark = [pytest.mark.xdist_group("services"), pytest.mark.timeout(600)]


@pytest.fixture
def cluster(cluster: Cluster) -> Cluster:
    """With every worker there, whatever other tests have done to one."""
    cluster.mend()
    return cluster


@pytest.mark.slow
def test_every_port_that_ray_listens_on_is_one_of_cluster_env(cluster: Cluster) -> None:
    for host in (Host("here", cluster.head), *cluster.workers):
        own = set(cluster.processes(host.name))
        pairs = re.findall(r"[\d\]*]:(\d+) .*pid=(\d+)", host.call("ss", "-tlnpH"))
        listening = {int(port) for port, pid in pairs if int(pid) in own}
        assert listening, host
        assert {port for port in listening if port not in allowed(cluster, host)} == set(), host


def allowed(cluster: Cluster, host: Host) -> set[int]:
    """The ports that cluster.env names on a host."""
    script = f"source {SCRIPTS}/cluster.env; echo {' '.join('$' + n for n in ALL)} $WORKER_PORTS"
    ports = call("bash", "-euc", script, environ=cluster.known[host.name]).split()
    first, last = map(int, ports.pop().split("-"))
    return {*map(int, ports), *range(first, last + 1)}


@pytest.mark.slow
def test_who_has_not_the_token_is_refused(cluster: Cluster, tiny: MakeTiny) -> None:
    token = Path(cluster.environ["CARFT_HOME"]) / "ray-token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    sweep = tiny("token", [0.0])
    address = f"{cluster.head}:{cluster.environ['GCS_PORT']}"
    words = (VENV / "bin" / "carft-sweep", "check", sweep.file, "--address", address)
    done = ended(*words, environ=variables(sweep))
    assert done.returncode in (2, 4), done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "token" in done.stderr


@pytest.mark.parametrize(
    ("script", "changed", "message"),
    [
        ("start_head.sh", {"HEAD": "loop"}, "loop is 127.0.1.1 here, where no other machine"),
        ("start_head.sh", {"HEAD": "no.such.machine"}, "nobody knows where no.such.machine is"),
        ("start_head.sh", {"HEAD": "10.0.0.9", "RAY_SCRATCH": f"/tmp/{22 * 'r'}"}, "too long"),
        ("start_worker.sh", {"HEAD": "no.such.machine"}, "nobody knows where no.such.machine is"),
        ("start_worker.sh", {"HEAD": "192.0.2.1"}, "ray-token is not here: is the home mounted"),
    ],
)
def test_what_cannot_be_a_cluster_is_said_at_once(
    tmp_path: Path, script: str, changed: dict[str, str], message: str
) -> None:
    stand_in = tmp_path / "getent"  # the names that a machine knows are not a test's
    stand_in.write_text(
        '#!/bin/sh\ncase $2 in loop) echo "127.0.1.1 STREAM loop" ;; '
        '*such*) exit 2 ;; *) echo "$2 STREAM" ;; esac\n'
    )
    stand_in.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    home = tmp_path / "home"
    assert message in refused(script, PATH=path, CARFT_HOME=str(home), **changed)
    assert not home.exists()


def test_a_head_that_is_up_is_said(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = str(head.getsockname()[1])
        at = {"CARFT_HOME": str(tmp_path), "HEAD": "127.0.0.1", "GCS_PORT": port}
        assert f"something listens at 127.0.0.1:{port} already" in refused("start_head.sh", **at)


@pytest.mark.slow
def test_a_sweep_whose_head_dies_ends_with_a_sentence(tiny: MakeTiny) -> None:
    sweep = tiny("headless", [0.0, 0.5], epochs=2000)
    head, node = (Host(name, "127.0.0.1") for name in ("here", "node"))
    with running([head, node], sweep.home) as cluster:
        address = f"{cluster.head}:{cluster.environ['GCS_PORT']}"
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(sweep.home / "ray-token")}
        process = sweep.start("run", "--address", address, **token)
        while not [*sweep.home.glob("runs/*/history.json")] and process.poll() is None:
            time.sleep(0.2)
        cluster.kill(head)
        stderr = process.communicate(timeout=150)[1]
    assert process.returncode == UNREACHABLE, stderr
    assert f":{cluster.environ['GCS_PORT']} is gone" in stderr
    assert "StackTrace" not in stderr
    assert state(sweep) == "interrupted"


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder whose path leaves room for the names of sockets."""
    with tempfile.TemporaryDirectory(prefix="") as folder:
        yield Path(folder)


@pytest.mark.parametrize("script", ["start_head.sh", "start_worker.sh"])
def test_rays_folder_lies_in_one_that_nobody_could_make_first(
    tmp_path: Path, short_folder: Path, script: str
) -> None:
    scratch, programs = short_folder / "s", tmp_path / "venv" / "bin"
    for folder in (scratch, programs, tmp_path / "home"):
        folder.mkdir(parents=True)
    scratch.chmod(0o1777)
    (tmp_path / "home" / "ray-token").write_text("token")
    stand_ins = {
        "python": '[ "$*" = "-m carft_sweep.sweeps.engines.ray_tokens" ] && exit "${OLD:-0}"',
        "ray": f'printf "%s\\n" "$@" >>{tmp_path}/words',
        "ip": 'echo "$4 dev lo src $4 uid 0"',
    }
    for name, text in stand_ins.items():
        (programs / name).write_text(f"#!/bin/bash\n{text}\n")
        (programs / name).chmod(0o755)

    def start(**more: str) -> int:
        own = {"HEAD": "127.0.0.1", "VENV": str(programs.parent), "RAY_SCRATCH": str(scratch)}
        environ = {**os.environ, **own, "CARFT_HOME": str(tmp_path / "home"), **more}
        environ["PATH"] = f"{programs}:{os.environ['PATH']}"
        command = ["bash", "-c", 'umask 0; exec "$0"', str(SCRIPTS / script)]
        return subprocess.run(command, env=environ, timeout=20, check=False).returncode

    assert start(OLD="2") == 2
    assert not (tmp_path / "words").exists(), "a Ray without tokens was started"
    assert (start(), start()) == (0, 0)
    words = (tmp_path / "words").read_text().splitlines()
    folders = [Path(words[at + 1]) for at, word in enumerate(words) if word == "--temp-dir"]
    assert len({folder.parent for folder in folders}) == 2
    for folder in folders:
        assert folder.parent.parent == scratch
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    if script == "start_head.sh":  # which makes the home
        assert start(CARFT_HOME=str(tmp_path / "new")) == 0
        assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


def test_jobs_find_the_python_of_the_environment_also_where_a_shell_by_ssh_does_not() -> None:
    script = f"source {SCRIPTS}/cluster.env; command -v python carft-sweep ray"
    paths = call("bash", "-c", script, environ={"VENV": str(VENV), "PATH": "/usr/bin:/bin"})
    assert paths.split() == [str(VENV / "bin" / name) for name in ("python", "carft-sweep", "ray")]
