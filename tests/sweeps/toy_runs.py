"""Toy entries for engines: what they do stands in the config, so that they run in any process."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sweeps.engines.base import Decision
from sweeps.engines.training import Report

ENTRY = "tests.sweeps.toy_runs:act"


class NonFinite(RuntimeError):
    """Named as the core's."""


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class RequestError(ValueError):
    """Named as the core's."""


def epoch_report(epoch: int, epochs: int) -> dict[str, Any]:
    """As `EpochReport.as_dict` gives it."""
    return {
        "epoch": epoch,
        "epochs": epochs,
        "step": epoch,
        "steps": epochs,
        "metrics": {"train/loss": 1.0 / (1 + epoch), "id/val/top1": epoch / (1 + epochs)},
        "seconds": 0.01,
        "timestamp": 1_700_000_000_000 + epoch,
    }


def act(
    config: Mapping[str, Any], seed: int, *, report: Report, workdir: Path, cache: Path
) -> Mapping[str, Any] | None:
    """Report `config["epochs"]` epochs, then do what `config["do"]` says."""
    del cache
    epochs = config.get("epochs", 2)
    for epoch in range(1, epochs + 1):
        if report(epoch_report(epoch, epochs)) is Decision.STOP:
            return None
    match config.get("do"):
        case "raise":
            raise {
                "nan": NonFinite("train/loss is nan in epoch 3"),
                "memory": OutOfMemoryError("tried to allocate 3 GiB"),
                "host memory": MemoryError(),
                "request": RequestError("data.root: there is no folder x"),
                "key": KeyError("weights"),
            }[config["error"]]
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segfault":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(7)
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "sleep":
            time.sleep(config["seconds"])
        case "print":
            sys.stdout.write("to stdout\n")
            os.write(1, b'{"kind": "finished", "result": {"forged": 1}}\n')
            os.write(2, b"to stderr\n")
    return {"pid": os.getpid(), "seed": seed, "workdir": str(workdir), "warnings": []}
