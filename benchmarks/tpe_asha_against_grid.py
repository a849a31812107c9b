"""How many epochs TPE with ASHA needs to reach the best of a grid of 36 points.

    python benchmarks/tpe_asha_against_grid.py [--home FOLDER] [--seeds 5] [--threads N]
                                               [--jobs N] [--json]

Runs kl_weight_lr_grid.yaml, then kl_weight_lr_tpe_asha.yaml with as many sweep seeds, each until
it reaches the grid's best or its run_cap; called again, what is done is not done again. Counts the
epochs that were trained, pruned trials' included, in the order of the trials. `--jobs` runs so many
sweeps side by side. `--set KEY=VALUE` changes every sweep, `--grid` and `--search` the one kind.
With another `--metric`, which decides and is searched for, the grid is not trained again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from carft_sweep.sweeps.spec.metrics import natural_goal

HERE = Path(__file__).parent
GRID, SEARCH = "kl_weight_lr_grid", "kl_weight_lr_tpe_asha"
MARGINS = (0.0, 0.002, 0.005)
"""How far below the grid's best counts as reaching it; of the 242 views of val one is 0.0041."""
AIM = 0.4


def main() -> int:
    """Run, count, tell."""
    chosen = _parser().parse_args()
    of = chosen.metric.rpartition("/")[2]
    sign = 1 if natural_goal(chosen.metric) == "maximize" else -1
    more = [f"metric.name={chosen.metric}", *chosen.overrides]
    if chosen.threads is not None:
        more.append(f"resources.cpus={chosen.threads}")
    began = time.monotonic()
    run(chosen.home, GRID, f"{GRID}_{of}", [*more, *chosen.grid])
    grid = trials(chosen.home, f"{GRID}_{of}")
    best = best_of(grid, sign)
    if best is None:
        raise SystemExit("no point of the grid has a value")

    def search(seed: int) -> dict[str, Any]:
        name = f"{SEARCH}_{of}_{seed}"
        own = [f"seed={seed}", f"metric.target={best!r}", *chosen.search]
        run(chosen.home, SEARCH, name, [*more, *own])
        return {"seed": seed, **counted(trials(chosen.home, name), best, sign)}

    with ThreadPoolExecutor(chosen.jobs) as pool:
        sweeps = list(pool.map(search, range(chosen.seeds)))
    told = {
        "metric": chosen.metric,
        "machine": f"{os.cpu_count()} cores, Python {platform.python_version()}",
        "minutes": round((time.monotonic() - began) / 60, 1),
        "grid": counted(grid, best, sign),
        "sweeps": sweeps,
        "median": {
            name: statistics.median(_number(sweep["to_best"][name]) for sweep in sweeps)
            for name in sweeps[0]["to_best"]
        },
        "aim": AIM,
    }
    sys.stdout.write(f"{json.dumps(_plain(told), indent=1)}\n" if chosen.json else table(told))
    return 0


def run(home: Path, file: str, name: str, overrides: Sequence[str]) -> None:
    """Run a sweep, or go on with it. Raises SystemExit when it does not end well."""
    command = [sys.executable, "-m", "carft_sweep", "run", str(HERE / f"{file}.yaml")]
    command += ["--home", str(home), "--quiet", "--set", f"name={name}"]
    command += [word for override in overrides for word in ("--set", override)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{name} exited {done.returncode}:\n{done.stderr}")


def trials(home: Path, name: str) -> list[dict[str, Any]]:
    """The trials in the order in which they were proposed, each with its epochs."""
    command = [sys.executable, "-m", "carft_sweep", "show", name, "--home", str(home), "--json"]
    shown = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return [
        {
            "state": trial["state"],
            "value": trial["value"] if trial["state"] == "complete" else None,
            "epochs": sum(_epochs(Path(run["folder"])) for run in trial["runs"]),
        }
        for trial in shown["trials"]
    ]


def best_of(found: Sequence[Mapping[str, Any]], sign: int) -> float | None:
    """The best value; None where no trial has one."""
    values = [float(trial["value"]) for trial in found if trial["value"] is not None]
    return max(values, key=lambda value: sign * value, default=None)


def counted(found: Sequence[Mapping[str, Any]], best: float, sign: int) -> dict[str, Any]:
    """Trials and epochs, and the epochs until a value was reached; None when it never was."""
    return {
        "trials": len(found),
        "pruned": sum(trial["state"] == "pruned" for trial in found),
        "epochs": sum(trial["epochs"] for trial in found),
        "best": best_of(found, sign),
        "to_best": {
            _name(margin): epochs_to(found, best - sign * margin, sign) for margin in MARGINS
        },
    }


def epochs_to(found: Sequence[Mapping[str, Any]], value: float, sign: int) -> int | None:
    """The epochs of all trials up to the first with the value; None when there is none."""
    epochs = 0
    for trial in found:
        epochs += int(trial["epochs"])
        # Two means of the same values may differ in the last bit.
        if trial["value"] is not None and sign * (trial["value"] - value) >= -1e-12:
            return epochs
    return None


def table(told: Mapping[str, Any]) -> str:
    """For a terminal."""
    whole = told["grid"]["epochs"]
    names = [_name(margin) for margin in MARGINS]
    lines = [
        f"{told['metric']}, grid's best {told['grid']['best']:.4f}; "
        f"{told['machine']}; {told['minutes']} min",
        f"{'sweep':<10}{'trials':>8}{'pruned':>8}{'epochs':>8}{'best':>9}"
        + "".join(f"{'to ' + name:>17}" for name in names),
    ]
    rows = [("grid", told["grid"])] + [(f"seed {row['seed']}", row) for row in told["sweeps"]]
    for name, row in rows:
        best = "-" if row["best"] is None else f"{row['best']:.4f}"
        lines.append(
            f"{name:<10}{row['trials']:>8}{row['pruned']:>8}{row['epochs']:>8}{best:>9}"
            + "".join(f"{_share(row['to_best'][margin], whole):>17}" for margin in names)
        )
    median = "".join(f"{_share(told['median'][margin], whole):>17}" for margin in names)
    lines.append(f"{'median':<10}{'':>33}{median}")
    lines.append(f"percent of the grid's {whole} epochs; the aim is {AIM:.0%}")
    return "\n".join(lines) + "\n"


def _epochs(folder: Path) -> int:
    """Trained epochs; the report of epoch 0 is the model before training."""
    file = folder / "history.json"
    history = json.loads(file.read_text()) if file.exists() else []
    return sum(report["epoch"] > 0 for report in history)


def _name(margin: float) -> str:
    return f"within {margin:g}" if margin else "best"


def _number(epochs: int | None) -> float:
    return math.inf if epochs is None else epochs


def _share(epochs: float | None, whole: int) -> str:
    if epochs is None or math.isinf(epochs):
        return "not reached"
    return f"{epochs:g} ({epochs / whole:.0%})"


def _plain(told: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: a median that was not reached is null."""
    median = {name: None if math.isinf(at) else at for name, at in told["median"].items()}
    return {**told, "median": median}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--home", type=Path, default=Path(".carft-benchmark"))
    parser.add_argument("--seeds", type=int, default=5, help="sweep seeds (5)")
    parser.add_argument("--threads", type=int, help="of a run")
    parser.add_argument("--jobs", type=int, default=1, help="sweeps side by side (1)")
    parser.add_argument("--metric", default="id/val/top1", help="id/val/top1")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="K=V")
    parser.add_argument("--grid", action="append", default=[], metavar="K=V")
    parser.add_argument("--search", action="append", default=[], metavar="K=V")
    parser.add_argument("--json", action="store_true", help="print as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
