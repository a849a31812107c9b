"""The command that runs a sweep, and how it shows what comes of it."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

from rich.console import Console

from carft_sweep.carft_core.data.images import UNREADABLE
from carft_sweep.sweeps.api import run_with_services
from carft_sweep.sweeps.cli import FAILED, INTERRUPTED, Emit
from carft_sweep.sweeps.cli.parser import overrides
from carft_sweep.sweeps.cli.status import failed_runs
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.generations import COPY, Invocation
from carft_sweep.sweeps.ledger.ledger import find_ledger
from carft_sweep.sweeps.ledger.runs import RunState
from carft_sweep.sweeps.ledger.status import best_points
from carft_sweep.sweeps.results.artifacts import PAGE
from carft_sweep.sweeps.results.export import baseline_command
from carft_sweep.sweeps.scheduler.progress import LiveProgress, Progress, to_stderr
from carft_sweep.sweeps.scheduler.session import RunOptions, SweepResult
from carft_sweep.sweeps.spec.spec import SweepSpec, is_recipe, load_spec
from carft_sweep.tracking.comparison.spec import SEEDS_FOR_CLAIM
from carft_sweep.tracking.console import PlainConsole
from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError, counted
from carft_sweep.tracking.program import SUBMITTED, command, program
from carft_sweep.tracking.report.formats import to_json
from carft_sweep.tracking.report.terminal import terminal

CAUSES = 3
"""The most different failures that the end shows."""
TAIL = 12
"""Lines of a log that the end shows."""
EXIT_CODES: Mapping[str, int] = {"done": 0, "failed": FAILED, "interrupted": INTERRUPTED}


def run_and_print(
    spec: SweepSpec,
    home: Home,
    arguments: argparse.Namespace,
    emit: Emit,
    options: RunOptions,
    notes: Sequence[str] = (),
) -> int:
    """Run a sweep with progress, print its result and the next command; return the exit code.
    Raises as `run_with_services` does."""
    console = PlainConsole(stderr=True)

    def out(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    try:
        show = partial(_print_result, arguments=arguments, emit=emit)
        ended = run_with_services(
            spec,
            home,
            _progress(spec.name, arguments, console),
            replace(options, ended=show, undelivered=out),
            in_process=arguments.in_process,
            notes=notes,
        )
    except (OSError, ServiceUnreachable, TrackingError) as error:
        if not (home.sweep(spec.name) / COPY).exists():
            raise  # it never began
        resume = _resume(spec.name, arguments)
        error.add_note(f"Finished work is kept. Once this is fixed, resume it: {resume}")
        raise
    except KeyboardInterrupt:
        if (home.sweep(spec.name) / COPY).exists():
            out(_interrupted(spec.name, arguments))
        return INTERRUPTED
    if not arguments.quiet:
        for line in _next_words(ended, spec, home, arguments):
            out(line)
    for line in _last_words(ended, home, arguments):
        out(line)
    return EXIT_CODES[ended.state]


def _progress(name: str, arguments: argparse.Namespace, console: Console) -> Progress:
    if console.is_terminal and not (arguments.in_process or arguments.quiet):
        so_far = command("compare", name, arguments.home)
        return LiveProgress(console, f"results so far: {so_far}")
    return Progress(to_stderr, quiet=arguments.quiet)


def _print_result(ended: SweepResult, arguments: argparse.Namespace, emit: Emit) -> None:
    if arguments.json:
        emit(json.dumps(to_json(ended.comparison), indent=1, allow_nan=False))
    elif ended.done and ended.state != "interrupted":
        output = PlainConsole()
        emit("")
        text = terminal(ended.comparison, width=output.width, colour=output.is_terminal)
        emit(text.rstrip(), styled=True)


def _next_words(
    ended: SweepResult, spec: SweepSpec, home: Home, arguments: argparse.Namespace
) -> Iterator[str]:
    """Yield lines that name the report, MLflow's pages, and the command that a verdict needs."""
    if ended.state != "done":
        return
    page = home.sweep(spec.name) / PAGE
    if page.exists():
        yield f"Report: {page}"
    of_home = ["--home", arguments.home] if arguments.home else []
    yield f"All sweeps: {program()} {shlex.join(['ui', *of_home])}"
    for better in baseline_command(ended.comparison, spec.name):
        yield f"The verdict is against the selected model; {better.model}: {better.command}"
    verdict = ended.comparison.answer.verdict
    others = [gap for gap in ended.obstacles if not gap.override]
    yield from (f"{gap.describe()}." for gap in others)
    obstacle = next((gap for gap in ended.obstacles if gap.override), None)
    override = None
    if obstacle is not None:
        then = "there are enough" if others else "it is"
        yield f"{obstacle.reason}. With {obstacle.runs} more runs {then}:"
        override = obstacle.override
    elif verdict is not None and verdict.tried > 1 and spec.tasks is None:
        yield "To judge what was chosen on seeds that no choice has seen:"
        override = f"confirm_seeds={SEEDS_FOR_CLAIM}"
    if override is not None:
        key, _, value = override.partition("=")
        changed = Invocation.of(spec).with_override(key, value)
        sets = [word for text in changed.overrides for word in ("--set", text)]
        imports = [word for module in arguments.imports for word in ("--import", module)]
        file = spec.source_path.stem if is_recipe(spec.source_path) else str(spec.source_path)
        own = f"{program()} {shlex.join(['run', file, *of_home])}"
        yield f"  {os.environ.get(SUBMITTED, own)} {shlex.join([*imports, *sets])}"


def _last_words(ended: SweepResult, home: Home, arguments: argparse.Namespace) -> Iterator[str]:
    name = ended.comparison.sweep
    resume = command("resume", name, arguments.home)
    if ended.failures:
        yield f"{counted(len(ended.failures), 'run')} failed."
        yield from _causes(home, failed_runs(home, find_ledger(home, name), most=50))
        yield f"To try what failed again: {resume} --failed"
    if ended.broken is not None:
        yield f"The sweep was stopped: {ended.broken}"
        yield f"Once this is fixed, resume it: {resume}"
    elif ended.state == "interrupted":
        yield _interrupted(name, arguments)


def _interrupted(name: str, arguments: argparse.Namespace) -> str:
    return f"Interrupted. To go on: {_resume(name, arguments)}"


def _resume(name: str, arguments: argparse.Namespace) -> str:
    # A cluster that the home alone names is not connected to.
    cluster = ["--address", arguments.address] if arguments.address else []
    return command("resume", name, arguments.home, *cluster)


def _causes(home: Home, failed: Sequence[RunState]) -> Iterator[str]:
    """Yield lines for one run of each of the last causes of failure, with the end of its log."""
    by_cause: dict[tuple[str, str], list[RunState]] = {}
    for run in failed:
        failure = run.failure or {}
        by_cause.setdefault((failure["kind"], failure["message"]), []).append(run)
    for (kind, message), runs in list(by_cause.items())[-CAUSES:]:
        more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        yield f"\n{runs[-1].label}{more}  {kind}: {message}"
        if UNREADABLE in message:
            yield "  To leave out all images that cannot be read: --set data.bad_files=skip"
        # What is wrong with the data is said by the message alone.
        tail = "" if kind == "data" else (runs[-1].failure or {}).get("log_tail", "")
        yield from (f"  | {line}" for line in tail.splitlines()[-TAIL:])
        yield f"  log: {home.runs / runs[-1].digest / 'log.txt'}"


def run_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the `run` command and return its exit code."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    best_of = partial(best_points, home)
    spec = load_spec(arguments.file, overrides(arguments), arguments.imports, best_of=best_of)
    options = RunOptions(address=arguments.address, fresh=arguments.fresh)
    return run_and_print(spec, home, arguments, emit, options)
