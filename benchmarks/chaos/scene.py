"""A home with one small sweep, and the real commands on it, each in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from benchmarks.chaos.chain_core import PAUSE
from benchmarks.chaos.planted_faults import PLAN
from carft_sweep.sweeps.cli import main

NAME = "faults"
SWEEP: Mapping[str, Any] = {
    "name": NAME,
    "method": "grid",
    "parameters": {"algorithm.kl_weight": {"values": [0.1, 0.3, 0.5]}},
    "seeds": [0, 1],
    "baselines": ["zero_shot", "fine_tune"],
    "engine": "local",
    "resources": {"cpus": 1},
    "report": {"page": False, "model": False},
    "trial": {
        "algorithm": {"name": "car_ft"},
        "optim": {"epochs": 5},
        "merges": [{"name": "wise_ft", "alphas": [0.5]}],
        "device": "cpu",
    },
}
LIMIT = 600.0
"""Seconds that a command may take."""
CRASHED = 70
"""The exit code of a command that raised."""


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """The exit code, negative for a signal."""
    out: str
    said: str
    """What it wrote to standard error."""

    @property
    def has_traceback(self) -> bool:
        """Whether it showed one."""
        return "Traceback (most recent call last)" in self.out + self.said

    @property
    def last_words(self) -> str:
        """What it said when it failed."""
        lines = self.said.splitlines()
        marked = [i for i, line in enumerate(lines) if line.startswith("carft-sweep: ")]
        return " | ".join(lines[marked[-1] :] if marked else lines[-2:])


class Command:
    """A command that runs in a fork of this process, which has imported everything already."""

    def __init__(self, run: Callable[[], int], folder: Path, environ: Mapping[str, str]) -> None:
        self._out, self._said = folder / "out.txt", folder / "said.txt"
        for file in (self._out, self._said):
            file.write_text("")
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os._exit(self._execute(run, environ))

    def _execute(self, run: Callable[[], int], environ: Mapping[str, str]) -> int:
        for file, number in ((self._out, 1), (self._said, 2)):
            os.dup2(os.open(file, os.O_WRONLY | os.O_APPEND), number)
        os.environ.update(environ)
        try:
            code = run()
        except BaseException:
            traceback.print_exc()
            code = CRASHED
        sys.stdout.flush()
        sys.stderr.flush()
        return code

    def until(self, text: str, times: int = 1) -> None:
        """Wait until it has said something so many times. Raises TimeoutError."""
        due = time.monotonic() + LIMIT
        while self._said.read_text(errors="replace").count(text) < times:
            if time.monotonic() > due or self._poll() is not None:
                raise TimeoutError(f"it never said {text!r}:\n{self._said.read_text()}")
            time.sleep(0.02)

    def signal(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def wait(self) -> Ended:
        """Wait for its end. One that takes too long is killed."""
        due = time.monotonic() + LIMIT
        while (code := self._poll()) is None:
            if time.monotonic() > due:
                self.signal(signal.SIGKILL)
            time.sleep(0.02)
        return Ended(
            code, self._out.read_text(errors="replace"), self._said.read_text(errors="replace")
        )

    _code: int | None = None

    def _poll(self) -> int | None:
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code


class Scene:
    """The folder of one small sweep: its file, its plan of faults, its home.

    `template` is a home to begin with, which lay at this very path.
    """

    def __init__(self, folder: Path, template: Path | None = None) -> None:
        self.folder, self.home = folder, folder / "home"
        self.file, self.plan_file = folder / f"{NAME}.yaml", folder / "plan.json"
        self.commands = 0
        self.tracebacks: list[str] = []
        """What showed one."""
        self.environ = {PAUSE: "0.03", PLAN: str(self.plan_file)}
        if self.home.exists():
            shutil.rmtree(self.home)
        if template is not None:
            shutil.copytree(template, self.home)
        self.sweep()
        self.plan({})

    def sweep(self, **changes: Any) -> None:
        """Write the sweep file."""
        self.file.write_text(json.dumps({**SWEEP, **changes}))

    def plan(self, runs: Mapping[str, Sequence[str]]) -> None:
        """Plan the faults: by run one for each attempt."""
        self.plan_file.write_text(json.dumps({"runs": runs}))

    def start(
        self,
        *words: str,
        before: Callable[[], object] = lambda: None,
        environ: Mapping[str, str] | None = None,
    ) -> Command:
        """Start `carft-sweep WORDS --home HOME`, behind `before` in the same process."""
        self.commands += 1
        folder = self.folder / f"command-{self.commands}"
        folder.mkdir(exist_ok=True)

        def run() -> int:
            before()
            return main([*words, "--home", str(self.home)])

        return Command(run, folder, {**self.environ, **(environ or {})})

    def call(
        self,
        *words: str,
        before: Callable[[], object] = lambda: None,
        environ: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a command to its end."""
        ended = self.start(*words, before=before, environ=environ).wait()
        if ended.has_traceback:
            self.tracebacks.append(f"{' '.join(words)}: {ended.said}{ended.out}")
        return ended

    def run(self, *words: str, **options: Any) -> Ended:
        """Run the sweep file."""
        return self.call("run", str(self.file), *words, **options)

    def compute(self, function: Callable[[], Any]) -> Any:
        """Call a function in a fork, since MLflow holds on to its first store; its JSON."""
        file = self.folder / "computed.json"

        def run() -> int:
            file.write_text(json.dumps(function()))
            return 0

        ended = Command(run, self.folder, self.environ).wait()
        if ended.code:
            raise RuntimeError(ended.said)
        return json.loads(file.read_text())

    def look(self, *commands: Sequence[str]) -> list[Ended]:
        """Run commands that run no sweep, one after the other in one process."""

        def run() -> list[tuple[int, str, str]]:
            return [captured([*words, "--home", str(self.home)]) for words in commands]

        ended = [Ended(*it) for it in self.compute(run)]
        for words, it in zip(commands, ended, strict=True):
            if it.has_traceback:
                self.tracebacks.append(f"{' '.join(words)}: {it.said}{it.out}")
        return ended


def captured(words: Sequence[str]) -> tuple[int, str, str]:
    """Run a command in this process: its exit code and what it printed."""
    out, said = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(said):
        try:
            code = main(words)
        except Exception:
            traceback.print_exc()
            code = CRASHED
    return code, out.getvalue(), said.getvalue()
