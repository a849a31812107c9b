"""Drivers that die or are stopped where a test wants it; who dies tidies nothing up."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.base import Handler, Job
from carft_sweep.sweeps.engines.local import InProcessEngine
from carft_sweep.sweeps.ledger.ledger import Ledger
from carft_sweep.sweeps.ledger.runs import RunState, RunStore
from tests.sweeps import toy_core
from tests.sweeps.conftest import ToySweep


class Crash(BaseException):
    """The driver dies here."""


def crash(*_: object) -> None:
    raise Crash


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


def at(number: int, act: Callable[[], object]) -> Callable[[int], object]:
    """A hook that acts at one of its calls."""
    return lambda count: act() if count == number else None


class Hooked(InProcessEngine):
    """The toy core's engine. `run` and `ran` are called before and behind each run, `epoch` and
    `reported` before and behind each report of one: with the number of the call, from 1 on.
    """

    job: Job

    def __init__(self, **hooks: Callable[[int], object]) -> None:
        super().__init__(toy_core.ENTRY)
        self._hooks, self._calls = hooks, Counter[str]()

    def run(self, handler: Handler) -> None:
        decide = handler.reported

        def reported(job: Job, report: Mapping[str, Any]) -> Decision:
            self._call("epoch")
            decision = decide(job, report)
            self._call("reported")
            return decision

        handler.reported = reported  # type: ignore[method-assign]
        super().run(handler)

    def _execute(self, handler: Handler, job: Job) -> None:
        self.job = job
        self._call("run")
        super()._execute(handler, job)
        self._call("ran")

    def _call(self, name: str) -> None:
        self._calls[name] += 1
        if name in self._hooks:
            self._hooks[name](self._calls[name])


def stopping_after(runs: int) -> Hooked:
    """Stops when so many runs have ended, as if somebody had pressed Ctrl-C."""
    engine = Hooked(ran=at(runs, lambda: engine.stop()))
    return engine


@contextmanager
def dying(verb: str, *, before: bool = False) -> Iterator[None]:
    """The driver within dies behind its first `Ledger.verb`, or in the place of it."""
    real = getattr(Ledger, verb)

    def last(self: Ledger, *args: Any, **named: Any) -> None:
        if not before:
            real(self, *args, **named)
        raise Crash

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ledger, verb, last)
        with pytest.raises(Crash):
            yield


def state_of(toy: ToySweep, digest: str) -> RunState:
    """What is kept of a run that has begun."""
    state = RunStore(toy.home.runs).read(digest)
    assert state is not None
    return state
