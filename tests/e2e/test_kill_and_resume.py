"""A sweep that is killed at any instant and run again ends as if nobody had touched it."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import optuna
import pytest

from tests.e2e.conftest import EPOCHS, MakeTiny, Tiny

KILLS = 2
"""One of a worker, then one of the driver."""


def killed_at_random(
    sweep: Tiny, engine: str, kills: int, chance: random.Random, *, runs: int
) -> int:
    """Run, and kill a worker or the driver at random moments between reports; start again.

    Every second victim is the driver. How many were killed before the sweep came to its end.
    """
    # Half of the epochs on average: the other half is for victims that are not there yet.
    done, apart = 0, runs * EPOCHS // kills
    while done < kills:
        with sweep.start("run", "--engine", engine) as process:
            assert process.stderr is not None
            epochs_left = chance.randrange(apart)
            for line in process.stderr:
                epochs_left -= "epoch" in line
                if epochs_left > 0:
                    continue
                time.sleep(chance.random() * 0.3)
                targets = [process.pid] if done % 2 else sweep.workers()
                if not targets:
                    continue  # the worker of an earlier kill is not replaced yet
                os.kill(chance.choice(targets), signal.SIGKILL)
                done += 1
                epochs_left = chance.randrange(apart)
                if targets == [process.pid] or done == kills:
                    break
            if done == kills:
                process.kill()
        if process.returncode >= 0:
            break
    return done


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the worker in /proc")
@pytest.mark.xdist_group("undisturbed")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_killed_again_and_again_it_ends_with_the_same_values_and_nothing_twice(
    tiny: MakeTiny, undisturbed: dict[float, Any], engine: str
) -> None:
    sweep, count = tiny("killed", [*undisturbed], retries=30, breaker=0), len(undisturbed)
    assert killed_at_random(sweep, engine, KILLS, random.Random(KILLS), runs=count) == KILLS
    # A third worker would take as long as all the rest.
    sweep.in_process("run") if engine == "local" else sweep.call("run", "--engine", engine)
    assert sweep.outcomes() == undisturbed

    database = f"sqlite:///{sweep.home / 'optuna.db'}"
    study = optuna.load_study(study_name="killed", storage=database)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * count
    runs = [run for trial in sweep.show()["trials"] for run in trial["runs"]]
    assert [run["state"] for run in runs] == ["done"] * count
    assert_tracked_once(sweep, {run["digest"] for run in runs})


def assert_tracked_once(sweep: Tiny, digests: set[str]) -> None:
    """In MLflow: one parent, one child for each run, all finished, each epoch once."""
    runs = sweep.mlflow()
    assert len(runs) == 1 + 1 + len(digests)  # the sweep and the zero-shot model
    assert {run["status"] for run in runs} == {"FINISHED"}
    trained = {r["tags"]["carft.run"]: r["epochs"] for r in runs if "carft.trial" in r["tags"]}
    assert set(trained) == digests
    assert all(epochs == list(range(1, EPOCHS + 1)) for epochs in trained.values())
