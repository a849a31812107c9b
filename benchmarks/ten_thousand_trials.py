"""How long commands take, and in how much memory, when a home is large.

    python benchmarks/ten_thousand_trials.py [--trials 10000] [--repeats 3] [--json] [--keep FOLDER]
        [--sent]

Builds the home with large_home.py, then runs each command in a process of its own: wall clock from
start to exit, CPU seconds, and peak resident memory. `--help` and `check` of a recipe read no
trial. `resume` finds nothing left to do. With `--sent` MLflow is sent the home first, once, which
takes many minutes; then `sync` again, which finds nothing to send, and `run` of the same file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAME = "ten_thousand"
COMMANDS: Mapping[str, Sequence[str]] = {
    "--help": ("--help",),
    "check": ("check", "kl_weight"),
    "list": ("list",),
    "show": ("show", NAME),
    "show --json": ("show", NAME, "--json"),
    "compare": ("compare", NAME),
    "compare --json": ("compare", NAME, "--json"),
    "report": ("report", NAME),
    "resume": ("resume", NAME),
    "clean": ("clean",),
}
SYNC = ("sync", NAME)


def main() -> int:
    """Build, measure, tell."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--keep", type=Path, help="build the home here, or use the one that is")
    parser.add_argument("--sent", action="store_true", help="measure sync and run too")
    chosen = parser.parse_args()
    with _folder(chosen.keep) as folder:
        began = time.monotonic()
        if not folder.exists():
            build(folder, chosen.trials)
        built = time.monotonic() - began
        rows = {
            name: measure([*command, "--home", str(folder)], chosen.repeats)
            for name, command in COMMANDS.items()
        }
        if chosen.sent:
            own = ["--home", str(folder)]
            file = folder / "sweeps" / NAME / "sweep.yaml"
            rows["sync, all"] = measure([*SYNC, *own], 1)
            rows["sync, nothing"] = measure([*SYNC, *own], chosen.repeats)
            rows["run again"] = measure(["run", str(file), *own, "--quiet"], chosen.repeats)
    machine = f"{os.cpu_count()} cores, Python {platform.python_version()}"
    told = {"trials": chosen.trials, "machine": machine, "build_s": round(built, 1), "rows": rows}
    sys.stdout.write(f"{json.dumps(told, indent=1)}\n" if chosen.json else _table(told))
    return 0


def build(folder: Path, trials: int) -> None:
    """In another process: what a child is charged for memory begins with its parent's."""
    script = Path(__file__).with_name("large_home.py")
    subprocess.run([sys.executable, script, folder, "--trials", str(trials)], check=True)


def measure(
    command: Sequence[str], repeats: int, *, module: str = "carft_sweep"
) -> dict[str, float]:
    """Wall seconds (median and worst), CPU seconds and peak memory in MB of a command, which is the
    arguments of a module."""
    seconds, cpu, memory = [], [], 0.0
    for _ in range(repeats):
        with tempfile.TemporaryFile() as out:
            began = time.monotonic()
            child = subprocess.Popen([sys.executable, "-m", module, *command], stdout=out)
            _, status, used = os.wait4(child.pid, 0)
            seconds.append(time.monotonic() - began)
            cpu.append(used.ru_utime + used.ru_stime)
            child.returncode = os.waitstatus_to_exitcode(status)
            if child.returncode:
                raise SystemExit(f"{module} {' '.join(command)} exited {child.returncode}")
            size = out.seek(0, os.SEEK_END)
        # Linux counts kilobytes, macOS bytes.
        memory = max(memory, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10))
    return {
        "median_s": round(statistics.median(seconds), 2),
        "worst_s": round(max(seconds), 2),
        "cpu_s": round(statistics.median(cpu), 2),
        "peak_mb": round(memory),
        "printed_kb": round(size / 1000, 1),
    }


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        yield keep
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "home"


def _table(told: Mapping[str, Any]) -> str:
    heads = ("median s", "worst s", "CPU s", "peak MB")
    lines = [
        f"{told['trials']} finished trials; {told['machine']}; built in {told['build_s']} s",
        f"{'command':<16}{''.join(f'{head:>10}' for head in heads)}{'printed kB':>12}",
    ]
    for name, row in told["rows"].items():
        cells = f"{row['median_s']:>10.2f}{row['worst_s']:>10.2f}{row['cpu_s']:>10.2f}"
        cells += f"{row['peak_mb']:>10.0f}"
        lines.append(f"{name:<16}{cells}{row['printed_kb']:>12.1f}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
