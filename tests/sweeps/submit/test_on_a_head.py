"""`submit` to a real Ray head that wants a token: sweeps, logs, ends, and no secret anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from ray._private.authentication_test_utils import reset_auth_token_state

from carft_sweep.sweeps.submit.client import JobClient, exit_code
from tests.sweeps.conftest import Carft
from tests.sweeps.submit.conftest import Git

pytestmark = pytest.mark.xdist_group("ray")
ROOT = Path(__file__).parents[3]
TOKEN = "0123456789abcdef0123456789abcdef"
STANDS_IN = """
import json, os, signal, sys, time
from pathlib import Path
text = next(word for word in sys.argv if word.startswith("description="))
act, _, rest = text.removeprefix("description=").partition(" ")
print(json.dumps({"argv": sys.argv[1:], "cwd": Path.cwd().name, "mine": Path("mine.py").is_file(),
    "uri": os.environ.get("MLFLOW_TRACKING_URI"), "address": os.environ["RAY_ADDRESS"]}))
if act == "exit":
    sys.exit(int(rest))
def stop(*_):
    print("stops after this epoch")
    time.sleep(3.5)  # Ray itself kills after three seconds
    print("has stopped")
    sys.exit(3)
signal.signal(signal.SIGTERM, stop)
for line in range(10_000):
    print(f"line {line}")
    time.sleep(0.05)
    if Path(rest).exists():
        break
"""
"""A `sweeps` of the project's own, told by `description` what to do: what `submit` does to it is
seen in a second, while a real sweep takes half a minute."""


@dataclass(frozen=True)
class Head:
    """Where it is, and the folder that it writes to."""

    url: str
    folder: Path


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    # Not in pytest's folder: the paths of Ray's sockets are limited to 107 bytes.
    with tempfile.TemporaryDirectory(prefix="carft-h", dir="/tmp", ignore_cleanup_errors=True) as t:
        token = Path(t) / "token"
        token.write_text(TOKEN)
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "MLFLOW_"))}
        secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # python
        path = os.pathsep.join([str(ROOT), *filter(None, [environ.get("PYTHONPATH")])])
        with subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("head.py")), f"{t}/r"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**environ, **secret, "PATH": programs, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            text=True,
        ) as process:
            assert process.stdout is not None
            yield Head(json.loads(process.stdout.readline())["url"], Path(t) / "r")
            process.communicate(timeout=60)


@pytest.fixture
def on_head(
    head: Head, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Head]:
    """The project's environment names the head and its token, and a home that is not there yet."""
    del project
    monkeypatch.setenv("CARFT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", head.url)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    reset_auth_token_state()  # Ray reads them once in a process
    yield head
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    reset_auth_token_state()


@pytest.fixture
def stand_in(git: Git, project: Path) -> Path:
    """The project as a clone of carft-sweep, whose command does what it is told."""
    del git
    for package in ("carft_sweep", "sweeps"):
        (project / package).mkdir()
        (project / package / "__init__.py").write_text("")
    (project / "carft_sweep" / "sweeps").symlink_to("../sweeps")
    (project / "carft_sweep" / "__main__.py").write_text(STANDS_IN)
    return project


SUBMIT = ("submit", "tiny.yaml", "--set")


@pytest.mark.usefixtures("stand_in")
def test_a_failing_job_gives_its_own_exit_code_and_ran_what_was_sent(
    on_head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    printed = carft(*SUBMIT, "description=exit 2", "--", "--parallel", "2", code=2)
    seen = json.loads(printed.out.splitlines()[-1])
    assert seen["argv"] == [
        *("run", "tiny.yaml", "--address", "auto", "--home", str(tmp_path / "home")),
        *("--set", "description=exit 2", "--parallel", "2"),
    ]
    assert (seen["mine"], seen["uri"]) == (True, "http://mlflow:5000")
    assert seen["address"]
    assert "is failed." in printed.err
    assert "asks for no token" not in printed.err
    id_ = next(word for word in printed.err.split() if word.startswith("carft-tiny-"))
    job = JobClient(on_head.url).get_job_info(id_)
    assert (job.metadata or {})["carft_sweep"] == "tiny"
    assert exit_code(job) == 2


@pytest.mark.usefixtures("stand_in")
def test_a_job_is_left_and_stopped_by_rays_own_command(on_head: Head, carft: Carft) -> None:
    id_ = carft(*SUBMIT, "description=wait /nowhere", "--no-wait").out.strip()
    client = JobClient(on_head.url)
    until = time.monotonic() + 60
    while "line 3" not in client.get_job_logs(id_):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert client.stop_job(id_)
    lines: list[str] = []
    job = client.follow(id_, lines.append)
    assert exit_code(job) == 3
    assert lines[-2:] == ["stops after this epoch", "has stopped"]


def run_python(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python as in a shell whose home is this folder, with these variables alone of Ray's."""
    command = [sys.executable, *words]
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    env |= {"PYTHONPATH": str(ROOT), "HOME": str(folder), **variables}
    return subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True, timeout=240)


@pytest.mark.slow  # Ray tries for twenty seconds
def test_a_driver_without_a_token_is_told_what_to_set(head: Head, tmp_path: Path) -> None:
    address = (head.folder / "ray_current_cluster").read_text()
    command = ("-m", "carft_sweep", "check", "kl_weight", "--address", address)
    done = run_python(tmp_path, *command)
    assert done.returncode == 4
    *of_ray, message = done.stderr.splitlines()
    assert message.startswith(f"carft-sweep: no Ray cluster at {address} that accepts this")
    assert "set RAY_AUTH_MODE=token" in message
    assert all("gcs_client.cc" in line for line in of_ray)  # its log of the refused attempts


JOINS = """
from carft_sweep.sweeps.engines.ray_cluster import Cluster
own = Cluster()
own.close()
theirs = Cluster("auto")
print(*(node.cpus for node in theirs.nodes_by_id().values()))
theirs.close()
"""


@pytest.mark.slow  # it starts one more Ray
def test_a_driver_joins_a_users_ray_after_one_of_its_own(head: Head, tmp_path: Path) -> None:
    """Ray reads the token once in a process, and that of our own Ray is another."""
    token = tmp_path / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text(TOKEN)
    address = (head.folder / "ray_current_cluster").read_text()
    done = run_python(tmp_path, "-c", JOINS, RAY_ADDRESS=address, RAY_AUTH_MODE="token")
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr
