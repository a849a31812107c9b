"""`one_machine.sh`: the sweep outlives the shell that started it, and a driver that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.clusters.conftest import SCRIPTS, call, refused, state, variables
from tests.e2e.conftest import MakeTiny, Tiny
from tests.services.processes import ended, until

pytestmark = pytest.mark.timeout(600)
WEIGHTS = [0.0, 0.5]
SCRIPT = str(SCRIPTS / "one_machine.sh")
LOCAL, RAY = ("--engine", "local"), ("--engine", "ray")
NEEDS_TMUX = pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")


def driver(sweep: Tiny) -> int | None:
    """The process that drives it."""
    file = sweep.home / "sweeps" / sweep.file.stem / "driver.json"
    try:
        pid: int = json.loads(file.read_text())["pid"]
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return pid


def epochs(sweep: Tiny) -> int:
    """Lines of epochs in all runs' histories."""
    files = sweep.home.glob("runs/*/history.json")
    return sum(file.read_text().count('"epoch"') for file in files)


@pytest.mark.parametrize(
    ("keep", "engine"),
    [
        pytest.param("setsid", LOCAL, marks=pytest.mark.slow),
        pytest.param("setsid", RAY, marks=[pytest.mark.slow, pytest.mark.xdist_group("ray")]),
        pytest.param("tmux", LOCAL, marks=[pytest.mark.slow, NEEDS_TMUX]),
    ],
    ids=["setsid", "ray", "tmux"],
)
def test_the_sweep_outlives_its_shell_and_the_kill_of_its_driver(
    tiny: MakeTiny, tmp_path: Path, keep: str, engine: tuple[str, ...]
) -> None:
    sweep = tiny("kept", WEIGHTS, epochs=8)
    name = f"carft-test-{os.getpid()}"
    environ = variables(sweep, KEEP=keep, NAME=name, PAUSE="0")
    try:
        output = call(SCRIPT, str(sweep.file), *engine, environ=environ)  # which ends
        assert "It runs." in output
        until(lambda: epochs(sweep) > 2)
        killed = driver(sweep)
        assert killed is not None
        os.kill(killed, signal.SIGKILL)
        until(lambda: driver(sweep) not in (None, killed))
        until(lambda: driver(sweep) is None)
        assert state(sweep) == "done"
    finally:
        if keep == "tmux":
            subprocess.run(["tmux", "-L", name, "kill-server"], capture_output=True)
    undisturbed = replace(sweep, home=tmp_path / "undisturbed")
    undisturbed.call("run", *LOCAL)
    assert sweep.outcomes() == undisturbed.outcomes()


def test_what_ends_by_itself_is_not_begun_again(tiny: MakeTiny) -> None:
    sweep = tiny("wrong", WEIGHTS, no_such_key=1)
    environ = variables(sweep, KEEP="setsid", PAUSE="0")
    call(SCRIPT, str(sweep.file), *LOCAL, environ=environ)
    log = sweep.home / "carft-sweep.log"
    until(lambda: "no_such_key" in log.read_text())
    time.sleep(2)
    assert log.read_text().count("unknown key") == 1
    assert "was killed" not in log.read_text()
    assert stat.S_IMODE(sweep.home.stat().st_mode) == 0o700, "a new home is its user's alone"


def test_systemd_is_told_what_to_keep_and_gets_no_value_on_its_command_line(
    tiny: MakeTiny, tmp_path: Path
) -> None:
    sweep = tiny("unit", WEIGHTS[:1], no_such_key=1)  # which ends at once
    stand_in = tmp_path / "bin" / "systemd-run"
    stand_in.parent.mkdir()
    stand_in.write_text(
        f'#!/bin/bash\nprintf "%s\\n" "$@" >{tmp_path}/told\n'
        'while [[ $1 == --* ]]; do shift; done\nexec "$@"\n'
    )
    stand_in.chmod(0o755)
    secret = "https://hooks.lab/unlisted"
    environ = variables(sweep, KEEP="systemd", NAME="mine", MLFLOW_TRACKING_TOKEN=secret)
    environ["PATH"] = f"{stand_in.parent}:{environ['PATH']}"
    done = ended(SCRIPT, sweep.file, *LOCAL, environ=environ)
    assert "unit.yaml:1: no_such_key" in done.stderr
    words = (tmp_path / "told").read_text().splitlines()
    assert words[:2] == ["--user", "--unit=mine"]
    assert {"--setenv=CARFT_HOME", "--setenv=MLFLOW_TRACKING_TOKEN", "--setenv=PATH"} <= set(words)
    assert "--property=Restart=on-abnormal" in words
    assert not [word for word in words if secret in word]


@pytest.mark.parametrize(
    ("words", "keep", "message"),
    [((), "setsid", "say which sweep"), (("kl_weight",), "screen", "got screen")],
)
def test_a_wrong_call_is_answered_at_once(
    tmp_path: Path, words: tuple[str, ...], keep: str, message: str
) -> None:
    assert message in refused("one_machine.sh", *words, KEEP=keep, CARFT_HOME=str(tmp_path))
