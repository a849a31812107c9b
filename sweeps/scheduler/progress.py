"""What a sweep shows while it runs: a live display, plain lines, or nothing but its end."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

Say = Callable[[str], None]
RESUMABLE = "it goes on from its last epoch"
SHOWN = ("id/val/top1", "id/test/top1", "ood/mean/top1")


def to_stderr(text: str) -> None:
    """A line on standard error, at once: also into a pipe."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Progress:
    """Counts, and says nothing."""

    def __init__(self) -> None:
        self.total = 0
        self.ended_runs = 0
        self.reused = 0
        self.failed = 0
        self.pruned = 0
        """Trials."""
        self.seconds: list[float] = []
        self._began = time.monotonic()
        self._open: dict[str, float] = {}

    def begin(self, total: int) -> None:
        """So many runs there are, done ones included."""
        self.total = total

    def note(self, text: str) -> None:
        """Something a reader should know."""

    def started(self, label: str) -> None:
        """A run begins."""

    def epoch(self, label: str, report: Mapping[str, Any]) -> None:
        """A run has come so far."""
        del report
        # The first report, not the start: before it models and data are opened, for all runs.
        self._open.setdefault(label, time.monotonic())

    def done(self, label: str, metrics: Mapping[str, float], *, reused: bool) -> None:
        """A run is complete."""
        del metrics
        self.ended_runs += 1
        began = self._open.pop(label, None)
        if reused:
            self.reused += 1
        elif began is not None:
            self.seconds.append(time.monotonic() - began)

    def fail(self, label: str, kind: str, message: str, *, again: bool) -> None:
        """A run has failed."""
        del kind, message
        self._open.pop(label, None)
        if not again:
            self.ended_runs += 1
            self.failed += 1

    def stopped(self, label: str, reason: str = RESUMABLE) -> None:
        """A run was closed early."""
        del reason
        self._open.pop(label, None)

    def prune(self, label: str, reason: str, *, runs: int) -> None:
        """A trial is not gone on with; so many of its runs need no end any more."""
        del reason
        self._open.pop(label, None)
        self.pruned += 1
        self.skip(runs)

    def skip(self, runs: int) -> None:
        """So many runs are not needed."""
        self.total -= runs

    def close(self) -> None:
        """Nothing more comes."""

    def left(self) -> float | None:
        """Seconds to go, from what runs took so far; None before the first."""
        if not self.seconds:
            return None
        mean = sum(self.seconds) / len(self.seconds)
        running = sum(min(mean, time.monotonic() - began) for began in self._open.values())
        side_by_side = max(1, len(self._open))
        return max(0.0, mean * (self.total - self.ended_runs) - running) / side_by_side


class Quiet(Progress):
    """Only what needs attention."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def fail(self, label: str, kind: str, message: str, *, again: bool) -> None:
        """See Progress."""
        super().fail(label, kind, message, again=again)
        self._say(failure_line(label, kind, message, again=again))


class Plain(Progress):
    """One line for each epoch and each end of a run: for logs and pipes."""

    def __init__(self, say: Say) -> None:
        super().__init__()
        self._say = say

    def note(self, text: str) -> None:
        """See Progress."""
        self._say(text)

    def epoch(self, label: str, report: Mapping[str, Any]) -> None:
        """See Progress."""
        super().epoch(label, report)
        self._say(f"        {label}  {epoch_line(report)}")

    def done(self, label: str, metrics: Mapping[str, float], *, reused: bool) -> None:
        """See Progress."""
        super().done(label, metrics, reused=reused)
        word = "reused" if reused else "done"
        self._say(f"{self._place()} {label}  {word}  {accuracies(metrics)}{self._left()}".rstrip())

    def fail(self, label: str, kind: str, message: str, *, again: bool) -> None:
        """See Progress."""
        super().fail(label, kind, message, again=again)
        self._say(f"{self._place()} {failure_line(label, kind, message, again=again)}")

    def stopped(self, label: str, reason: str = RESUMABLE) -> None:
        """See Progress."""
        super().stopped(label, reason)
        self._say(f"        {label}  stopped; {reason}")

    def prune(self, label: str, reason: str, *, runs: int) -> None:
        """See Progress."""
        super().prune(label, reason, runs=runs)
        self._say(f"{self._place()} {label}  pruned: {reason}")

    def _place(self) -> str:
        return f"[{self.ended_runs:>{len(str(self.total))}}/{self.total}]"

    def _left(self) -> str:
        left = self.left()
        return f"  {duration(left)} left" if left else ""


class Shown(Plain):
    """Lines for what has ended, and below them one that lives."""

    def __init__(self, console: Console) -> None:
        super().__init__(lambda text: console.print(Text(text)))
        self._current: dict[str, str] = {}
        self._live = Live(
            console=console, get_renderable=self._render, refresh_per_second=4, transient=True
        )

    def begin(self, total: int) -> None:
        """See Progress."""
        super().begin(total)
        self._live.start()  # from here on somebody closes it, however the sweep ends

    def started(self, label: str) -> None:
        """See Progress."""
        super().started(label)
        self._current[label] = "starting"

    def epoch(self, label: str, report: Mapping[str, Any]) -> None:
        """See Progress."""
        Progress.epoch(self, label, report)
        last = report["epoch"] >= report["epochs"]
        self._current[label] = epoch_line(report) + ("  evaluating" if last else "")

    def done(self, label: str, metrics: Mapping[str, float], *, reused: bool) -> None:
        """See Progress."""
        self._current.pop(label, None)
        super().done(label, metrics, reused=reused)

    def fail(self, label: str, kind: str, message: str, *, again: bool) -> None:
        """See Progress."""
        self._current.pop(label, None)
        super().fail(label, kind, message, again=again)

    def stopped(self, label: str, reason: str = RESUMABLE) -> None:
        """See Progress."""
        self._current.pop(label, None)
        super().stopped(label, reason)

    def prune(self, label: str, reason: str, *, runs: int) -> None:
        """See Progress."""
        self._current.pop(label, None)
        super().prune(label, reason, runs=runs)

    def close(self) -> None:
        """See Progress."""
        self._live.stop()

    def _left(self) -> str:
        return ""

    def _render(self) -> Text:
        left = self.left()
        parts = [f"{self.ended_runs} of {self.total} runs"]
        parts.append(f"{duration(time.monotonic() - self._began)} gone")
        if self.ended_runs == self.total > 0:
            parts.append("comparing")
        elif left is not None:
            parts.append(f"{duration(left)} left")
        lines = ["  ".join(parts), *(f"{name}  {at}" for name, at in self._current.items())]
        return Text("\n".join(lines), no_wrap=True, overflow="ellipsis")


def epoch_line(report: Mapping[str, Any]) -> str:
    """`epoch 3/10  loss 0.412  val 81.2 %`."""
    metrics = report["metrics"]
    parts = [f"epoch {report['epoch']}/{report['epochs']}"]
    if "train/loss" in metrics:
        parts.append(f"loss {metrics['train/loss']:.4g}")
    return "  ".join(part for part in (*parts, accuracies(metrics)) if part)


def accuracies(metrics: Mapping[str, float]) -> str:
    """`val 81.2 %  test 80.9 %  ood 61.0 %`, as far as they are there."""
    names = {"id/val/top1": "val", "id/test/top1": "test", "ood/mean/top1": "ood"}
    return "  ".join(
        f"{names[name]} {100 * metrics[name]:.1f} %" for name in SHOWN if name in metrics
    )


def failure_line(label: str, kind: str, message: str, *, again: bool) -> str:
    """What happened, and whether it is tried once more."""
    end = "; it is tried again" if again else ""
    return f"{label}  failed ({kind}): {message}{end}"


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
