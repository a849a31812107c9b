"""`carft-sweep` with simulated training that goes wrong on request.

    python -m benchmarks.chaos.planted_faults run SWEEP.yaml --home HOME

Runs are those of `chain_core`. What goes wrong stands in the file that CHAOS_PLAN names, as JSON:
`runs` maps `KL_WEIGHT/SEED` to a list of faults, one for each attempt, and `rates` a fault to the
share of all runs whose first attempt has it. A fault is one of `go_wrong`; `nan@3` says in which
epoch, `nan@end` in evaluation.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.chaos import chain_core
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import read_json
from carft_sweep.sweeps.engines.base import Decision
from carft_sweep.sweeps.engines.entry import Report

ENTRY = "benchmarks.chaos.planted_faults:train_run"
PLAN = "CHAOS_PLAN"
CGROUP = "CHAOS_CGROUP"
"""The variable for a memory cgroup in which the kernel ends who takes too much."""
END, MIDDLE = "end", "3"
LONG = 3600.0
PAUSE = 2.0
NO_CPU_MEMORY = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"


def train_run(
    config: Mapping[str, Any], seed: int, *, report: Report, workdir: Path
) -> Mapping[str, Any] | None:
    """Simulate one run, an entry of the engines, with the fault that is planned for it."""
    fault, _, when = planned_fault(config, seed, workdir).partition("@")
    when = when or MIDDLE

    def watched(epoch: Mapping[str, Any]) -> Decision:
        if fault and str(epoch["epoch"]) == when:
            go_wrong(fault)
        return report(epoch)

    def measured(weight: float) -> dict[str, float]:
        if fault and when == END:
            go_wrong(fault)
        return measure(weight)

    measure = chain_core._measured
    chain_core._measured = measured
    try:
        return chain_core.train_run(config, seed, report=watched, workdir=workdir)
    finally:
        chain_core._measured = measure


def planned_fault(config: Mapping[str, Any], seed: int, workdir: Path) -> str:
    """Return the fault of this attempt at a run, the empty word for none."""
    file = os.environ.get(PLAN)
    if not file:
        return ""
    plan = json.loads(Path(file).read_text())
    attempt = (read_json(workdir / "run.json") or {"attempts": 1})["attempts"]
    faults = plan.get("runs", {}).get(name_of(config, seed), [])
    if not faults and attempt == 1:
        return by_chance(plan.get("rates", {}), workdir.name)
    return faults[attempt - 1] if attempt <= len(faults) else ""


def name_of(config: Mapping[str, Any], seed: int) -> str:
    """Name a run: `0.3/1`, or `fine_tune/1` where it has no KL weight."""
    algorithm = config["algorithm"]
    weight = algorithm.get("kl_weight")
    return f"{algorithm['name'] if weight is None else f'{weight:g}'}/{seed}"


def by_chance(rates: Mapping[str, float], digest: str) -> str:
    """Draw a fault by a run's digest: the same whenever it is drawn."""
    chance = int(hashlib.sha256(digest.encode()).hexdigest()[:8], 16) / 16**8
    for fault, rate in rates.items():
        chance -= rate
        if chance < 0:
            return fault
    return ""


def go_wrong(fault: str) -> None:
    """Let a fault happen in this process."""
    match fault:
        case "nan":
            raise chain_core.NonFinite("train/loss is nan in epoch 3")
        case "cuda-memory":
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        case "cpu-memory":
            raise RuntimeError(NO_CPU_MEMORY)
        case "killed-for-memory":
            _exhaust_memory()
        case "crash":
            raise RuntimeError("the library of the GPU has failed")
        case "data":
            raise RequestError("data.root: there is no folder x")
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hang":
            time.sleep(LONG)
        case "pause":
            time.sleep(PAUSE)
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case _:
            raise ValueError(f"unknown fault {fault!r}")


def _exhaust_memory() -> None:
    """Enter the memory cgroup, and take more than it allows."""
    Path(os.environ[CGROUP], "cgroup.procs").write_text(str(os.getpid()))
    taken = []
    while True:
        taken.append(bytearray(os.urandom(1 << 20)) * 16)


def plant_faults() -> None:
    """Let the commands of this process, and of its forks, run what is planned on every engine."""
    import carft_sweep.sweeps.engines.factory
    import carft_sweep.sweeps.engines.ray_tune

    chain_core.simulate_training()
    engines, ray_engines = carft_sweep.sweeps.engines.factory, carft_sweep.sweeps.engines.ray_tune
    for module, name in (
        (engines, "LocalEngine"),
        (engines, "InProcessEngine"),
        (ray_engines, "RayEngine"),
    ):
        made = getattr(module, name)
        setattr(module, name, partial(getattr(made, "func", made), entry=ENTRY))


if __name__ == "__main__":
    from carft_sweep.sweeps.cli import main

    plant_faults()
    sys.exit(main(sys.argv[1:]))
