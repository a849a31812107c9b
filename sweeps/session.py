"""One execution of a sweep file: from the validated sweep to the comparison it ends with."""

from __future__ import annotations

import functools
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from carft_core.files import write_atomically, write_json
from sweeps import summary
from sweeps.claim import Claim
from sweeps.driver import Driver
from sweeps.engines.base import Engine
from sweeps.home import Home
from sweeps.ledger import Ledger, Trial
from sweeps.opening import open_ledger
from sweeps.plan import Planner, digests
from sweeps.progress import Progress
from sweeps.records import comparison
from sweeps.runs import Runs
from sweeps.spec import SweepSpec
from sweeps.tracked import TrackedSweep
from tracking.base import EndState, Tracker
from tracking.compare import Comparison
from tracking.curves import plot
from tracking.report import csv_text, markdown


@dataclass(frozen=True)
class Ended:
    """How an execution ended."""

    interrupted: bool
    done: int
    failures: tuple[str, ...]
    comparison: Comparison

    @property
    def exit_code(self) -> int:
        """0 done, 1 no run succeeded, 3 interrupted."""
        if self.interrupted:
            return 3
        return 0 if self.done else 1


def execute(
    spec: SweepSpec,
    home: Home,
    engine: Engine,
    tracker: Tracker,
    progress: Progress,
    *,
    fresh: bool = False,
    claimed: Callable[[], None] = lambda: None,
) -> Ended:
    """Run a sweep, or go on with it. `claimed` is called once it is ours.

    Raises RequestError when another driver has the sweep or the request cannot be met.
    """
    folder = home.sweep(spec.name)
    with Claim(folder) as claim:
        claimed()
        planner = Planner(spec, home.cache)
        opening = open_ledger(home, spec, is_stale=_Staleness(planner), fresh=fresh)
        for note in (*spec.warnings, *opening.notes):
            progress.note(note)
        write_atomically(folder / "sweep.yaml", functools.partial(_fill, spec.text))
        tracked = TrackedSweep(tracker, spec.name, folder)
        runs = Runs(home.runs)
        driver = Driver(
            planner,
            opening.ledger,
            runs,
            cache=home.cache,
            tracked=tracked,
            progress=progress,
            carried=opening.carried,
            fresh=fresh,
            alive=claim.renew,
            told=functools.partial(summary.write, folder, opening.ledger, "running"),
        )
        driver.begin()
        summary.write(folder, opening.ledger, "running")
        tracked.begin(folder / "sweep.yaml", _tags(spec, opening.ledger))
        with closing(engine), _interruptible(engine, progress) as interruption:
            try:
                engine.run(driver)
            except Exception:
                driver.abandon()
                summary.write(folder, opening.ledger, "interrupted")
                tracked.end("killed", {"carft.state": "interrupted"}, [])
                raise
        return _end(driver, tracked, folder, interrupted=interruption.asked)


def _end(driver: Driver, tracked: TrackedSweep, folder: Path, *, interrupted: bool) -> Ended:
    done = sum(outcome.state == "done" for outcome in driver.outcomes.values())
    found = comparison(driver.ledger, driver.runs)
    state: summary.State = "interrupted" if interrupted else "done" if done else "failed"
    summary.write(folder, driver.ledger, state)
    ends: Mapping[summary.State, EndState] = {
        "interrupted": "killed",
        "done": "finished",
        "failed": "failed",
    }
    tags = {"carft.state": state, "carft.verdict": found.verdict}
    if found.selected is not None:
        tags["carft.selected"] = found.selected.label
    tracked.end(ends[state], tags, _write_results(found, folder))
    failures = tuple(
        f"{outcome.failure.kind}: {outcome.failure.message}"
        for outcome in driver.outcomes.values()
        if outcome.failure is not None
    )
    return Ended(interrupted, done, failures, found)


def _write_results(found: Comparison, folder: Path) -> list[Path]:
    """The comparison as files, for people and programs."""
    texts = {"comparison.md": markdown(found), "comparison.csv": csv_text(found)}
    for name, text in texts.items():
        write_atomically(folder / name, functools.partial(_fill, text))
    write_json(folder / "comparison.json", found.as_dict())
    files = [folder / name for name in (*texts, "comparison.json")]
    if found.curves:
        plot(found.curves, folder / "wise_ft.png", title=found.sweep)
        files.append(folder / "wise_ft.png")
    return files


def _fill(text: str, file: Path) -> None:
    file.write_text(text)


@dataclass(frozen=True)
class _Staleness:
    """Whether a trial's runs would have other digests now."""

    planner: Planner

    def __call__(self, trial: Trial) -> bool:
        now = digests(self.planner.trial(trial.params))
        return bool(trial.runs) and dict(trial.runs) != now


def _tags(spec: SweepSpec, ledger: Ledger) -> dict[str, str]:
    tags = {
        "carft.generation": str(ledger.generation),
        "carft.metric": spec.metric.name,
        "carft.selection": str(spec.selection.plain()),
    }
    if spec.description:
        tags["mlflow.note.content"] = spec.description
    if spec.overrides:
        tags["carft.overrides"] = " ".join(spec.overrides)
    return tags


@dataclass
class _Interruption:
    asked: bool = False


@contextmanager
def _interruptible(engine: Engine, progress: Progress) -> Iterator[_Interruption]:
    """The first Ctrl-C or SIGTERM ends after the epoch, the second at once."""
    interruption = _Interruption()

    def handle(number: int, frame: FrameType | None) -> None:
        del number, frame
        first, interruption.asked = not interruption.asked, True
        if first:
            engine.stop()
            progress.note("stopping after this epoch; once more stops at once")
        else:
            engine.stop(now=True)

    numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, handle) for number in numbers]
    try:
        yield interruption
    finally:
        for number, old in zip(numbers, before, strict=True):
            signal.signal(number, old)
