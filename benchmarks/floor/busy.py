"""How much longer does a run take beside one busy process, and what do waiting threads do to it?

    python -m benchmarks.floor.busy [--pairs 3] [--steps 40] [--passive-only] [--json]

A run of the shipped recipe `kl_weight`, alone and beside one spinning Python process in turn, once
with OMP_WAIT_POLICY `passive`, set for the child before torch is loaded, and once with it unset.
The target is at most 2 for `passive`. A run has `--steps` steps, since unset a step can take 30
times as long; one that takes longer than 20 times its quiet time is given up. On a machine that
others use, the quiet runs of the unset policy are not quiet either: `--passive-only` leaves it out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.floor.worker import TooSlow, Worker, add_length, environment
from benchmarks.machine import busy_process
from carft_sweep.sweeps.bench.measurement import describe_machine, median_and_range, ratios

TARGET = 2.0
GIVEN_UP = 20


def compare_busy(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The product, quiet and beside a busy process, for each way in which threads wait."""
    rows = []
    arguments = ["--steps", str(options.steps)]
    arguments += ["--threads", str(options.threads)] if options.threads else []
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
                    quiet.append(worker.seconds("fine_tune"))
                    with busy_process():
                        limit = GIVEN_UP * statistics.median(quiet)
                        busy.append(worker.seconds("fine_tune", limit))
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


def report(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures as a table."""
    lines = []
    for row in rows:
        seen = row["seen"] or "unset"
        lines.append(f"OMP_WAIT_POLICY {seen}, {row['threads']} threads, target {TARGET}:")
        busy, quiet, ratio = (row["busy"][name] for name in ("busy", "quiet", "ratio"))
        lines.append(
            f"  busy {median_and_range(busy)} s, quiet {median_and_range(quiet)} s, "
            f"ratio {median_and_range(ratio, 3)}"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_length(parser)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--passive-only", action="store_true", help="not unset as well")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    machine = describe_machine()
    rows = compare_busy(options)
    if options.json:
        sys.stdout.write(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")
        return
    heading = f"{machine}\n{options.pairs} pairs, {options.steps} steps\n"
    sys.stdout.write(heading + report(rows))


if __name__ == "__main__":
    main()
