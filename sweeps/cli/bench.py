"""`carft-sweep bench`: what sweeps cost beside what the same work costs at least."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from carft_sweep.sweeps.bench.measurement import (
    GROSS,
    Effort,
    Measurement,
    describe_machine,
    earlier_ratios,
    median_and_range,
)
from carft_sweep.sweeps.cli import FAILED, Emit
from carft_sweep.sweeps.cli.parser import SUITES
from carft_sweep.sweeps.cli.table import table_lines

MEASURES: Mapping[str, Mapping[str, str]] = {
    "step": {"training": "measure_steps"},
    "run": {"training": "measure_runs"},
    "sweep": {"sweeping": "measure_sweeps"},
    "data": {
        "data": "measure_data",
        "shards": "measure_shards",
        "photographs": "measure_photographs",
    },
    "tracking": {"recording": "measure_recording"},
    "start": {"starting": "measure_starts"},
}
"""The modules of each suite, and the function in each."""


def bench_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the command. Raises RequestError for a file to compare with that is no result."""
    earlier = earlier_ratios(Path(arguments.compare)) if arguments.compare else {}
    effort = Effort(arguments.rounds, arguments.quick)
    machine = describe_machine()
    suites: dict[str, list[Measurement]] = {}
    for suite in arguments.suite or SUITES:
        suites[suite] = [*_measure(suite, effort)]
    if arguments.json:
        lines = {suite: [line.as_dict() for line in of] for suite, of in suites.items()}
        emit(json.dumps({"machine": machine, **vars(effort), "suites": lines}, indent=1))
    else:
        emit(machine)
        columns = _COLUMNS if earlier else _COLUMNS[:-1]
        for line in table_lines(columns, [*_rows(suites, earlier)], right=_COLUMNS[2:]):
            emit(line)
    worse = [*_regressions(suites, earlier)]
    for text in worse:
        sys.stderr.write(f"{text}\n")
    return FAILED if worse else 0


def _measure(suite: str, effort: Effort) -> Iterator[Measurement]:
    for module, function in MEASURES[suite].items():
        measure: Callable[[Effort], Iterator[Measurement]] = getattr(
            importlib.import_module(f"carft_sweep.sweeps.bench.{module}"), function
        )
        yield from measure(effort)


_COLUMNS = ("measured", "floor", "floor, s", "ours, s", "ratio", "earlier ratio")


def _rows(
    suites: Mapping[str, Sequence[Measurement]], earlier: Mapping[tuple[str, str], float]
) -> Iterator[list[str]]:
    for suite, lines in suites.items():
        for line in lines:
            before = earlier.get((suite, line.name))
            row = [line.name, line.floor_name]
            row += [median_and_range(seconds) for seconds in (line.floor, line.ours, line.ratios)]
            yield row + ([] if not earlier else ["" if before is None else f"{before:.2f}"])


def _regressions(
    suites: Mapping[str, Sequence[Measurement]], earlier: Mapping[tuple[str, str], float]
) -> Iterator[str]:
    """Yield what has become so much slower, beside its own floor, that chance is no reason."""
    for suite, lines in suites.items():
        for line in lines:
            before = earlier.get((suite, line.name), math.inf)
            if line.ratio > GROSS * before:
                yield (
                    f"{suite}: {line.name} takes {line.ratio:.2f} times its floor, and took "
                    f"{before:.2f} times before"
                )
