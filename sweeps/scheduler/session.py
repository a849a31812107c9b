"""One execution of a sweep file: from the validated sweep to the comparison it ends with."""

from __future__ import annotations

import functools
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from carft_core.files import write_atomically, write_json
from sweeps.engines.base import Engine
from sweeps.home import Home
from sweeps.ledger.claim import Claim, ClaimLost, StopRequests
from sweeps.ledger.generations import AsRun, open_ledger, record_execution
from sweeps.ledger.runs import Runs
from sweeps.ledger.snapshot import Mirror, State, Summary
from sweeps.ledger.snapshot import write as write_summary
from sweeps.ledger.trials import Ledger, Trial
from sweeps.plan.tasks import Planner, digests
from sweeps.results.records import comparison, records, terms
from sweeps.results.report import FILE as PAGE
from sweeps.results.report import keep
from sweeps.results.tracker import TrackedSweep
from sweeps.scheduler.driver import Driver, Listeners
from sweeps.scheduler.progress import Progress
from sweeps.scheduler.proposer import Asking
from sweeps.scheduler.webhook import Event, Webhook
from sweeps.spec.spec import SweepSpec
from tracking.comparison.compare import Comparison
from tracking.comparison.wise_ft import plot
from tracking.errors import ServiceUnreachable, TrackingError
from tracking.report.terminal import csv_text, markdown
from tracking.store.base import ARTIFACT, EndState, Tracker

ENDS: Mapping[State, EndState] = {
    "interrupted": "killed",
    "done": "finished",
    "failed": "failed",
}
"""How the tracker calls the states of a sweep."""
RESULT = "comparison.json"
EXIT_CODES: Mapping[State, int] = {"done": 0, "failed": 1, "interrupted": 3}
EVENTS: Mapping[State, Event] = {
    "interrupted": "interrupted",
    "done": "finished",
    "failed": "failed",
}
"""How a webhook is told of them."""


@dataclass(frozen=True)
class Ended:
    """How an execution ended."""

    state: State
    done: int
    """Runs that succeeded, now or earlier."""
    failures: tuple[str, ...]
    comparison: Comparison
    broken: str | None = None
    """Why the circuit breaker stopped the sweep."""
    log_tail: str = ""
    """The last lines of the log of the run that failed last."""

    @property
    def interrupted(self) -> bool:
        """Whether somebody stopped it; it can go on."""
        return self.state == "interrupted"

    @property
    def exit_code(self) -> int:
        """0 done, 1 no run succeeded or the breaker stopped the sweep, 3 interrupted."""
        return EXIT_CODES[self.state]


def execute(
    spec: SweepSpec,
    home: Home,
    engine: Engine,
    tracker: Tracker,
    progress: Progress,
    *,
    fresh: bool = False,
    failed_again: bool = False,
    claimed: Callable[[], None] = lambda: None,
    webhook: Webhook | None = None,
) -> Ended:
    """Run a sweep, or go on with it. `claimed` is called once it is ours.

    With `failed_again` also trials that became NaN are tried again. Raises RequestError when
    another driver has the sweep, or takes it over, or the request cannot be met.
    """
    folder, hook = home.sweep(spec.name), webhook or Webhook(None)
    with Claim(folder) as claim:
        claimed()
        record_execution(folder)
        planner = Planner(spec, engine.hardware, progress.note)
        opening = open_ledger(home, spec, is_stale=_Staleness(planner), fresh=fresh)
        ledger = opening.ledger
        for note in (*spec.warnings, *opening.notes):
            progress.note(note)
        _keep_request(spec, folder)
        ledger.mirror = Mirror(folder)
        ledger.mirror.mend(ledger)
        driver = Driver(
            planner,
            ledger,
            Runs(home.runs),
            asking=Asking(planner, ledger, carried=opening.carried, failed_again=failed_again),
            tracked=TrackedSweep(tracker, spec.name, folder, terms(spec.as_dict())),
            progress=progress,
            fresh=fresh,
            failed_again=failed_again,
            listeners=Listeners(
                alive=claim.renew,
                told=Summary(folder, ledger).told,
                alarm=lambda event, text: hook.send(event, spec.name, text),
            ),
        )
        driver.begin()
        write_summary(folder, ledger, "running")
        driver.tracked.begin(folder / "sweep.yaml", _tags(spec, ledger))
        interrupted = _drive(driver, engine, folder, progress)
        ended = _end(driver, home, folder, interrupted=interrupted)
    verdict = ended.comparison.verdict
    hook.send(EVENTS[ended.state], spec.name, _in_a_word(ended), state=ended.state, verdict=verdict)
    return ended


def _drive(driver: Driver, engine: Engine, folder: Path, progress: Progress) -> bool:
    """Let the engine run; whether it was stopped with something left to run."""
    interruption = Interruption(engine, progress)
    with (
        closing(engine),
        interruption.handling_signals(),
        StopRequests(folder, interruption.stop),
    ):
        try:
            engine.run(driver)
        except ClaimLost:
            raise  # what is to be cleaned up is the other driver's
        except Exception:
            # A full disk, or a database that is away, does not let us: the next driver sees to it.
            with suppress(OSError, ServiceUnreachable, TrackingError):
                driver.abandon()
                driver.tracked.end("killed", {"carft.state": "interrupted"}, [])
                write_summary(folder, driver.ledger, "interrupted")
                driver.close()
            raise
        driver.close()
    if driver.broken is not None:
        progress.note(f"The sweep was given up: {driver.broken}")
    elif driver.is_out_of_time and not interruption.asked:
        progress.note("the time budget is used up; with a larger one the sweep goes on")
    return interruption.asked and driver.has_work_left


def _end(driver: Driver, home: Home, folder: Path, *, interrupted: bool) -> Ended:
    # Of earlier executions too: this one need not have looked at them.
    done = len({run.digest for run in records(driver.ledger, driver.runs) if run.state == "done"})
    found = comparison(driver.ledger, driver.runs)
    state: State = "interrupted" if interrupted else "done" if done else "failed"
    if driver.broken is not None:
        state = "failed"
    write_summary(folder, driver.ledger, state)
    tags = {"carft.state": state, "carft.verdict": found.verdict}
    if found.selected is not None:
        tags["carft.selected"] = found.selected.label
    if driver.broken is not None:
        tags["carft.failure_message"] = driver.broken
    before = _read(folder / RESULT)
    files = _write_results(found, folder)
    pages: Sequence[Path] = ()
    if state == "done" and driver.planner.spec.report.page:
        page = folder / PAGE
        is_new = not page.exists() or _read(folder / RESULT) != before
        pages = keep(home, driver.ledger, found, driver.progress.note) if is_new else [page]
    tags["mlflow.note.content"] = _described(driver.planner.spec, found, has_page=bool(pages))
    driver.tracked.end(ENDS[state], tags, files, beside=pages)
    failed = [o.failure for o in driver.outcomes.values() if o.failure is not None]
    return Ended(
        state,
        done,
        tuple(f"{failure.kind}: {failure.message}" for failure in failed),
        found,
        driver.broken,
        failed[-1].log_tail if failed else "",
    )


def _in_a_word(ended: Ended) -> str:
    """One line for people who are told from afar."""
    name = ended.comparison.sweep
    if ended.broken is not None:
        return f"{name} was given up: {ended.broken}"
    failed = f", {len(ended.failures)} runs failed" if ended.failures else ""
    return f"{name} is {ended.state}: {ended.done} runs done{failed}. {ended.comparison.verdict}"


def _keep_request(spec: SweepSpec, folder: Path) -> None:
    """What `resume` needs: the file as it was, where it lay, and what was said besides."""
    write_atomically(folder / "sweep.yaml", functools.partial(_fill, spec.text))
    AsRun.of(spec).write(folder)


def _write_results(found: Comparison, folder: Path) -> list[Path]:
    """The comparison as files, for people and programs."""
    texts = {"comparison.md": markdown(found), "comparison.csv": csv_text(found)}
    for name, text in texts.items():
        write_atomically(folder / name, functools.partial(_fill, text))
    write_json(folder / RESULT, found.as_dict())
    files = [folder / name for name in (*texts, RESULT)]
    if found.curves:
        axes = {"id_metric": found.terms.id_metric, "ood_metric": found.terms.ood}
        plot(found.curves, folder / "wise_ft.png", title=found.sweep, **axes)
        files.append(folder / "wise_ft.png")
    return files


def _read(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def _described(spec: SweepSpec, found: Comparison, *, has_page: bool) -> str:
    """What MLflow's page of the sweep says of it, as Markdown. It folds all but some lines."""
    parts = [f"[The report, with charts and images]({ARTIFACT}{PAGE})"] if has_page else []
    parts.append(f"**Verdict.** {found.verdict}")
    if found.selected is not None:
        parts.append(f"**Selected.** `{found.selected.label}`, by {found.rule.metric}.")
    if spec.description:
        parts.append(spec.description)
    return "\n\n".join(parts)


def _fill(text: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")


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
        "carft.selection": str(spec.selection.to_short()),
    }
    if spec.description:
        tags["mlflow.note.content"] = spec.description
    if spec.overrides:
        tags["carft.overrides"] = " ".join(spec.overrides)
    return tags


class Interruption:
    """Stops the engine: at the first signal or request after the epoch, at the second at once."""

    def __init__(self, engine: Engine, progress: Progress) -> None:
        self.asked = False
        self._engine, self._progress = engine, progress

    def stop(self, now: bool) -> None:
        """May be called by any thread. Only `now` changes anything when it is stopping already."""
        first, self.asked = not self.asked, True
        if first or now:
            self._engine.stop(now=now)
        if first and not now:
            self._progress.note("stopping after this epoch; once more stops at once")

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Stop at Ctrl-C and SIGTERM. Python handles signals in its main thread alone: elsewhere
        nothing is changed.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            del number, frame
            self.stop(now=self.asked)

        numbers: Sequence[signal.Signals] = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, handle) for number in numbers]
        try:
            yield
        finally:
            for number, old in zip(numbers, before, strict=True):
                signal.signal(number, old)
