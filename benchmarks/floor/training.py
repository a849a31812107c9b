"""How much longer does a run take than a bare PyTorch loop over preloaded tensors?

    python -m benchmarks.floor.training [--pairs 5] [--epochs N] [--threads N] [--json]
    python -m benchmarks.floor.training --whole [--pairs 3]
    python -m benchmarks.floor.training --busy [--pairs 3] [--steps 40] [--passive-only]

Method. One run of the shipped recipe `kl_weight` (`fine_tune`, and `car_ft` at weight 1) by the
product's `train()` into a new folder, and by `benchmarks/floor/bare.py`: the same steps on the same
batches, the same validation before training and after each epoch, the same final evaluation of the
same models (unmerged, WiSE-FT at the recipe's alphas). Both run in one process in turn, the first
of a pair changing; each process has run the zero-shot baseline before, so that model, data, text
features and the zero-shot model's predictions are there, as they are to a worker in a sweep.
Only the product renders images, keeps checkpoints, predictions and files, and waits for the disk;
only the bare loop has channels_last, a fused optimiser and preloaded tensors for certain.

How to read it. `whole` is the run, `steps` the training steps alone (the product's own figure,
`RunResult.seconds`, includes rendering), `rest` the difference: validation, evaluation, files. The
ratio is the median over pairs of product / bare; the target is at most 1.15 for each algorithm.
`agreement` is the greatest difference of a top-1 between the two sides: both did the same work if
it is a few images' worth.

`--whole` starts a new process for every run and measures it from start to exit: imports, opening,
text features, the zero-shot model's predictions, and for the bare loop reading its tensors.
`--busy` runs the product alone, quiet and beside one spinning Python process in turn, once with
OMP_WAIT_POLICY `passive`, set for the child before torch is loaded, and once with it unset. The
target is at most 2 for `passive`. A run has `--steps` steps, since unset a step can take
30 times as long; one that takes longer than 20 times its quiet time is given up. On a machine that
others use, the quiet runs of the unset policy are not quiet either: `--passive-only` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.floor.worker import ALGORITHMS, TooSlow, Worker, add_length, environment
from benchmarks.machine import busy_process, describe, median_and_range, ratios

TARGET, BUSY_TARGET = 1.15, 2.0
GIVEN_UP = 20
SIDES = ("product", "bare")
PRELOAD = """
import sys, torch
from benchmarks.floor.preload import preload, recipe_config
torch.set_num_threads(int(sys.argv[3]) if sys.argv[3] != "None" else torch.get_num_threads())
optim = {} if sys.argv[2] == "None" else {"epochs": int(sys.argv[2])}
torch.save(preload(recipe_config("car_ft", optim=optim), 0), sys.argv[1])
"""


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Warm pairs in one process."""
    rows = []
    with Worker(_length(options), environment("passive")) as worker:
        for algorithm in ALGORITHMS:
            runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
            for pair in range(options.pairs):
                for side in SIDES if pair % 2 == 0 else reversed(SIDES):
                    runs[side].append(worker.ask(side, algorithm))
            rows.append({"algorithm": algorithm, **_compared(runs), **worker.facts})
    return rows


def _compared(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for part in ("whole", "steps", "rest"):
        seconds = {side: [_seconds(run, part) for run in of] for side, of in runs.items()}
        row[part] = {**seconds, "ratio": ratios(seconds["product"], seconds["bare"])}
    product, bare = (runs[side][0]["metrics"] for side in SIDES)
    row["agreement"] = max(
        abs(value - product[label][name])
        for label, metrics in bare.items()
        for name, value in metrics.items()
        if name.endswith("top1")
    )
    return row


def _seconds(run: Mapping[str, Any], part: str) -> float:
    if part == "rest":
        return float(run["seconds"] - run["training"])
    return float(run["seconds" if part == "whole" else "training"])


def compare_processes(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Pairs of whole processes."""
    rows = []
    env = environment("passive")
    with tempfile.TemporaryDirectory(prefix="carft-floor-") as folder:
        tensors = str(Path(folder) / "tensors.pt")
        lengths = [str(options.epochs), str(options.threads)]
        subprocess.run([sys.executable, "-c", PRELOAD, tensors, *lengths], env=env, check=True)
        for algorithm, kl_weight in ALGORITHMS.items():
            weight = [] if kl_weight is None else ["--kl-weight", str(kl_weight)]
            commands = {
                "product": ["benchmarks.floor.worker", "--once", algorithm, *_length(options)],
                "bare": ["benchmarks.floor.bare", tensors, *weight],
            }
            seconds: dict[str, list[float]] = {side: [] for side in SIDES}
            for pair in range(options.pairs):
                for side in SIDES if pair % 2 == 0 else reversed(SIDES):
                    command = [sys.executable, "-m", *commands[side]]
                    began = time.perf_counter()
                    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
                    seconds[side].append(time.perf_counter() - began)
            ratio = ratios(seconds["product"], seconds["bare"])
            rows.append({"algorithm": algorithm, "process": {**seconds, "ratio": ratio}})
    return rows


def compare_busy(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The product, quiet and beside a busy process, for each way in which threads wait."""
    rows = []
    arguments = [*_length(options), "--steps", str(options.steps), "--product-only"]
    for policy in ("passive",) if options.passive_only else ("passive", None):
        with (
            tempfile.TemporaryDirectory(prefix="carft-floor-") as scratch,
            # What a worker that is given up leaves behind lies in there.
            Worker(arguments, {**environment(policy), "TMPDIR": scratch}) as worker,
        ):
            quiet: list[float] = []
            busy: list[float] = []
            try:
                for _ in range(options.pairs):
                    quiet.append(worker.ask("product", "fine_tune")["seconds"])
                    with busy_process():
                        limit = GIVEN_UP * statistics.median(quiet)
                        busy.append(worker.ask("product", "fine_tune", limit)["seconds"])
            except TooSlow:
                busy.append(float("inf"))
            ratio = ratios(busy, quiet)
            rows.append(
                {
                    "policy": policy,
                    "seen": worker.facts["OMP_WAIT_POLICY"],
                    "threads": worker.facts["threads"],
                    "busy": {"busy": busy, "quiet": quiet, "ratio": ratio},
                }
            )
    return rows


def _length(options: argparse.Namespace) -> list[str]:
    epochs = ["--epochs", str(options.epochs)] if options.epochs else []
    return [*epochs, *(["--threads", str(options.threads)] if options.threads else [])]


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures as a table."""
    lines = []
    for row in rows:
        if "busy" in row:
            seen = row["seen"] or "unset"
            lines.append(f"OMP_WAIT_POLICY {seen}, {row['threads']} threads, target {BUSY_TARGET}:")
        else:
            target = f", target {TARGET}" if "whole" in row else ""
            lines.append(f"{row['algorithm']}{target}:")
        for part in ("whole", "steps", "rest", "process", "busy"):
            if part in row:
                numerator, denominator = list(row[part])[:2]
                lines.append(
                    f"  {part:8} {numerator} {median_and_range(row[part][numerator])} s, "
                    f"{denominator} {median_and_range(row[part][denominator])} s, "
                    f"ratio {median_and_range(row[part]['ratio'], 3)}"
                )
        if "agreement" in row:
            lines.append(f"  agreement within {row['agreement']:.4f} of top-1")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_length(parser)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--whole", action="store_true", help="a new process for every run")
    parser.add_argument("--busy", action="store_true", help="beside a busy process")
    parser.add_argument(
        "--passive-only", action="store_true", help="with --busy: not unset as well"
    )
    parser.add_argument("--steps", type=int, default=40, help="with --busy: how many a run has")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine = describe()
    measure = compare_busy if options.busy else compare_processes if options.whole else compare
    rows = measure(options)
    if options.json:
        sys.stdout.write(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
        return
    length = "the recipe's length" if not options.epochs else f"{options.epochs} epochs"
    if options.busy:
        length = f"{options.steps} steps"
    sys.stdout.write(f"{machine}\n{options.pairs} pairs, {length}\n{report(rows)}")


if __name__ == "__main__":
    main()
