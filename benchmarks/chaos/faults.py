"""What a small sweep does under each fault, and whether it comes to the undisturbed end afterwards.

    python -m benchmarks.chaos.faults [FAULT ...] [--every N] [--json FILE]

Training is simulated (chain_core); the commands, the driver, its workers, the ledger, the study and
MLflow are the real ones. Each fault is followed by `list`, `show`, `doctor`, `clean`, and `sync`,
once while it lasts and once when it is mended, by `clean --yes`, and by `resume`. Small disks,
read-only file systems and memory limits take root on Linux; faults that need them are left out
otherwise. `--every N`: of the writes to fail, only every Nth.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos import laws
from benchmarks.chaos.planted_faults import CGROUP, plant_faults
from benchmarks.chaos.scene import CRASHED, NAME, Command, Ended, Scene, captured
from benchmarks.floor.measurement import describe_machine
from benchmarks.simulated_runs import control, front
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.trials import Ledger, begun_sweeps
from carft_sweep.tracking.location import TRACKING_VARIABLE
from carft_sweep.tracking.ui_server import serve

SERVER = "server"
EXPERIMENT_VARIABLE = "MLFLOW_EXPERIMENT_NAME"
DAY = 86_400.0
TINY_DISK = 64 * 2**20
ROOMS = (0, 4, 16, 64, 128, 256, 512, 1024)
"""Kilobytes that are left on a disk when a sweep begins."""
MEMORY = 400 * 2**20
"""Bytes that the kernel lets a worker have."""
LOOKING = (("list",), ("show", NAME), ("clean",), ("sync",), ("doctor", "home"))
SUBJECTS = ("home", "mlflow", "sent")
"""Of `doctor`."""
ALL = ("ledger", "study", "mlflow", "compare", "list", "files", "metrics")
"""The parts of a snapshot."""


def nothing() -> None:
    """Mend nothing: the fault has passed."""


@dataclass
class Stage:
    """What a fault is given: a scene, and what is undone when it has been looked at."""

    scene: Scene
    stack: ExitStack
    mend: Callable[[], object] = nothing
    """Ends the fault."""


@dataclass(frozen=True)
class Fault:
    """A thing that goes wrong."""

    name: str
    produced: str
    promised: str
    produce: Callable[[Stage], Ended]
    codes: Sequence[int]
    """The exit codes that are promised."""
    again: Sequence[str] = ()
    """Options of the `resume` that follows."""
    parts: Sequence[str] = ALL
    """What is equal to the undisturbed sweep then."""
    needs_root: bool = False
    needs_server: bool = False


@dataclass
class Outcome:
    """What happened."""

    fault: str
    code: int
    last_words: str
    states: dict[str, int]
    """Of the trials, behind the fault."""
    during: dict[str, int] = field(default_factory=dict)
    """The exit codes of the commands that look, while the fault lasts."""
    doctor: list[str] = field(default_factory=list)
    """What `doctor` finds of home, trials, and runs when the fault is mended."""
    synced: list[str] = field(default_factory=list)
    cleaned: list[str] = field(default_factory=list)
    """What `clean --yes` took before the sweep went on, and why."""
    resumed: int = 0
    problems: list[str] = field(default_factory=list)
    """What is not as promised."""
    seconds: float = 0.0


FAULTS: dict[str, Fault] = {}


def fault(
    name: str,
    produced: str,
    promised: str,
    codes: Sequence[int],
    *,
    again: Sequence[str] = (),
    parts: Sequence[str] = ALL,
    needs_root: bool = False,
    needs_server: bool = False,
) -> Callable[[Callable[[Stage], Ended]], Callable[[Stage], Ended]]:
    """Register a function as what produces a fault."""

    def register(produce: Callable[[Stage], Ended]) -> Callable[[Stage], Ended]:
        needs = (needs_root, needs_server)
        FAULTS[name] = Fault(name, produced, promised, produce, codes, again, parts, *needs)
        return produce

    return register


def _planted(name: str, faults: Sequence[str], promised: str, **options: Any) -> None:
    """Register what one run of the sweep does, in its first attempts."""

    def produce(stage: Stage) -> Ended:
        stage.scene.plan({"0.3/0": faults})
        return stage.scene.run()

    fault(name, f"a run: {', then '.join(faults)}", promised, **options)(produce)


FAILED_ONE = {"codes": (0,), "again": ("--failed",), "parts": ("metrics",)}
"""What is tried again is a trial with a new number, and so stands elsewhere in the tables."""
_planted("nan", ["nan"], "the run fails with its reason, others go on", **FAILED_ONE)
_planted("data", ["data"], "the run fails with its reason, others go on", **FAILED_ONE)
HALVED = "the run goes on in half the memory, and the sweep ends as undisturbed"
RETRIED = "the run goes on from its last epoch, and the sweep ends as undisturbed"
_planted("cuda-memory", ["cuda-memory", "cuda-memory"], HALVED, codes=(0,))
_planted("cuda-memory-in-evaluation", ["cuda-memory@end"], HALVED, codes=(0,))
_planted("cpu-memory", ["cpu-memory"], HALVED, codes=(0,))
_planted("cpu-memory-in-evaluation", ["cpu-memory@end"], HALVED, codes=(0,))
_planted("crash", ["crash", "segfault", "killed"], RETRIED, codes=(0,))
_planted("frozen", ["freeze"], RETRIED, codes=(0,))


@fault(
    "killed-for-memory",
    f"a memory cgroup of {MEMORY >> 20} MB: the kernel ends the worker, in training and evaluation",
    HALVED,
    (0,),
    needs_root=True,
)
def _killed_for_memory(stage: Stage) -> Ended:
    stage.scene.plan({"0.3/0": ["killed-for-memory"], "0.5/1": ["killed-for-memory@end"]})
    with memory_cgroup(MEMORY) as group:
        return stage.scene.run(environ={CGROUP: str(group)})


@fault("hang", "a run sleeps for an hour, `timeout: 5s`", RETRIED, (0,))
def _hang(stage: Stage) -> Ended:
    stage.scene.sweep(timeout="5s")
    stage.scene.plan({"0.3/0": ["hang"]})
    return stage.scene.run()


def _full_from_the_start(room: int) -> None:
    @fault(
        f"full-disk-{room}k",
        f"a small file system with {room} kB of room",
        "one message, exit code 1, and `resume` finishes",
        (0, 1, 2),
        needs_root=True,
    )
    def produce(stage: Stage) -> Ended:
        small_disk(stage)
        ballast = fill(stage.scene.home, room * 1024)
        stage.mend = ballast.unlink
        return stage.scene.run()


for _room in ROOMS:
    _full_from_the_start(_room)


@fault(
    "full-disk-midway",
    "a small file system that is filled to its last byte while the sweep runs",
    "one message, exit code 1, and `resume` finishes",
    (1,),
    needs_root=True,
)
def _full_midway(stage: Stage) -> Ended:
    small_disk(stage)
    command = stage.scene.start("run", str(stage.scene.file))
    command.until("epoch", 12)
    ballast = fill(stage.scene.home, 0)
    stage.mend = ballast.unlink
    return command.wait()


@fault(
    "read-only-home",
    "the home is mounted read-only before `run`",
    "one message with the remedy, exit code 2",
    (2,),
    needs_root=True,
)
def _read_only(stage: Stage) -> Ended:
    interrupt(stage.scene)
    stage.mend = read_only(stage.scene.home)
    return stage.scene.run()


@fault(
    "read-only-midway",
    "the home becomes read-only while the sweep runs",
    "one message, exit code 1, and `resume` finishes",
    (1,),
    needs_root=True,
)
def _read_only_midway(stage: Stage) -> Ended:
    command = stage.scene.start("run", str(stage.scene.file))
    command.until("epoch", 12)
    stage.mend = read_only(stage.scene.home)
    return command.wait()


@fault(
    "clock-set-back",
    "the driver's clock goes back by a day when the first trial has ended",
    "nothing happens",
    (0,),
)
def _clock_set_back(stage: Stage) -> Ended:
    return stage.scene.run(before=lambda: set_clock_back(DAY))


@fault(
    "two-drivers",
    "`run` and `resume` while another `run` is at work",
    "exit code 2 and the other one's process; that one goes on",
    (2,),
)
def _two_drivers(stage: Stage) -> Ended:
    scene = stage.scene
    scene.plan({"0.3/0": ["pause"], "0.5/0": ["pause"]})
    first = scene.start("run", str(scene.file))
    first.until("epoch", 3)
    refused = [scene.run(), scene.call("resume", NAME)]
    ended = first.wait()
    codes = {ended.code, *(one.code - 2 for one in refused)}
    return refused[0] if codes == {0} else Ended(CRASHED, "", f"{[ended, *refused]}")


@fault("sigterm", "SIGTERM to the driver", "exit code 3 behind the epoch; `resume` goes on", (3,))
def _sigterm(stage: Stage) -> Ended:
    return interrupt(stage.scene)


@fault("sigterm-twice", "two SIGTERM to the driver while a run hangs", "exit code 3 at once", (3,))
def _sigterm_twice(stage: Stage) -> Ended:
    scene = stage.scene
    scene.plan({"0.3/0": ["hang"]})
    command = scene.start("run", str(scene.file))
    command.until("kl_weight=0.3 seed 0  epoch 2")
    for _ in range(2):
        command.signal(signal.SIGTERM)
        time.sleep(0.5)
    scene.plan({})
    return command.wait()


def _torn(when: str, cut: str, part: float) -> None:
    @fault(
        f"torn-line-{when}-{cut}",
        f"a sweep that is {when}; {cut} of the last line of each append-only file is lost",
        "what the line said is done again, and nothing else",
        (0, 3),
    )
    def produce(stage: Stage) -> Ended:
        scene = stage.scene
        ended = interrupt(scene) if when == "interrupted" else scene.run()
        for file in append_only(scene.home):
            content = file.read_bytes()
            line = len(content) - 1 - content[:-1].rfind(b"\n")
            lost = round(part * line) if 0 < part < 1 else part % line
            file.write_bytes(content[: len(content) - int(lost)])
        return ended


for _when in ("interrupted", "finished"):
    _torn(_when, "a byte", 1)
    _torn(_when, "half", 0.5)
    _torn(_when, "all but a byte", -1)


def _server(name: str, trouble: Mapping[str, float | str], promised: str) -> None:
    """Register a server that is in trouble while the sweep runs."""
    produced = f"a server between driver and MLflow: {json.dumps(trouble)}"

    @fault(f"server-{name}", produced, promised, (0,), needs_server=True)
    def produce(stage: Stage) -> Ended:
        control(stage.scene.environ[TRACKING_VARIABLE], trouble)
        stage.mend = lambda: control(stage.scene.environ[TRACKING_VARIABLE], WELL)
        return stage.scene.run()


WELL: Mapping[str, float | str] = {"delay": 0, "busy_every": 0, "away": 0, "rejects": ""}
SENT = "the sweep ends as without; what the server lacks is named, and `sync` sends it"
_server("slow", {"delay": 1.0}, SENT)
_server("overloaded", {"busy_every": 2}, SENT)
_server("away", {"away": 1}, SENT)
_server("refusing", {"rejects": '"ood/dark/top1"'}, SENT)


@contextmanager
def tracking_server(folder: Path) -> Iterator[str]:
    """Serve an MLflow of its own, with a slow server in front of it, whose address is returned."""
    from carft_sweep.tracking.store.mlflow_client import create_database

    folder.mkdir()

    def create() -> int:
        create_database(folder / "mlflow.db")
        return 0

    if Command(create, folder, {}).wait().code:
        raise SystemExit("no database can be made")
    server = serve(f"sqlite:///{folder / 'mlflow.db'}", folder / "artifacts", port=0)
    try:
        with front(server.address) as address:
            yield address
    finally:
        server.stop()


def database_of(scene: Scene) -> Path | None:
    """Copy what the server has of this scene's experiment; None where no server is used."""
    experiment = scene.environ.get(EXPERIMENT_VARIABLE)
    if experiment is None:
        return None
    server = scene.folder / SERVER
    copy = server / f"{experiment}.db"
    with (
        closing(sqlite3.connect(server / "mlflow.db")) as source,
        closing(sqlite3.connect(copy)) as target,
    ):
        source.backup(target)
        own = "SELECT r.run_uuid FROM runs r JOIN experiments e USING (experiment_id)"
        for table in ("params", "tags", "metrics", "runs"):
            where = f"run_uuid NOT IN ({own} WHERE e.name = ?)"
            target.execute(f"DELETE FROM {table} WHERE {where}", (experiment,))
        target.commit()
    return copy


def append_only(home: Path) -> list[Path]:
    """List the files of a home to whose end lines are added."""
    return sorted(home.rglob("*.jsonl"))


def interrupt(scene: Scene) -> Ended:
    """Run the sweep, and stop it in the midst of its second trial."""
    command = scene.start("run", str(scene.file))
    command.until("epoch", 12)
    command.signal(signal.SIGTERM)
    return command.wait()


def set_clock_back(seconds: float) -> None:
    """Let the clock of this process go back when its first trial has ended."""
    real_time, real_time_ns, complete = time.time, time.time_ns, Ledger.complete

    def completed(self: Ledger, number: int, values: Sequence[float]) -> Any:
        trial = complete(self, number, values)
        time.time = lambda: real_time() - seconds
        time.time_ns = lambda: real_time_ns() - round(1e9 * seconds)
        return trial

    Ledger.complete = completed  # type: ignore[method-assign]


def small_disk(stage: Stage) -> None:
    """Put the home on a small file system of its own, with what is in it."""
    home, aside = stage.scene.home, stage.scene.folder / "aside"
    home.rename(aside)
    home.mkdir()
    mount("-t", "tmpfs", "-o", f"size={TINY_DISK}", "tmpfs", str(home))
    stage.stack.callback(lambda: subprocess.run(["umount", "-l", home], check=True))
    shutil.copytree(aside, home, dirs_exist_ok=True)
    shutil.rmtree(aside)


def fill(disk: Path, room: int) -> Path:
    """Take all room of a disk but so many bytes; the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - room))
    return ballast


def read_only(home: Path) -> Callable[[], object]:
    """Let everybody who opens a file of the home find it read-only; what ends that."""
    view = home.with_name("view")
    view.mkdir(exist_ok=True)
    mount("--bind", str(home), str(view))
    mount("-o", "remount,bind,ro", str(view))
    mount("--bind", str(view), str(home))

    def end() -> None:
        for place in (home, view):
            subprocess.run(["umount", "-l", place], check=True)

    return end


def mount(*words: str) -> None:
    """Mount, in this process's own view of the file systems."""
    subprocess.run(["mount", *words], check=True)


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """Make a memory cgroup, of version 1 or 2; its processes have ended behind it."""
    root = Path("/sys/fs/cgroup")
    first = (root / "memory").is_dir()
    group = (root / "memory" if first else root) / f"carft-chaos-{os.getpid()}"
    group.mkdir()
    (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(limit))
    try:
        yield group
    finally:
        group.rmdir()


class FailingDisk:
    """A disk on which nothing new can be written below a folder, from the Nth write on.

    Counts the files that this process opens to write, and the folders that it makes.
    """

    def __init__(self, folder: Path, last: int, count: Path) -> None:
        self._folder, self._last, self._count = f"{folder}/", last, 0
        self._file = os.open(count, os.O_CREAT | os.O_WRONLY)

    def install(self) -> None:
        """Watch this process from here on."""
        sys.addaudithook(self._look)

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        elif event == "os.mkdir":
            path, writes = arguments[0], True
        else:
            return
        if not writes or not isinstance(path, (str, os.PathLike)):
            return
        if not os.fspath(path).startswith(self._folder):
            return
        self._count += 1
        os.pwrite(self._file, f"{self._count}\n".encode(), 0)
        if self._count >= self._last:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))


def examine(it: Fault, scene: Scene, reference: dict[str, Any]) -> Outcome:
    """Let a fault happen, look at what it left, mend it, and let the sweep go on."""
    began = time.monotonic()
    with ExitStack() as stack:
        stage = Stage(scene, stack)
        ended = it.produce(stage)
        outcome = Outcome(it.name, ended.code, ended.last_words, {})
        if ended.code not in it.codes:
            outcome.problems.append(f"exit code {ended.code}: {ended.said[-2000:]}")
        if ended.has_traceback:
            outcome.problems.append(f"a traceback: {ended.said[-3000:]}")
        try:
            follow_up(it, stage, outcome, reference)
        except (RuntimeError, ValueError, KeyError) as error:  # a command or its JSON was broken
            outcome.problems.append(f"it could not be looked at: {error}")
    outcome.problems += [f"a traceback: {text[-3000:]}" for text in scene.tracebacks]
    outcome.seconds = round(time.monotonic() - began, 1)
    return outcome


def follow_up(it: Fault, stage: Stage, outcome: Outcome, reference: dict[str, Any]) -> None:
    """Look, mend, look again, tidy up, and finish the sweep."""
    scene, problems = stage.scene, outcome.problems
    begun = NAME in begun_sweeps(Home(scene.home))
    if begun and stage.mend is not nothing:
        ended = scene.look(*LOOKING)
        outcome.during = {words[0]: one.code for words, one in zip(LOOKING, ended, strict=True)}
    stage.mend()
    scene.plan({})
    resumed = tidy_up(scene, outcome, it.again) if begun else scene.run()
    outcome.resumed = resumed.code
    if resumed.code:
        problems.append(f"resume: exit code {resumed.code}: {resumed.said[-2000:]}")
        return
    database = database_of(scene)
    other, in_the_end = scene.compute(
        lambda: (laws.snapshot(scene.home, NAME, database), findings(scene))
    )
    problems += [
        line
        for line in laws.differences(reference, other)
        if line.partition(":")[0] in it.parts or line in other["broken"]
    ]
    problems += [f"doctor in the end: {line}" for line in in_the_end]
    problems += [f"left over: {name}" for name in litter(scene.home)]


def tidy_up(scene: Scene, outcome: Outcome, again: Sequence[str]) -> Ended:
    """Let `doctor`, `sync`, and `clean` see to what a fault left; the `resume` that follows."""
    before = finished(scene.home)
    doctor = ("doctor", *SUBJECTS, "--json")
    commands = ("show", NAME, "--json"), doctor, ("sync",), doctor, ("clean", "--yes", "--json")
    shown, first, synced, second, cleaned = scene.look(*commands)
    counts = json.loads(shown.out)["counts"]
    outcome.states = {state: count for state, count in counts.items() if count}
    outcome.doctor = read_findings(first.out)
    outcome.synced = [f"exit code {synced.code}", *synced.out.splitlines()]
    if synced.code:
        outcome.problems.append(f"sync: exit code {synced.code}: {synced.said[-1000:]}")
    left = [line for line in read_findings(second.out) if "not recorded as here" in line]
    outcome.problems += [f"behind `sync`: {line}" for line in left]
    for item in json.loads(cleaned.out)["items"]:
        path = Path(item["path"]).relative_to(scene.home)
        outcome.cleaned.append(f"{path}: {item['reason']}")
    lost = before - finished(scene.home)
    outcome.problems += [f"`clean` took what was done: {digest[:12]}" for digest in lost]
    return scene.call("resume", NAME, *again)


def findings(scene: Scene) -> list[str]:
    """Return what `doctor` finds now; in this process."""
    return read_findings(captured(["doctor", *SUBJECTS, "--json", "--home", str(scene.home)])[1])


def read_findings(text: str) -> list[str]:
    """List what `doctor` found of the home and its services, but what is well, and little room."""
    return [
        f"{check['check']} {check['level']}: {check['message']}"
        for check in json.loads(text)["checks"]
        if check["level"] != "ok" and check["check"] != "home.disk"
    ]


def finished(home: Path) -> set[str]:
    """List the runs of a home that are trained and measured."""
    return {file.parents[2].name for file in home.glob("runs/*/evaluations/unmerged/metrics.json")}


def litter(home: Path) -> list[str]:
    """List the temporary files and folders of a home in which nothing runs."""
    prefixes = (".lock", ".locks", ".gitignore")
    return [
        str(path.relative_to(home))
        for path in home.rglob(".*")
        if not path.name.startswith(prefixes)
    ]


def fail_each_write(
    folder: Path, template: Path, reference: dict[str, Any], every: int
) -> list[Outcome]:
    """Fail each write of the driver in turn, and all that come behind it, until none is left."""
    outcomes: list[Outcome] = []
    last = 1
    while True:
        scene, count = Scene(folder, template), folder / "count"
        count.unlink(missing_ok=True)
        disk = FailingDisk(scene.home, last, count)

        def produce(stage: Stage, disk: FailingDisk = disk) -> Ended:
            return stage.scene.run("--in-process", before=disk.install)

        it = Fault(
            f"write-{last}",
            f"write {last} and all behind it fail: no space left on device",
            "one message, exit code 1, and `resume` finishes",
            produce,
            (0, 1, 2),
            parts=("ledger", "study", "compare", "list", "metrics"),  # in process there are no logs
        )
        outcome = examine(it, scene, reference)
        outcomes.append(outcome)
        say(outcome)
        reached = int(count.read_text() or 0) if count.exists() else 0
        if reached < last:
            return outcomes
        last += every


def say(outcome: Outcome) -> None:
    """Print what happened."""
    verdict = "as promised" if not outcome.problems else "NOT AS PROMISED"
    sys.stdout.write(
        f"{outcome.fault}: {verdict}; exit code {outcome.code}; {outcome.states}; "
        f"during {outcome.during}; resume {outcome.resumed}; {outcome.seconds} s\n"
        f"    {outcome.last_words[:300]}\n"
    )
    for line in (*outcome.doctor, *outcome.cleaned):
        sys.stdout.write(f"    {line}\n")
    for line in outcome.problems[:12]:
        sys.stdout.write(f"    !! {line}\n")
    sys.stdout.flush()


EACH_WRITE = "each-write"


def main() -> int:
    """Produce the faults, and print what happened."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=", ".join((*FAULTS, EACH_WRITE)))
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write what happened here too")
    options = parser.parse_args()
    unknown = {*options.faults} - {*FAULTS, EACH_WRITE}
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    if os.geteuid() == 0 and "CHAOS_MOUNTS" not in os.environ:  # mounts that nobody else sees
        own = [sys.executable, "-m", "benchmarks.chaos.faults", *sys.argv[1:]]
        os.environ["CHAOS_MOUNTS"] = "own"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private", *own])
    names = options.faults or [*FAULTS, EACH_WRITE]
    plant_faults()
    machine, outcomes = describe_machine(), []
    address = ""
    with tempfile.TemporaryDirectory(prefix="carft-faults-") as place, ExitStack() as stack:
        folder, template = Path(place), Path(place) / "template"
        reference = undisturbed(folder, template)
        for name in names:
            if name == EACH_WRITE:
                outcomes += fail_each_write(folder, template, reference, options.every)
                continue
            it = FAULTS[name]
            if it.needs_root and os.geteuid() != 0:
                sys.stdout.write(f"{name}: left out, it takes root\n")
                continue
            scene = Scene(folder, template)
            if it.needs_server:
                address = address or stack.enter_context(tracking_server(folder / SERVER))
                scene.environ |= {TRACKING_VARIABLE: address, EXPERIMENT_VARIABLE: name}
            outcomes.append(examine(it, scene, reference))
            say(outcomes[-1])
    failed = sum(bool(outcome.problems) for outcome in outcomes)
    codes = Counter(outcome.code for outcome in outcomes)
    sys.stdout.write(
        f"{len(outcomes)} faults, {failed} not as promised; exit codes {dict(codes)}; {machine}\n"
    )
    if options.json:
        result = {"machine": machine, "outcomes": [asdict(outcome) for outcome in outcomes]}
        options.json.write_text(json.dumps(result, indent=1))
    return int(failed > 0)


def undisturbed(folder: Path, template: Path) -> dict[str, Any]:
    """Run the sweep undisturbed; what it left. The template is a home with an empty database."""
    scene = Scene(folder)
    ended = scene.run()
    if ended.code:
        raise SystemExit(f"the undisturbed sweep ended with {ended.code}:\n{ended.said}")
    reference: dict[str, Any] = scene.compute(lambda: laws.snapshot(scene.home, NAME))
    shutil.rmtree(scene.home)

    def begin() -> None:
        from carft_sweep.tracking.store.mlflow_client import create_database

        create_database(scene.home / "mlflow.db")

    scene.compute(begin)
    scene.home.rename(template)
    return reference


if __name__ == "__main__":
    sys.exit(main())
