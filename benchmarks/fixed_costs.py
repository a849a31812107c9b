"""What is fixed in a sweep: its driver's time and memory before the first run and behind the last.

Runs a sweep of four short runs through the command line in an empty home, and looks at the driver
from outside.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks.floor.sweeping import sweep_file

LOOK = 0.02
"""Seconds between two looks."""


class Look(NamedTuple):
    """The driver at one moment."""

    wall: float
    """Seconds since its start."""
    cpu: float
    """Its own processor seconds, of all threads."""
    memory: float
    """What of it is in memory (RSS), in MB."""


class Watch:
    """Looks at a sweep's driver until it ends."""

    def __init__(self, command: list[str], home: Path) -> None:
        self._began = time.perf_counter()
        self._home = home
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._usage = psutil.Process(self._process.pid)
        self.first: Look | None = None
        """When the first run began in a worker."""
        self.last: Look | None = None
        """When the driver said that the last run was done."""
        self.looks = [self._look(Look(0.0, 0.0, 0.0))]

    def follow(self) -> None:
        """Look until the driver has ended. Raises RuntimeError where it failed."""
        lines: list[str] = []
        reading = threading.Thread(target=self._read, args=(lines,))
        reading.start()
        while self._process.poll() is None:
            self.looks.append(self._look(self.looks[-1]))
            if self.first is None and any(self._home.glob("runs/*/log.txt")):
                self.first = self.looks[-1]
            time.sleep(LOOK)
        self.looks.append(self.looks[-1]._replace(wall=time.perf_counter() - self._began))
        reading.join()
        if self._process.returncode or self.first is None or self.last is None:
            raise RuntimeError(f"the sweep failed: {''.join(lines)}")

    def _read(self, lines: list[str]) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            lines.append(line)
            if line.startswith("["):
                self.last = self._look(self.looks[-1])

    def _look(self, before: Look) -> Look:
        try:
            with self._usage.oneshot():
                memory, cpu = self._usage.memory_info().rss, sum(self._usage.cpu_times()[:2])
        except psutil.Error:
            return before
        if not memory:  # it has ended, and nobody has waited for it yet
            return before
        return Look(time.perf_counter() - self._began, cpu, memory / 1e6)


def measure(engine: str) -> None:
    """Run the sweep, and print a line for each part."""
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as folder:
        file, home = Path(folder) / "bench.yaml", Path(folder) / "home"
        spec = {**sweep_file(quick=True), "engine": engine}
        file.write_text(json.dumps(spec), encoding="utf-8")
        before = os.times()
        watch = Watch(
            [sys.executable, "-m", "carft_sweep", "run", str(file), "--home", str(home)], home
        )
        watch.follow()
        after = os.times()
    assert watch.first is not None
    assert watch.last is not None
    ended = watch.looks[-1]
    parts = {
        "before the first run": (Look(0.0, 0.0, 0.0), watch.first),
        "runs": (watch.first, watch.last),
        "behind the last run": (watch.last, ended),
    }
    sys.stdout.write(f"{'':22}{'wall, s':>10}{'driver, CPU s':>15}{'RSS at its end, MB':>20}\n")
    for name, (start, end) in parts.items():
        memory = max(start.memory, end.memory) if end is ended else end.memory
        wall, cpu = end.wall - start.wall, end.cpu - start.cpu
        sys.stdout.write(f"{name:22}{wall:10.2f}{cpu:15.2f}{memory:20.0f}\n")
    peak = max(look.memory for look in watch.looks)
    total = sum(after[2:4]) - sum(before[2:4])
    sys.stdout.write(f"peak {peak:.0f} MB; all processes {total:.1f} CPU s\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    for _ in range(arguments.rounds):
        measure(arguments.engine)
