"""Mutated inputs: each is accepted with a valid meaning, or rejected in words that name the file.

    nice python -m benchmarks.chaos.inputs [KIND ...] [--mutations N] [--seed S] [--json FILE]

Every kind of file that the product reads has a valid original, made in a temporary folder. Each
mutation is drawn from (seed, kind, number) and read by the product's own reader in a forked
process, with limits on memory and time. A failure is any other error than the product's own, code
that ran (a trap file is there then), more memory than `BOUND` above that of the idle process, more
time than `CPU_SECONDS`, a message that does not name the file. `--only N` repeats one mutation in
this process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks.chaos.input_kinds import KINDS, MADE, Kind, make_home
from benchmarks.chaos.mutations import mutate
from benchmarks.floor.measurement import describe_machine
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.tracking.errors import TrackingError

BOUND = 1024
"""MiB of resident memory that reading one input may take."""
CEILING = 6 << 30
"""Bytes of address space, above which an allocation fails."""
CPU_SECONDS, WALL_SECONDS = 60, 300
REJECTIONS = (RequestError, TrackingError)


@dataclass(frozen=True)
class Outcome:
    """How one mutation ended."""

    number: int
    file: str
    mutation: str
    end: str
    """`accepted`, `rejected`, or `failure`."""
    reason: str = ""
    megabytes: float = 0.0
    """Peak memory above the idle process, in MiB."""


HEADER = """\
| kind | mutations | accepted | rejected | failures | peak memory | seconds |
|---|---|---|---|---|---|---|"""


def attempt(kind: Kind, original: Path, number: int, seed: int, work: Path) -> Outcome:
    """Mutate one file of a copy of the original in `work`, read it, and return how that ended."""
    rng = random.Random(f"{seed}/{kind.name}/{number}")
    folder, trap = work / "input", work / "trap"
    shutil.copytree(original, folder)
    target = rng.choice([path for glob in kind.targets for path in sorted(folder.glob(glob))])
    mutation = mutate(target, rng, trap)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that of now
    before = _memory("VmRSS")
    end, reason = _end(kind, folder, target, rng)
    megabytes = max(0.0, _memory("VmHWM") - before)
    if trap.exists():
        end, reason = "failure", f"code was run; {reason}"
    elif megabytes > BOUND:
        end, reason = "failure", f"{megabytes:.0f} MiB; {reason}"
    return Outcome(number, str(target.relative_to(folder)), mutation, end, reason, megabytes)


def _end(kind: Kind, folder: Path, target: Path, rng: random.Random) -> tuple[str, str]:
    try:
        kind.read(folder, target, rng)
    except REJECTIONS as error:
        message = str(error)
        if not _is_named(kind, folder, target, message):
            return "failure", f"the file is not named: {message[:500]}"
        return "rejected", message[:500]
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)
        places = [f"{Path(f.filename).name}:{f.lineno}" for f in where[-6:]]
        return "failure", f"{type(error).__name__}: {str(error)[:300]} ({' '.join(places)})"
    return "accepted", ""


def _is_named(kind: Kind, folder: Path, target: Path, message: str) -> bool:
    """Return whether a message tells the user which file to look at."""
    names = (target.name, *(name.format(folder) for name in kind.known_as))
    return any(name in message for name in names)


def in_fork(kind: Kind, original: Path, number: int, seed: int, work: Path) -> Outcome:
    """Call `attempt` in a fork, with limits on memory and time; a fork that is killed is a
    failure."""
    work.mkdir()
    result = work / "outcome.json"
    pid = os.fork()
    if pid == 0:
        try:
            _limit_memory()
            signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
            signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
            result.write_text(json.dumps(asdict(attempt(kind, original, number, seed, work))))
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    outcome = (
        Outcome(**json.loads(result.read_text()))
        if result.exists()
        else Outcome(number, "", "", "failure", f"the process ended with status {status}")
    )
    shutil.rmtree(work, ignore_errors=True)
    return outcome


def _memory(key: str) -> float:
    """Return MiB of resident memory of this process: now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def _limit_memory() -> None:
    """Limit the address space of this process, and discard its output."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + CEILING, virtual + CEILING))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_kind(kind: Kind, scratch: Path, *, mutations: int, seed: int) -> list[Outcome]:
    """Mutate and read inputs of a kind; print failures and a table's line; return all outcomes."""
    began = time.monotonic()
    original, warm = scratch / "original", scratch / "warm"
    original.mkdir(parents=True)
    kind.make(original)
    shutil.copytree(original, warm)
    # What is loaded lazily is loaded before the first fork.
    kind.read(warm, next(warm.glob(kind.targets[0])), random.Random(0))
    outcomes = []
    for number in range(mutations):
        outcome = in_fork(kind, original, number, seed, scratch / "work")
        outcomes.append(outcome)
        if outcome.end == "failure":
            sys.stderr.write(
                f"{kind.name!r} --seed {seed} --only {number}: {outcome.file}, "
                f"{outcome.mutation}: {outcome.reason}\n"
            )
    ends = Counter(outcome.end for outcome in outcomes)
    peak = max(outcome.megabytes for outcome in outcomes)
    sys.stdout.write(
        f"| {kind.name} | {mutations} | {ends['accepted']} | {ends['rejected']} "
        f"| {ends['failure']} | {peak:.0f} MiB | {time.monotonic() - began:.0f} |\n"
    )
    sys.stdout.flush()
    return outcomes


def _repeat(kind: Kind, scratch: Path, number: int, seed: int) -> None:
    """Repeat one mutation in this process, where a debugger sees it."""
    original, work = scratch / "original", scratch / "work"
    original.mkdir()
    work.mkdir()
    kind.make(original)
    outcome = attempt(kind, original, number, seed, work)
    sys.stdout.write(f"{json.dumps(asdict(outcome), indent=1)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kinds and print the table; return 1 where anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--mutations", type=int, default=1000, help="of each kind (1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="repeat this mutation of one kind")
    arguments = parser.parse_args(argv)
    wanted = tuple(arguments.kinds)
    names = [name for name in KINDS if not wanted or name.startswith(wanted)]
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="carft-chaos-") as folder:
        scratch = Path(folder)
        os.environ["CARFT_CACHE"] = str(scratch / "cache")
        os.environ.pop("CARFT_DATA", None)
        if any(name.startswith(("home", "model")) for name in names):
            MADE["home"] = scratch / "small"
            MADE["home"].mkdir()
            make_home(MADE["home"])
        if arguments.only is not None:
            _repeat(KINDS[names[0]], scratch, arguments.only, arguments.seed)
            return 0
        sys.stdout.write(f"{describe_machine()}\n\n{HEADER}\n")
        outcomes = [
            outcome
            for name in names
            for outcome in run_kind(
                KINDS[name], scratch / name, mutations=arguments.mutations, seed=arguments.seed
            )
        ]
    return int(any(outcome.end == "failure" for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
