"""Kill a sweep's processes again and again, resume it, and compare it with an undisturbed one.

    python -m benchmarks.chaos.kills --engine local|ray --core simulated|real --kills N --seed S

Victims are the driver, its workers, on Ray also actors and nodes, and MLflow's server, all by
SIGKILL, at instants that are drawn: after a time, or right behind something that happens to a file.
Drivers are forks of this process, which has imported all that they need; workers and servers start
as they always do. Linux only.
"""

from __future__ import annotations

import argparse
import atexit
import ctypes
import functools
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.chaos.file_events import FileEvents

ROOT = Path(__file__).parents[2]
MARK = "CARFT_KILLS"
"""The variable that all processes of one execution of this benchmark have."""
ALL_OF_ONE_SWEEP = 60
"""So many kills at most before a sweep is left alone, so that it comes to an end."""
EVERY = {("local", "simulated"): 0.7, ("local", "real"): 6.0}
"""Seconds between two kills, on average; on Ray more."""
ON_RAY = 6.0
AIMED = 0.6
"""The share of the kills that wait for something to happen to a file."""
OFTEN = 4
"""A kill waits for what happens to files so many times in an undisturbed sweep, or more often."""
AFTER = "after a time"
SHARES = {
    "local": {"driver": 0.4, "worker": 0.55},
    "ray": {"driver": 0.15, "worker": 0.45, "actor": 0.2, "node": 0.15},
}
"""Of the kills, by victim."""
SERVER_SHARE = 0.15
"""Of the kills too, where the sweep has a server."""
WITH_SERVER = 0.3
"""Of the sweeps; the others have MLflow's database in the home."""
_DEATH_SIGNAL = 1


@dataclass
class Tally:
    """What one execution has done, as it is reported."""

    engine: str
    core: str
    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    """By victim."""
    instants: Counter[str] = field(default_factory=Counter)
    """By what was waited for."""
    sweeps: int = 0
    trials: int = 0
    runs: int = 0
    starts: int = 0
    """Of drivers."""
    asked_for_file: int = 0
    """How often `resume` asked for the file, which the driver had not kept when it died."""
    cleaned: int = 0
    """Leftovers that `clean` removed."""
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of this process and of those that have ended, but for workers that were killed."""


def main() -> int:
    """Kill, resume, compare, report; 1 where a law is broken."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--engine", choices=["local", "ray"], default="local")
    parser.add_argument("--core", choices=["simulated", "real"], default="simulated")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="begin no further kill after so many")
    parser.add_argument("--points", type=int, default=13, help="of a sweep with simulated training")
    parser.add_argument("--every", type=float, help="seconds between two kills, on average")
    parser.add_argument("--keep", type=Path, help="work here, and leave everything")
    parser.add_argument("--json", type=Path, help="write the report here too")
    arguments = parser.parse_args()
    # Before anything loads torch: threads would not survive a fork.
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    os.environ |= {"ARROW_DEFAULT_MEMORY_POOL": "system", MARK: str(os.getpid())}
    for name in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "CARFT_OPTUNA_STORAGE"):
        os.environ.pop(name, None)
    began = time.monotonic()
    tally = Tally(arguments.engine, arguments.core, arguments.seed)
    with ExitStack() as stack:
        folder = arguments.keep or Path(tempfile.mkdtemp(prefix="carft-kills-"))
        folder.mkdir(parents=True, exist_ok=True)
        benchmark = Benchmark(arguments, folder, tally, stack)
        try:
            benchmark.run()
        finally:
            tally.seconds = round(time.monotonic() - began, 1)
            tally.cpu_seconds = round(sum(os.times()[:4]), 1)
            report = json.dumps({**vars(tally), "killed": tally.kills.total()}, indent=1)
            sys.stdout.write(f"{report}\n")
            if arguments.json is not None:
                arguments.json.write_text(report)
    if tally.broken:
        sys.stdout.write(f"Everything is left in {folder}\n")
        return 1
    if arguments.keep is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0


class Benchmark:
    """Kills until there were enough, in one sweep after another."""

    def __init__(
        self, arguments: argparse.Namespace, folder: Path, tally: Tally, stack: ExitStack
    ) -> None:
        self.engine, self.core, self.tally = arguments.engine, arguments.core, tally
        self.goal, self.chance = arguments.kills, random.Random(arguments.seed)
        self.every = arguments.every or EVERY.get((self.engine, self.core), ON_RAY)
        self.until = time.monotonic() + (arguments.seconds or 10**9)
        self.folder, self._stack = folder, stack
        self._references: dict[str, tuple[dict[str, Any], list[str]]] = {}
        self.nodes: Nodes | None = None
        _load_all()
        from benchmarks.chaos import chain_core, tiny_sweep

        if self.core == "simulated":
            chain_core.simulate_training()
            data = tiny_sweep.data_of(folder)
            self.sweep_files = list(chain_core.sweep_files(self.engine, data, arguments.points))
        else:
            self.sweep_files = list(tiny_sweep.sweep_files(folder))
        gc.collect()
        gc.freeze()  # else every fork copies what its collector looks at

    @property
    def is_over(self) -> bool:
        """Whether nobody is killed any more."""
        return self.tally.kills.total() >= self.goal or time.monotonic() > self.until

    def run(self) -> None:
        """Kill, until there were enough; each sweep is compared at its end."""
        if self.engine == "ray":
            self.nodes = self._stack.enter_context(ray_nodes(2))
        number = 0
        while not self.is_over:
            content = self.sweep_files[(number + self.tally.seed) % len(self.sweep_files)]
            reference, kinds = self._reference(content)
            with_server = self.chance.random() < WITH_SERVER
            disturbed = Disturbed(self, content, self.folder / f"killed-{number}", kinds)
            end = disturbed.run(with_server=with_server)
            self._compare(reference, end, disturbed)
            number += 1

    def _compare(
        self, reference: dict[str, Any], end: dict[str, Any], disturbed: Disturbed
    ) -> None:
        from benchmarks.chaos.laws import differences

        broken = [*disturbed.broken, *differences(reference, end)]
        tally = self.tally
        tally.sweeps += 1
        tally.trials += len(end["ledger"]["trials"])
        tally.runs += sum("history" in name for name in end["metrics"])
        tally.cleaned += end["cleaned"]
        tally.broken += [f"{disturbed.home}: {line}" for line in broken]
        took = time.monotonic() - disturbed.began
        counts = f"{disturbed.kills} kills, {len(broken)} laws broken"
        _say(f"{disturbed.folder.name}, {disturbed.name}: {took:.1f} s, {counts}")
        for line in broken[:20]:
            _say(f"  {line}")
        if not broken:
            shutil.rmtree(disturbed.folder, ignore_errors=True)

    def _reference(self, content: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """The sweep undisturbed, and what happens to files in it."""
        name = content["name"]
        if name not in self._references:
            sweep = Sweep(content, self.folder / f"undisturbed-{name}", self.engine, self.nodes)
            began, events = time.monotonic(), FileEvents(sweep.home)
            pid = sweep.start("run")
            while (code := sweep.code_of(pid)) is None:
                events.wait(0.05)
            events.close()
            if code or (code := sweep.sync()):
                raise SystemExit(f"the undisturbed sweep exited with {code}:\n{sweep.said()}")
            _say(f"{name} undisturbed: {time.monotonic() - began:.1f} s")
            kinds = sorted(kind for kind, count in events.seen.items() if count >= OFTEN)
            self._references[name] = sweep.snapshot(), kinds
        return self._references[name]


class Sweep:
    """A sweep file with a home of its own, and the processes that work on it."""

    def __init__(
        self, content: Mapping[str, Any], folder: Path, engine: str, nodes: Nodes | None
    ) -> None:
        folder.mkdir(parents=True)
        self.name, self.folder, self.home = content["name"], folder, folder / "home"
        self.file, self.log = folder / f"{self.name}.yaml", folder / "driver.log"
        retries = {"crashed": 100, "timeout": 100, "preempted": 100}
        own = {"retries": retries, "breaker": 0, "resources": {"cpus": 1}}
        own["report"] = {"page": False, "model": False}
        self.file.write_text(json.dumps({**content, **own, "engine": engine}, indent=1))
        self.home.mkdir()
        self.uri: str | None = None
        self.database: Path | None = None
        self._address = [] if nodes is None else ["--address", nodes.address]

    def start(self, verb: str) -> int:
        """Start `run FILE`, `resume NAME` or `sync`; return the process's id."""
        what = {"run": [str(self.file)], "resume": [self.name], "sync": []}[verb]
        home = ["--home", str(self.home)]
        address = [] if verb == "sync" else self._address
        environ = {} if self.uri is None else {"MLFLOW_TRACKING_URI": self.uri}
        return fork(lambda: _command([verb, *what, *home, *address]), self.log, environ)

    def sync(self) -> int:
        """Send what MLflow lacks; the exit code."""
        return os.waitstatus_to_exitcode(os.waitpid(self.start("sync"), 0)[1])

    def code_of(self, pid: int) -> int | None:
        """The exit code of a driver, negative for a signal; None while it lives."""
        ended, status = os.waitpid(pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if ended else None

    def said(self) -> str:
        """What drivers have printed last."""
        return self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""

    def snapshot(self) -> dict[str, Any]:
        """All that there is of it at its end; see laws.py."""
        result = self.folder / "snapshot.json"

        def read() -> int:
            from benchmarks.chaos.laws import snapshot

            result.write_text(json.dumps(snapshot(self.home, self.name, self.database)))
            return 0

        code = os.waitstatus_to_exitcode(os.waitpid(fork(read, self.log, {}), 0)[1])
        if code:
            raise SystemExit(f"what the sweep left cannot be read: {code}\n{self.said()}")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


class Disturbed(Sweep):
    """A sweep whose processes are killed until it ends."""

    def __init__(
        self, benchmark: Benchmark, content: Mapping[str, Any], folder: Path, kinds: list[str]
    ) -> None:
        super().__init__(content, folder, benchmark.engine, benchmark.nodes)
        self._benchmark, self._chance, self._kinds = benchmark, benchmark.chance, kinds
        self._every = benchmark.every
        self._server: Server | None = None
        self.began = time.monotonic()
        self.kills = 0
        self.broken: list[str] = []

    def run(self, *, with_server: bool) -> dict[str, Any]:
        """Kill and resume until it ends; return what it has left then."""
        with ExitStack() as stack:
            if with_server:
                self._server = stack.enter_context(mlflow_server(self.folder / "server"))
                self.uri, self.database = self._server.address, self._server.database
            verb = "run"
            while True:
                code = self._drive(verb)
                if code == 0:
                    break
                if code == 2 and "run its file instead" in self.said():
                    self._benchmark.tally.asked_for_file += 1
                    verb = "run"
                elif code == -signal.SIGKILL:
                    begun = (self.home / "sweeps" / self.name / "ledger.jsonl").exists()
                    verb = "resume" if begun and self._chance.random() < 0.7 else "run"
                else:
                    self.broken.append(f"the driver exited with {code}: {self.said()[-600:]}")
                    verb = "run"
                    if len(self.broken) > 5:
                        break
            if self._server is not None:
                self._server.wait()
            if code := self.sync():
                self.broken.append(f"sync exited with {code}: {self.said()[-600:]}")
            if "\nTraceback" in self.log.read_text(errors="replace"):  # not that of a run's log
                self.broken.append(f"a traceback in {self.log}")
            self._see_nobody_left()
            return self.snapshot()

    def _drive(self, verb: str) -> int:
        """One driver, from its start to its end or its death; its exit code."""
        self._benchmark.tally.starts += 1
        events = FileEvents(self.home)
        pid = self.start(verb)
        try:
            while self.kills < ALL_OF_ONE_SWEEP:
                if self._benchmark.is_over:
                    break
                code = self._kill(pid, events)
                if code is not None:
                    return code
        finally:
            events.close()
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def _kill(self, driver: int, events: FileEvents) -> int | None:
        """Kill somebody at some instant; the driver's exit code where it has ended."""
        shares = {**SHARES[self._benchmark.engine]}
        if self._server is not None and self._server.is_up:
            shares["server"] = SERVER_SHARE
        victim = self._chance.choices([*shares], [*shares.values()])[0]
        is_aimed = self._chance.random() < AIMED
        until = time.monotonic() + self._chance.uniform(0, self._every * (0.5 if is_aimed else 2))
        while (left := until - time.monotonic()) > 0:
            if (code := self.code_of(driver)) is not None:
                return code
            events.wait(min(0.1, left))
        while not (candidates := self._victims(victim, driver)):
            if (code := self.code_of(driver)) is not None:
                return code
            events.wait(0.05)
        instant = AFTER
        if is_aimed:
            kind, skip = self._chance.choice(self._kinds), self._chance.randrange(3)
            if events.wait(4 * self._every, kind, skip):
                instant = kind
        if (code := self.code_of(driver)) is not None:
            return code
        if victim == "server":
            assert self._server is not None
            self._server.kill()
        elif victim == "node":
            assert self._benchmark.nodes is not None
            self._benchmark.nodes.kill_one()
        else:
            try:
                os.kill(self._chance.choice(candidates), signal.SIGKILL)
            except ProcessLookupError:
                return None
        self.kills += 1
        self._benchmark.tally.kills[victim] += 1
        self._benchmark.tally.instants[instant] += 1
        if victim == "driver":
            return os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1])
        return None

    def _victims(self, victim: str, driver: int) -> list[int]:
        if victim == "driver":
            return [driver]
        if victim == "worker" and self._benchmark.engine == "local":
            return [pid for pid in children_of(driver) if _is_worker(pid)]
        if victim in ("worker", "actor"):
            workers = workers_alive()
            return workers if victim == "worker" else [parent_of(pid) for pid in workers]
        return [0]  # not by its process

    def _see_nobody_left(self) -> None:
        until = time.monotonic() + 30
        while workers_alive() and time.monotonic() < until:
            time.sleep(0.1)
        self.broken += [f"worker {pid} outlives its driver" for pid in workers_alive()]


def fork(act: Callable[[], int], log: Path, environ: Mapping[str, str]) -> int:
    """Run `act` in a fork of this process, which prints into a file; return its id."""
    if threading.active_count() > 1:
        raise RuntimeError(f"threads do not survive a fork: {threading.enumerate()}")
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(environ)
        code = act()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _command(words: list[str]) -> int:
    from carft_sweep.sweeps.cli import main as carft_sweep

    return carft_sweep(words)


def _load_all() -> None:
    """Load what a driver loads, once: its forks have it."""
    import mlflow  # noqa: F401
    import open_clip  # noqa: F401
    import scipy.stats  # noqa: F401

    import carft_sweep.sweeps.cli.compare
    import carft_sweep.sweeps.cli.run
    import carft_sweep.sweeps.cli.sync
    import carft_sweep.sweeps.engines.ray_tune
    import carft_sweep.tracking.store.mlflow_store  # noqa: F401
    from carft_sweep.tracking.location import stay_private

    stay_private()
    _load_migrations()


def _load_migrations() -> None:
    """Load the migration scripts of Optuna and MLflow, which Alembic executes anew whenever it
    opens a database, to find the latest.
    """
    import mlflow
    import optuna
    from alembic.util import pyfiles

    load = pyfiles.load_module_py
    loaded = functools.cache(load)

    def once(module_id: str, path: str | os.PathLike[str]) -> ModuleType:
        is_migration = Path(path).parent.name == "versions"  # env.py is one more, and acts
        return loaded(module_id, str(path)) if is_migration else load(module_id, path)

    pyfiles.load_module_py = once
    for package, folder in (
        (mlflow, "store/db_migrations/versions"),
        (optuna, "storages/_rdb/alembic/versions"),
    ):
        for file in (Path(str(package.__file__)).parent / folder).glob("*.py"):
            once(file.stem.replace(".", "_") + "_py", str(file))


def children_of(pid: int) -> list[int]:
    """The processes that the main thread of a process has started."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def parent_of(pid: int) -> int:
    """The process that started another; 0 where that has gone."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _is_worker(pid: int) -> bool:
    try:
        return b"carft_sweep.sweeps.engines.worker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def workers_alive() -> list[int]:
    """The worker processes of this benchmark, whoever has started them."""
    mark = f"{MARK}={os.environ[MARK]}\0".encode()
    workers = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if _is_worker(int(folder.name)) and mark in (folder / "environ").read_bytes():
                workers.append(int(folder.name))
        except OSError:  # it has ended meanwhile
            continue
    return workers


class Server:
    """MLflow's server, which comes again when it was killed."""

    def __init__(self, folder: Path, port: int) -> None:
        self.address = f"http://127.0.0.1:{port}"
        self.database = folder / "mlflow.db"
        store = ["--backend-store-uri", f"sqlite:///{self.database}"]
        self._command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), *store]
        self._command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
        self._log = folder / "server.log"
        self._process = self._start()

    @property
    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            with urllib.request.urlopen(f"{self.address}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def wait(self) -> None:
        """Wait until it answers."""
        until = time.monotonic() + 180
        while not self.is_up:
            if time.monotonic() > until:
                raise SystemExit(f"the MLflow server does not answer: {self._log}")
            time.sleep(0.2)

    def kill(self) -> None:
        """End it at once, with its workers, and start it again."""
        self.end()
        self._process = self._start()

    def end(self) -> None:
        """End it at once, with its workers."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        environ = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=environ,
                start_new_session=True,
            )


@contextmanager
def mlflow_server(folder: Path) -> Iterator[Server]:
    """A server as long as the block lasts."""
    import socket

    folder.mkdir()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = Server(folder, port)
    try:
        server.wait()
        yield server
    finally:
        server.end()


class Nodes:
    """The other end of ray_nodes.py."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._answer()

    def kill_one(self) -> None:
        """Kill a node, and let another one join."""
        for word in ("kill", "add"):
            assert self._process.stdin is not None
            self._process.stdin.write(f"{word}\n")
            self._process.stdin.flush()
            self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise SystemExit("the Ray of the benchmark has ended")
        return line


@contextmanager
def ray_nodes(count: int) -> Iterator[Nodes]:
    """A Ray of so many nodes of one core, besides its head."""
    command = [sys.executable, "-m", "benchmarks.chaos.ray_nodes", str(count)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environ["RAY_raylet_start_wait_time_s"] = "600"  # on a machine that is busy
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    ) as process:
        yield Nodes(process)
        assert process.stdin is not None
        process.stdin.close()


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
