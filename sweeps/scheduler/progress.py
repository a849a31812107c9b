"""What a sweep shows while it runs: plain lines, or a live display."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as ProgressBars
from rich.table import Column
from rich.text import Text

from carft_sweep.tracking.comparison.metrics import is_fraction
from carft_sweep.tracking.console import printable

RESUMABLE = "it resumes from its last checkpoint"
ACCURACIES = {"id/val/top1": "val", "id/test/top1": "test", "ood/mean/top1": "ood"}
MEASURED = 10
"""How many of the last ended runs tell how long a run takes, and how many are side by side."""


def seconds_left(
    ended: Sequence[tuple[float, float]], running: Sequence[float], to_come: int, now: float
) -> float | None:
    """Estimate the seconds until `to_come` runs have ended, running ones included. `ended` has
    start and end of each ended run, sorted by end, `running` the start of each running one. Returns
    None before a run has ended."""
    last = ended[-MEASURED:]
    if not last:
        return None
    usual = sum(end - began for began, end in last) / len(last)
    spans = [*last, *((began, now) for began in running)]
    # Not the runs under way alone: where one has just ended, the next has not begun.
    places = max(sum(b <= began < end for b, end in spans) for began, _ in spans)
    busy = sorted(max(0.0, usual - (now - began)) for began in running)
    free = [0.0] * (max(1, places) - len(busy)) + busy
    rounds, rest = divmod(max(0, to_come - len(busy)), len(free))
    return rounds * usual + max(free[-1], usual + free[rest - 1] if rest else 0.0)


def to_stderr(text: str) -> None:
    """Print a line to standard error, at once, even into a pipe and from a signal's handler."""
    with _at_once(text):
        sys.stderr.write(f"{printable(text)}\n")
        sys.stderr.flush()


@contextmanager
def _at_once(text: str) -> Iterator[None]:
    """Print `text` within the context; write it to standard error directly where Python refuses to
    print, since a signal handler has interrupted another write."""
    try:
        yield
    except RuntimeError:
        os.write(2, f"{printable(text)}\n".encode())


class ShownRun(Protocol):
    """A run as progress shows it. Two runs may read alike; their digests differ."""

    @property
    def digest(self) -> str:
        """The run's digest."""

    @property
    def label(self) -> str:
        """The run's text, such as `car_ft kl_weight=0.3 seed 1`."""


class Progress:
    """Counts runs, and prints a line for each epoch and each end of a run: for logs and pipes. With
    `quiet` only failures are printed."""

    def __init__(self, emit: Callable[[str], None], *, quiet: bool = False) -> None:
        self.total = self._most = 0
        self.ended_runs = 0
        self._ended: list[tuple[float, float]] = []
        """When each run that was trained here began and ended."""
        self._emit = emit
        self._quiet = quiet
        self._open: dict[str, float] = {}
        """When the first epoch of each running run was reported, by digest."""
        self._last_failure: tuple[str, str] | None = None

    def begin(self, total: int) -> None:
        """Begin to show progress, with the maximal number of runs, including finished ones."""
        self.total = self._most = total

    def note(self, text: str) -> None:
        """Print a message that a reader should know."""
        if not self._quiet:
            self._emit(text)

    def started(self, run: ShownRun) -> None:
        """Show that a run begins."""

    def epoch(self, run: ShownRun, report: Mapping[str, Any]) -> None:
        """Show the epoch and the metrics of a run."""
        # The first report, not the start: before it models and data are opened, for all runs.
        self._open.setdefault(run.digest, time.monotonic())
        epoch = f"epoch {report['epoch']}/{report['epochs']}"
        self.note(f"        {run.label}  {epoch}  {figures(report['metrics'])}".rstrip())

    def done(self, run: ShownRun, metrics: Mapping[str, float], *, reused: bool) -> None:
        """Count a complete run and show its metrics; `reused` if it was trained earlier."""
        self.ended_runs += 1
        began = self.end(run)
        if not reused and began is not None:
            self._ended.append((began, time.monotonic()))
        word = "reused" if reused else "done"
        self.note(f"{self._place()} {run.label}  {word}  {figures(metrics)}{self._left()}".rstrip())

    def fail(self, run: ShownRun, kind: str, message: str, *, again: bool) -> None:
        """Count a failed run, unless the run is tried again."""
        self.end(run)
        self.ended_runs += not again
        end = "; it is tried again" if again else ""
        is_repeated = (kind, message) == self._last_failure
        reason = "as the one before" if is_repeated else message
        self._last_failure = kind, message
        self._emit(f"{self._place()} {run.label}  failed ({kind}): {reason}{end}")

    def stopped(self, run: ShownRun, reason: str = RESUMABLE) -> None:
        """Show that a run was closed early."""
        self.end(run)
        self.note(f"        {run.label}  stopped; {reason}")

    def prune(self, label: str, reason: str, *, runs: int) -> None:
        """Show that a trial ends; `runs` of its runs are no longer needed."""
        self.skip(runs)
        self.note(f"{self._place()} {label}  pruned: {reason}")

    def skip(self, runs: int) -> None:
        """Subtract runs that are not needed from the total."""
        self.total -= runs

    def best(self, setting: str, metric: str, value: float) -> None:
        """Show the best setting so far with its metric in the line below the bars."""

    def close(self) -> None:
        """Restore the terminal."""

    @property
    def shown_total(self) -> int:
        """The expected number of runs. A trial that repeats another's runs adds none, which is
        known only when the trial is reached."""
        return max(self.ended_runs, min(self.total, self._most))

    def left(self) -> float | None:
        """Estimate the seconds left from the runs so far; None before the first has ended."""
        to_come = self.shown_total - self.ended_runs
        return seconds_left(self._ended, [*self._open.values()], to_come, time.monotonic())

    def end(self, run: ShownRun) -> float | None:
        """Remove the line of a run; return when its first epoch was reported, or None."""
        return self._open.pop(run.digest, None)

    def _place(self) -> str:
        return f"[{self.ended_runs:>{len(str(self.shown_total))}}/{self.shown_total}]"

    def _left(self) -> str:
        left = self.left()
        return f"  {duration(left)} left" if left else ""


class _Bars(ProgressBars):
    """Bars, and lines of text below them."""

    def __init__(self, *columns: ProgressColumn, **options: Any) -> None:
        self.below: list[str] = []  # first: the parent renders once before it returns
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterator[RenderableType]:
        """Yield the bars and lines on show."""
        yield from super().get_renderables()
        for line in self.below:
            yield Text(line, no_wrap=True, overflow="ellipsis")


class LiveProgress(Progress):
    """Progress on a terminal: lines for ended runs, and below them a bar for the sweep and for each
    running run, the best setting so far, and a hint where to see more."""

    def __init__(self, console: Console, hint: str = "") -> None:
        def emit(text: str) -> None:
            with _at_once(text):
                console.print(Text(text))

        super().__init__(emit)
        self._best, self._hint = "", hint
        one_line = Column(no_wrap=True, overflow="ellipsis")
        self._bars = _Bars(
            TextColumn("{task.description}", table_column=one_line),
            BarColumn(12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[state]}", table_column=one_line),
            console=console,
            refresh_per_second=4,
            transient=True,
        )
        self._sweep: TaskID | None = None
        self._rows: dict[str, TaskID] = {}

    def begin(self, total: int) -> None:
        """Implement `Progress.begin`."""
        super().begin(total)
        self._sweep = self._bars.add_task("runs", total=total, state="")
        self._show_below()
        self._bars.start()  # from here on somebody closes it, however the sweep ends

    def started(self, run: ShownRun) -> None:
        """Implement `Progress.started`."""
        self._rows[run.digest] = self._bars.add_task(run.label, total=None, state="starting")

    def epoch(self, run: ShownRun, report: Mapping[str, Any]) -> None:
        """Implement `Progress.epoch`."""
        self._open.setdefault(run.digest, time.monotonic())
        if run.digest not in self._rows:
            self.started(run)
        epoch, epochs = report["epoch"], report["epochs"]
        state = "evaluating" if epoch >= epochs else figures(report["metrics"])
        self._bars.update(self._rows[run.digest], completed=epoch, total=epochs, state=state)
        self._refresh()

    def skip(self, runs: int) -> None:
        """Implement `Progress.skip`."""
        super().skip(runs)
        self._refresh()

    def best(self, setting: str, metric: str, value: float) -> None:
        """Implement `Progress.best`."""
        self._best = f"best so far: {setting}, {metric} {value_text(metric, value)}"
        self._show_below()

    def close(self) -> None:
        """Implement `Progress.close`."""
        self._bars.stop()

    def _show_below(self) -> None:
        self._bars.below = [line for line in (self._best, self._hint) if line]

    def end(self, run: ShownRun) -> float | None:
        """Implement `Progress.end`."""
        if run.digest in self._rows:
            self._bars.remove_task(self._rows.pop(run.digest))
        self._refresh()
        return super().end(run)

    def _left(self) -> str:
        self._refresh()
        return ""

    def _refresh(self) -> None:
        if self._sweep is None:
            return
        total = self.shown_total
        state = "comparing" if self.ended_runs == total > 0 else super()._left().strip()
        self._bars.update(self._sweep, completed=self.ended_runs, total=total, state=state)


def figures(metrics: Mapping[str, float]) -> str:
    """Return metrics as `loss 0.412 val 81.2 % test 80.9 % ood 61.0 %`, without missing ones."""
    loss = [f"loss {metrics['train/loss']:.4g}"] if "train/loss" in metrics else []
    accuracy = {word: metrics[name] for name, word in ACCURACIES.items() if name in metrics}
    return "  ".join([*loss, *(f"{word} {100 * value:.1f} %" for word, value in accuracy.items())])


def value_text(metric: str, value: float) -> str:
    """Return an accuracy as `81.2 %`, the value of another metric as `0.4120`."""
    return f"{100 * value:.1f} %" if is_fraction(metric) else f"{value:.4f}"


def duration(seconds: float) -> str:
    """Return seconds as `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
