"""What `run` and `resume` share: an execution from the validated sweep to its last words."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console

from sweeps.home import Home
from sweeps.known import command
from sweeps.live import FailedRun, failed_runs
from sweeps.named import look
from sweeps.performing import perform
from sweeps.progress import Plain, Progress, Quiet, Shown, to_stderr
from sweeps.session import Ended
from sweeps.spec import SweepSpec
from sweeps.webhook import webhook_url
from tracking.base import ServiceUnreachable, TrackingError
from tracking.report import terminal

Say = Callable[[str], None]
CAUSES = 3
"""So many different failures are told at the end."""
TAIL = 12
"""Lines of a log that the end shows."""


def carry_out(
    spec: SweepSpec,
    home: Home,
    arguments: argparse.Namespace,
    say: Say,
    *,
    address: str | None,
    notes: Sequence[str] = (),
    fresh: bool = False,
    failed_again: bool = False,
) -> int:
    """Execute a sweep, show how it goes, and say how it ended and how to go on; the exit code.

    `address` is of the Ray cluster, where one was named; `resume` knows it again. Raises
    RequestError when the request cannot be met, ServiceUnreachable when no Ray answers.
    """
    console = Console(stderr=True)

    def out(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    try:
        ended = perform(
            spec,
            home,
            _progress(arguments, console),
            address=address,
            in_process=arguments.in_process,
            webhook=None if arguments.webhook == "no" else webhook_url(spec.webhook),
            notes=notes,
            fresh=fresh,
            failed_again=failed_again,
            ended=lambda ended: _tell(ended, arguments, say),
            undelivered=out,
        )
    except (OSError, ServiceUnreachable, TrackingError) as error:
        if not (home.sweep(spec.name) / "sweep.yaml").exists():
            raise  # it never began
        resume = command("resume", spec.name, arguments.home)
        error.add_note(f"Nothing that was done is lost. Once that is mended: {resume}")
        raise
    for line in _last_words(ended, home, arguments):
        out(line)
    return ended.exit_code


def _progress(arguments: argparse.Namespace, console: Console) -> Progress:
    if arguments.quiet:
        return Quiet(to_stderr)
    if console.is_terminal and not arguments.in_process:
        return Shown(console)
    return Plain(to_stderr)


def _tell(ended: Ended, arguments: argparse.Namespace, say: Say) -> None:
    if arguments.json:
        say(json.dumps(ended.comparison.as_dict(), indent=1, allow_nan=False))
    elif ended.done and not ended.interrupted:
        output = Console()
        say("")
        text = terminal(ended.comparison, width=output.width, colour=output.is_terminal)
        say(text.rstrip())


def _last_words(ended: Ended, home: Home, arguments: argparse.Namespace) -> Iterator[str]:
    name = ended.comparison.sweep
    resume = command("resume", name, arguments.home)
    if ended.failures:
        count = len(ended.failures)
        yield f"{count} run{'' if count == 1 else 's'} failed."
        yield from _causes(failed_runs(home, look(home, name), most=50))
        yield f"To try what failed again: {resume} --failed"
    if ended.broken is not None:
        yield f"The sweep was given up: {ended.broken}"
        yield f"Once that is mended: {resume}"
    elif ended.interrupted:
        yield f"Interrupted. To go on: {resume}"


def _causes(failed: Sequence[FailedRun]) -> Iterator[str]:
    """One run for each of the last causes, the last one last, with the end of its log."""
    by_cause = {(run.kind, run.message): run for run in failed}
    for run in list(by_cause.values())[-CAUSES:]:
        yield f"\n{run.label}  {run.kind}: {run.message}"
        for line in run.log_tail.splitlines()[-TAIL:]:
            yield f"  | {line}"
        yield f"  log: {run.folder / 'log.txt'}"
