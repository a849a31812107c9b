"""A child process that runs a recipe on request, by the product or by the bare loop.

Started by `benchmarks.floor.training`, which says what to run in lines of JSON and reads the
figures as lines of JSON. The environment that decides how threads wait (`OMP_WAIT_POLICY`) is the
child's from its first instruction on, before torch is loaded.
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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

KL_WEIGHT = 1.0
SEED = 0
ALGORITHMS = {"fine_tune": None, "car_ft": KL_WEIGHT}
"""By name, with the weight of the KL term."""


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

    def ask(self, side: str, algorithm: str, limit: float | None = None) -> dict[str, Any]:
        """Run `algorithm` by `side`, "product" or "bare". Raises TooSlow after `limit` seconds."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"side": side, "algorithm": algorithm}) + "\n")
        self.process.stdin.flush()
        return self._read(limit)

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


def serve(options: argparse.Namespace) -> None:
    """Preload, warm up, then answer requests until the input ends."""
    # What the product prints goes to the error stream: the other one carries answers.
    with contextlib.redirect_stdout(sys.stderr):
        sides = _Sides(options)
        if options.once:
            answer = sides.product(options.once)
        else:
            answer = sides.warm_up(bare=not options.product_only)
    _answer(sys.__stdout__, answer)
    if options.once:
        return
    for line in sys.stdin:
        request = json.loads(line)
        with contextlib.redirect_stdout(sys.stderr):
            answer = getattr(sides, request["side"])(request["algorithm"])
        _answer(sys.__stdout__, answer)


def _answer(stream: IO[str] | None, answer: Mapping[str, Any]) -> None:
    assert stream is not None
    stream.write(json.dumps(answer) + "\n")
    stream.flush()


class _Sides:
    """The two sides in one process, with everything opened."""

    def __init__(self, options: argparse.Namespace) -> None:
        # Imported here: the parent loads neither torch nor the product.
        from carft_core.train import train  # noqa: I001 - what the product sets comes first
        import torch

        if options.threads:
            torch.set_num_threads(options.threads)
        self.train, self.threads = train, torch.get_num_threads()
        self.optim = {"epochs": options.epochs} if options.epochs else {}
        if options.steps:
            self.optim = {"epochs": None, "steps": options.steps}

    def warm_up(self, *, bare: bool) -> dict[str, Any]:
        """Open model, data and text features on both sides, and run a little of each."""
        self.product("zero_shot")
        self.product("car_ft", optim={"epochs": None, "steps": 2})
        if bare:
            from benchmarks.floor.bare import Bare
            from benchmarks.floor.preload import preload, recipe_config

            self._bare = Bare(preload(recipe_config("car_ft", optim=self.optim), SEED))
        policy = os.environ.get("OMP_WAIT_POLICY")
        return {"threads": self.threads, "OMP_WAIT_POLICY": policy}

    def product(self, algorithm: str, optim: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """`train()` in a new folder: training, validation, evaluation, and all files."""
        import time

        from benchmarks.floor.preload import recipe_config

        config = recipe_config(algorithm, optim=self.optim if optim is None else optim)
        with tempfile.TemporaryDirectory(prefix="carft-floor-") as folder:
            began = time.perf_counter()
            result = self.train(config, SEED, workdir=Path(folder))
            seconds = time.perf_counter() - began
        assert result is not None
        merged = {label: dict(item["metrics"]) for label, item in result.merges.items()}
        metrics = {"unmerged": dict(result.metrics), **merged}
        return {"seconds": seconds, "training": result.seconds, "metrics": metrics}

    def bare(self, algorithm: str) -> dict[str, Any]:
        """The same run as a bare loop."""
        return self._bare.run(ALGORITHMS[algorithm])


def add_length(parser: argparse.ArgumentParser) -> None:
    """The options that both ends share."""
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, help="of torch; by default its own choice")


def main() -> None:
    """The child's end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_length(parser)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--product-only", action="store_true")
    parser.add_argument("--once", metavar="ALGORITHM", help="one run by the product, then end")
    serve(parser.parse_args())


if __name__ == "__main__":
    main()
