"""How long commands take before they do anything, beside what Python or torch take alone."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.floor.measurement import Effort, Measurement, take_turns
from carft_sweep import sweeps

PYTHON, TORCH = "python -c pass", "import torch"
COMMANDS: Mapping[str, tuple[Sequence[str], str]] = {
    "--help": (("--help",), PYTHON),
    "list of an empty home": (("list",), PYTHON),
    "check of kl_weight": (("check", str(Path(sweeps.__file__).parent / "kl_weight.yaml")), TORCH),
}
"""By name: the arguments, and the name of the floor."""


def measure_starts(effort: Effort) -> Iterator[Measurement]:
    """Measure commands from their start to their exit."""
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as home:
        sides: dict[str, Callable[[], float | None]] = {
            PYTHON: lambda: _call("-c", "pass"),
            TORCH: lambda: _call("-c", "import torch"),
        }
        for name, (arguments, _) in COMMANDS.items():
            words = ("-m", "carft_sweep", *arguments, "--home", home)
            sides[name] = (lambda call: lambda: _call(*call))(words)
        seconds = take_turns(effort.rounds, sides)
    for name, (_, floor) in COMMANDS.items():
        yield Measurement(name, floor, seconds[floor], seconds[name])


def _call(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
