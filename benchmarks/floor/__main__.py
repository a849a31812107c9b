"""The cost of steps, runs and commands, each beside the least that the same work costs.

    python -m benchmarks.floor [--suite step] [--rounds 5] [--quick] [--json] [--compare FILE]

Exits with 1 where a ratio has doubled against the result of an earlier `--json`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.floor.measurement import (
    GROSS,
    Effort,
    Measurement,
    describe_machine,
    earlier_ratios,
    median_and_range,
)
from benchmarks.floor.starting import measure_starts
from benchmarks.floor.training import measure_runs, measure_steps
from carft_sweep.sweeps.cli.table import table_lines

SUITES: dict[str, Callable[[Effort], Iterator[Measurement]]] = {
    "step": measure_steps,
    "run": measure_runs,
    "start": measure_starts,
}
_COLUMNS = ("measured", "floor", "floor, s", "ours, s", "ratio", "earlier ratio")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--suite", action="append", choices=SUITES, help="left out, all")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--quick", action="store_true", help="fewer steps per measurement")
    parser.add_argument("--compare", type=Path, help="an earlier result")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    earlier = earlier_ratios(arguments.compare) if arguments.compare else {}
    effort = Effort(arguments.rounds, arguments.quick)
    machine = describe_machine()
    suites = {suite: [*SUITES[suite](effort)] for suite in arguments.suite or SUITES}
    if arguments.json:
        lines = {suite: [line.as_dict() for line in of] for suite, of in suites.items()}
        print(json.dumps({"machine": machine, **vars(effort), "suites": lines}, indent=1))  # noqa: T201
    else:
        print(machine)  # noqa: T201
        columns = _COLUMNS if earlier else _COLUMNS[:-1]
        for line in table_lines(columns, [*_rows(suites, earlier)], right=_COLUMNS[2:]):
            print(line)  # noqa: T201
    worse = [*_regressions(suites, earlier)]
    for text in worse:
        sys.stderr.write(f"{text}\n")
    return 1 if worse else 0


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
    """Yield a sentence for each measurement whose ratio is above `GROSS` times the earlier one."""
    for suite, lines in suites.items():
        for line in lines:
            before = earlier.get((suite, line.name), math.inf)
            if line.ratio > GROSS * before:
                yield (
                    f"{suite}: {line.name} takes {line.ratio:.2f} times its floor, and took "
                    f"{before:.2f} times before"
                )


if __name__ == "__main__":
    sys.exit(main())
