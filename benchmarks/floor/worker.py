"""A child process that trains on request, started by `benchmarks.floor.busy`.

Requests and answers are lines of JSON. The environment that decides how threads wait
(`OMP_WAIT_POLICY`) is the child's from its first instruction on, before torch is loaded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any


class TooSlow(Exception):
    """An answer did not come in time."""


class Worker:
    """The parent's end of a worker; a context manager that ends the process."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.floor.worker", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(environment),
        )
        self.facts = self._read(None)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def seconds(self, algorithm: str, limit: float | None = None) -> float:
        """Train by `algorithm`, and return how long it took. Raises TooSlow after `limit`."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(algorithm) + "\n")
        self.process.stdin.flush()
        return float(self._read(limit)["seconds"])

    def _read(self, limit: float | None) -> dict[str, Any]:
        assert self.process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if not selector.select(limit):
                raise TooSlow
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended with code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def environment(policy: str | None) -> dict[str, str]:
    """This process's environment with another OMP_WAIT_POLICY; None leaves it to the OpenMP
    library. Nothing else that decides how threads wait is passed on, and no number of threads."""
    dropped = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS"}
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept if policy is None else {**kept, "OMP_WAIT_POLICY": policy}


def serve(steps: int, threads: int | None) -> None:
    """Warm up, then answer requests until the input ends."""
    # What the product prints goes to the error stream: the other one carries answers.
    with contextlib.redirect_stdout(sys.stderr):
        # Imported here: the parent loads neither torch nor the product.
        from carft_sweep.carft_core.train import train  # noqa: I001 - what the product sets comes first
        import torch

        from carft_sweep.sweeps.bench.preload import recipe_config

        if threads:
            torch.set_num_threads(threads)

        def run(algorithm: str, length: int) -> float:
            config = recipe_config(algorithm, optim={"epochs": None, "steps": length})
            with tempfile.TemporaryDirectory(prefix="carft-floor-") as folder:
                began = time.perf_counter()
                train(config, 0, workdir=Path(folder))
                return time.perf_counter() - began

        run("zero_shot", 2)
        run("fine_tune", 2)
    policy = os.environ.get("OMP_WAIT_POLICY")
    _answer(sys.__stdout__, {"threads": torch.get_num_threads(), "OMP_WAIT_POLICY": policy})
    for line in sys.stdin:
        with contextlib.redirect_stdout(sys.stderr):
            seconds = run(json.loads(line), steps)
        _answer(sys.__stdout__, {"seconds": seconds})


def _answer(stream: IO[str] | None, answer: Mapping[str, Any]) -> None:
    assert stream is not None
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


def add_length(parser: argparse.ArgumentParser) -> None:
    """Add the options that both ends share."""
    parser.add_argument("--steps", type=int, default=40, help="how many a run has")
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")


def main() -> None:
    """The child's end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_length(parser)
    options = parser.parse_args()
    serve(options.steps, options.threads)


if __name__ == "__main__":
    main()
