"""Watching a sweep from outside: what is seen of it, from files alone, and how it is shown."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.files import read_json, write_json
from carft_sweep.sweeps.cli.status import as_text, sweep_status
from carft_sweep.sweeps.ledger.claim import Claim
from carft_sweep.sweeps.ledger.runs import RunStore
from tests.sweeps.conftest import Carft, ToySweep

ROOT = Path(__file__).parents[3]
MISSING = """
import sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "optuna", "ray", "mlflow", "scipy", "matplotlib"}:
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Refused())
from carft_sweep.sweeps.cli import main

for words in ("watch toy", "stop toy", "show toy", "list", "clean", "doctor machine.cores ray"):
    print("exit", main([*words.split(), "--home", sys.argv[1]]))
"""


def test_a_sweep_that_has_ended_is_seen_whole(toy: ToySweep) -> None:
    toy.run()
    seen = sweep_status(toy.home, "toy")
    assert (seen.state, seen.driver, dict(seen.trials)) == ("done", None, {"complete": 2})
    assert (seen.runs, seen.runs_ended) == (7, 7)
    assert seen.best is not None
    assert seen.best["params"] == {"algorithm.kl_weight": 0.3}
    assert (seen.running, seen.failed, seen.seconds_left) == ((), (), None)
    lines = as_text(seen).splitlines()
    assert (lines[0], lines[-1]) == ("toy: done", "more    carft-sweep compare toy")
    best = "best    kl_weight=0.3  id/val/top1 80.5 %  trial 1"
    for shown in ("trials  2 complete", "runs    7 of 7 ended", best):
        assert any(shown in line for line in lines), shown


NAMES = {"algorithm.name": {"values": ["car_ft", "zero_shot"]}}
SEEDLESS: Any = {"parameters": NAMES, "baselines": ["fine_tune"], "trial": {"device": "cpu"}}
"""A grid of 2 methods, of which one is measured once whatever the seeds are."""


def test_a_method_without_seeds_is_one_run_in_every_count(toy_cli: ToySweep, carft: Carft) -> None:
    for more, planned, expected in (({}, 5, 5), ({"method": "tpe", "run_cap": 4}, 6, 4)):
        changes = {**SEEDLESS, **more, "name": f"of{planned}"}
        file = toy_cli.file(**changes)
        assert carft("check", str(file), "--json").json["runs"] == planned
        toy_cli.run(**changes)
        seen = sweep_status(toy_cli.home, f"of{planned}")
        assert (seen.runs, seen.runs_ended) == (expected, expected)


def test_the_last_failures_are_told_with_class_and_message(toy: ToySweep) -> None:
    toy.plan({"0.1/0": [{"do": "raise", "error": "nan"}]})
    toy.run()
    (failed,) = sweep_status(toy.home, "toy").failed
    failure = failed.failure or {}
    assert (failed.label, failure["kind"]) == ("car_ft kl_weight=0.1 seed 0", "nan")
    assert failure["message"] == "train/loss is nan in epoch 3"
    assert "NonFinite" in failure["log_tail"]
    text = as_text(sweep_status(toy.home, "toy"))
    assert "nan: train/loss is nan in epoch 3" in text
    assert "1 complete, 1 failed" in text


def midway(toy: ToySweep) -> str:
    """The home as it is while trial 1 trains its second seed; the label of that run."""
    toy.run()
    trial = toy.ledger().trials()[1]
    file = toy.home.sweep("toy") / "ledger.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    ends = [line for line in lines if line.get("trial", {}).get("ended")]
    lines = lines[: lines.index(ends[1])]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    digest = trial.runs["1"]
    runs, folder = RunStore(toy.home.runs), toy.home.runs / digest
    state = runs.read(digest)
    assert state is not None
    history = read_json(folder / "history.json")[:3]
    history[-1]["metrics"] |= {"id/val/top1": 0.5, "system/images_per_s": 640.2}
    acquired = runs.acquire(digest, state.label, "toy")
    assert acquired is not None
    assert acquired.lease is not None
    # Epochs have whole milliseconds: this one ended in the millisecond in which the attempt began.
    history[-1]["timestamp"] = int(1000 * acquired.lease.since)
    write_json(folder / "history.json", history)
    return state.label


def test_a_running_sweep_shows_its_driver_its_runs_and_how_long_it_takes(toy: ToySweep) -> None:
    with Claim(toy.home.sweep("toy")):
        seen = sweep_status(toy.home, "toy")
        assert seen.state == "starting"
        assert "toy: starting, driven by" in as_text(seen)
    label = midway(toy)
    with Claim(toy.home.sweep("toy")):
        seen = sweep_status(toy.home, "toy")
        text = as_text(seen)
    assert (seen.state, dict(seen.trials)) == ("running", {"complete": 1, "running": 1})
    assert (seen.runs, seen.runs_ended) == (7, 6)
    (running,) = seen.running
    assert (running.label, running.epoch, running.epochs) == (label, 2, 4)
    assert seen.seconds_left is not None
    assert f"driven by process {os.getpid()} on " in text
    assert "left" in text
    row = next(line for line in text.splitlines() if line.startswith(label))
    assert all(shown in row for shown in ("2/4", "50.0 %", "640"))
    (history,) = (
        file for file in toy.home.runs.glob("*/history.json") if "640.2" in file.read_text()
    )
    epochs = read_json(history)
    epochs[-1]["timestamp"] -= 60_000
    write_json(history, epochs)
    with Claim(toy.home.sweep("toy")):
        text = as_text(sweep_status(toy.home, "toy"))
    row = next(line for line in text.splitlines() if line.startswith(label))
    assert ("2/4" in row, "640" in row) == (True, False), "of an attempt that was lost"
    seen = sweep_status(toy.home, "toy")
    assert (seen.state, seen.running, seen.seconds_left) == ("interrupted", (), None)


def test_who_looks_at_a_home_imports_neither_torch_nor_a_database(toy: ToySweep) -> None:
    toy.run()
    command = [sys.executable, "-c", MISSING, str(toy.home.path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (done.stderr, done.stdout.count("exit 0\n")) == ("", 6)
    assert "cores usable" in done.stdout


def test_watch_lives_on_a_terminal_until_the_sweep_ends(toy: ToySweep) -> None:
    label = midway(toy)
    claim = Claim(toy.home.sweep("toy"))
    claim.__enter__()
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "carft_sweep", "watch", "toy", "--home", str(toy.home.path)]
    environ = {**os.environ, "COLUMNS": "160", "LINES": "40", "TERM": "xterm"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=theirs, env=environ)
    os.close(theirs)
    shown: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(ours, 65536):
                shown.append(chunk)
        except OSError:  # so Linux says that the other end is closed
            return

    reader = threading.Thread(target=read)
    reader.start()
    end = time.monotonic() + 60
    while b"".join(shown).count(label.encode()) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    claim.__exit__(None, None, None)
    assert process.wait(60) == 0
    reader.join()
    os.close(ours)
    text = b"".join(shown).decode()
    assert text.count(label) >= 2
    assert "Interrupted. To go on: carft-sweep resume toy --home " in text
