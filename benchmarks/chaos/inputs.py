"""Mutated inputs: each is accepted with a valid meaning, or rejected in words that name the file.

    nice python -m benchmarks.chaos.inputs [KIND ...] [--mutations N] [--seed S] [--json FILE]

Every kind of file that the product reads has a valid original, made in a temporary folder. Each
mutation is drawn from (seed, kind, number) and read by the product's own reader in a forked
process, with limits on memory and time; for the first twenty the real command is run too. A failure
is any other error than the product's own, code that ran (a trap file is there then), more memory
than `BOUND` above that of the idle process, more time than `CPU_SECONDS`, a message that does not
name the file, another exit code than 0 or 2. `--only N` repeats one mutation in this process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
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
TOGETHER = 20
"""Mutations that share a forked process."""
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
    """Above the idle process."""


@dataclass
class Tally:
    """What became of the mutations of one kind."""

    kind: str
    outcomes: list[Outcome] = field(default_factory=list)
    commands: int = 0
    """How many were given to the real command too."""
    seconds: float = 0.0

    def count(self, end: str) -> int:
        """How many ended so."""
        return sum(outcome.end == end for outcome in self.outcomes)

    def row(self) -> str:
        """A line of the table."""
        peak = max((outcome.megabytes for outcome in self.outcomes), default=0.0)
        return (
            f"| {self.kind} | {len(self.outcomes)} | {self.count('accepted')} "
            f"| {self.count('rejected')} | {self.count('failure')} | {self.commands} "
            f"| {peak:.0f} MiB | {self.seconds:.0f} |"
        )


HEADER = (
    "| kind | mutations | accepted | rejected | failures | by the command too "
    "| peak memory | seconds |\n|---|---|---|---|---|---|---|---|"
)


def attempt(kind: Kind, original: Path, number: int, seed: int, work: Path) -> Outcome:
    """Mutate one file of a copy of the original in `work`, and let the product read it."""
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
    """Whether a message tells the user which file to look at."""
    names = (target.name, *(name.format(folder) for name in kind.known_as))
    return any(name in message for name in names)


class ForkedReads:
    """Mutations of one kind, in processes forked from this one, which has all loaded."""

    def __init__(self, kind: Kind, original: Path, seed: int, scratch: Path) -> None:
        self.kind, self.original, self.seed, self.scratch = kind, original, seed, scratch
        self.running: dict[int, list[int]] = {}
        """By process the numbers of its mutations."""

    def run(self, count: int, processes: int) -> Iterator[Outcome]:
        """Yield the outcome of each of so many."""
        waiting = [[*range(count)[first : first + TOGETHER]] for first in range(0, count, TOGETHER)]
        while waiting or self.running:
            while waiting and len(self.running) < processes:
                self._start(waiting.pop(0))
            pid, status, _ = os.wait4(-1, 0)
            numbers = self.running.pop(pid)
            folder = self.scratch / str(numbers[0])
            lines = (folder / "outcomes.jsonl").read_text().splitlines()
            yield from (Outcome(**json.loads(line)) for line in lines)
            rest = numbers[len(lines) :]
            if rest:
                how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else status
                yield Outcome(rest[0], "", "", "failure", f"the process ended by {how}")
                waiting.insert(0, rest[1:])
            waiting = [numbers for numbers in waiting if numbers]
            shutil.rmtree(folder, ignore_errors=True)

    def _start(self, numbers: list[int]) -> None:
        folder = self.scratch / str(numbers[0])
        folder.mkdir()
        (folder / "outcomes.jsonl").touch()
        pid = os.fork()
        if pid:
            self.running[pid] = numbers
            return
        try:
            _limit_memory()
            for number in numbers:
                outcome = self._measured(number, folder / f"at-{number}")
                with (folder / "outcomes.jsonl").open("a") as file:
                    file.write(f"{json.dumps(asdict(outcome))}\n")
                shutil.rmtree(folder / f"at-{number}", ignore_errors=True)
        finally:
            os._exit(0)

    def _measured(self, number: int, work: Path) -> Outcome:
        """One mutation with limits of its own, whose signals end the process."""
        work.mkdir()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        signal.setitimer(signal.ITIMER_REAL, WALL_SECONDS)
        return attempt(self.kind, self.original, number, self.seed, work)


def _memory(key: str) -> float:
    """MiB of this process: resident now (VmRSS), or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{key}:"))


def _limit_memory() -> None:
    """Limit the address space of this process, whose output goes nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    virtual = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (virtual + CEILING, virtual + CEILING))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def by_command(kind: Kind, original: Path, outcome: Outcome, seed: int, work: Path) -> Outcome:
    """Give the same mutation to the real command: 0, or 2 and a message that names the file."""
    if kind.command is None or outcome.end == "failure":
        return outcome
    rng = random.Random(f"{seed}/{kind.name}/{outcome.number}")
    folder = work / "input"
    shutil.copytree(original, folder)
    target = rng.choice([path for glob in kind.targets for path in sorted(folder.glob(glob))])
    mutate(target, rng, work / "trap")
    argv = kind.command(folder, target)
    done = subprocess.run(
        [sys.executable, "-m", "carft_sweep", *argv],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=2 * WALL_SECONDS,
        check=False,
    )
    text = done.stdout + done.stderr
    is_named = _is_named(kind, folder, target, text)
    if (work / "trap").exists():
        reason = "code was run"
    elif "Traceback" in text or done.returncode not in (0, 2):
        reason = f"{done.returncode}: {text[-500:]}"
    elif done.returncode == 2 and not is_named:
        reason = f"the file is not named: {text[:500]}"
    else:
        return outcome
    plain = asdict(outcome) | {"end": "failure", "reason": f"{' '.join(argv)}: {reason}"}
    return Outcome(**plain)


def run_kind(
    kind: Kind, scratch: Path, *, mutations: int, commands: int, seed: int, processes: int
) -> Tally:
    """Mutate and read so many times."""
    tally, began = Tally(kind.name), time.monotonic()
    original = scratch / "original"
    original.mkdir(parents=True)
    kind.make(original)
    warm = scratch / "warm"
    shutil.copytree(original, warm)
    # What is loaded lazily is loaded before the first fork.
    kind.read(warm, next(warm.glob(kind.targets[0])), random.Random(0))
    for outcome in ForkedReads(kind, original, seed, scratch).run(mutations, processes):
        if outcome.number < commands and kind.command is not None:
            work = scratch / "command"
            work.mkdir()
            outcome = by_command(kind, original, outcome, seed, work)
            shutil.rmtree(work, ignore_errors=True)
            tally.commands += 1
        tally.outcomes.append(outcome)
        if outcome.end == "failure":
            sys.stderr.write(
                f"{kind.name!r} --seed {seed} --only {outcome.number}: {outcome.file}, "
                f"{outcome.mutation}: {outcome.reason}\n"
            )
    tally.seconds = time.monotonic() - began
    return tally


def _repeat(kind: Kind, scratch: Path, number: int, seed: int) -> None:
    """Repeat one mutation in this process, where a debugger sees it."""
    original, work = scratch / "original", scratch / "work"
    original.mkdir()
    work.mkdir()
    kind.make(original)
    outcome = attempt(kind, original, number, seed, work)
    sys.stdout.write(f"{json.dumps(asdict(outcome), indent=1)}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the kinds and write the table. 1 where anything failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--mutations", type=int, default=1000, help="of each kind (1000)")
    parser.add_argument("--commands", type=int, default=20, help="of these by the command too (20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2, help="at a time (2)")
    parser.add_argument("--only", type=int, help="repeat this mutation of one kind")
    parser.add_argument("--json", type=Path, help="write every outcome here")
    arguments = parser.parse_args(argv)
    names = [
        name
        for name in KINDS
        if not arguments.kinds or any(name.startswith(k) for k in arguments.kinds)
    ]
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
        tallies = []
        for place, name in enumerate(names):
            tally = run_kind(
                KINDS[name],
                scratch / f"kind{place}",
                mutations=arguments.mutations,
                commands=arguments.commands,
                seed=arguments.seed,
                processes=arguments.processes,
            )
            sys.stdout.write(f"{tally.row()}\n")
            sys.stdout.flush()
            tallies.append(tally)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(tally) for tally in tallies], indent=1))
    return int(any(tally.count("failure") for tally in tallies))


if __name__ == "__main__":
    sys.exit(main())
