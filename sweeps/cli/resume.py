"""The command that resumes a sweep, also a paused one: resume."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.parser import keys
from carft_sweep.sweeps.home import find_home
from carft_sweep.sweeps.ledger.claim import DRIVER, holder, limits_of, set_limits
from carft_sweep.sweeps.ledger.generations import Invocation
from carft_sweep.sweeps.ledger.ledger import Ledger, find_ledger
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import has_work_left, summary_of
from carft_sweep.tracking.program import command


def resume_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the `resume` command and return its exit code."""
    home = find_home(arguments.home, trust=arguments.trust_home).absolute()
    ledger = find_ledger(home, arguments.sweep)
    before, folder = Invocation.last(ledger), home.sweep(arguments.sweep)
    driver = holder(folder)
    if driver is not None and limits_of(folder, driver).is_paused:
        _unpause(arguments, folder)
        emit(f"Asked {driver} to go on with {arguments.sweep}.")
        return 0
    overrides = keys(arguments)
    as_it_was = not overrides and not arguments.imports
    failed_again, runs = arguments.failed, RunStore(home.runs)
    # A driver lets go when it has sent the end of the sweep: one that was killed has not.
    has_ended = as_it_was and not (folder / DRIVER).exists()
    # Of a sweep as it was run the ledger says enough, and nothing that trains is imported.
    is_done = has_ended and summary_of(ledger)["state"] == "done"
    if is_done and not has_work_left(ledger, runs, failed_again=failed_again):
        if arguments.json:
            # They load what computes, which takes three times as long as all else here.
            from carft_sweep.sweeps.results.records import comparison
            from carft_sweep.tracking.report.formats import to_json

            compared = comparison(ledger, runs)
            emit(json.dumps(to_json(compared), indent=1, allow_nan=False))
            return 0
        emit(_nothing_to_do(ledger, arguments.home))
        if (change := before.change(folder)) is not None:
            emit(change)
        return 0

    from carft_sweep.sweeps.cli.run import run_and_print
    from carft_sweep.sweeps.engines.factory import vet_address
    from carft_sweep.sweeps.scheduler.session import RunOptions
    from carft_sweep.sweeps.spec.user_code import resolve, vet_of

    more = resolve(arguments.imports, Path.cwd())
    vet = vet_of(home, besides=more)
    with before.working_directory() as lost:
        now = replace(before, imports=tuple(dict.fromkeys([*before.imports, *more])))
        for key, value in overrides.items():
            now = now.with_override(key, value)
        spec, changed = now.load(folder, vet)
        address = arguments.address
        if address is None and spec.engine != "local":
            address = vet_address(before.address, home)  # the cluster that it was run on
        options = RunOptions(address=address, failed_again=failed_again)
        notes = [note for note in (changed, lost) if note]
        return run_and_print(spec, home, arguments, emit, options, notes)


def _unpause(arguments: argparse.Namespace, folder: Path) -> None:
    """Let the driver of a paused sweep go on. Raises RequestError for options that it cannot take
    up."""
    names = ("failed", "json", "in_process", "timeout", "data_root", "engine", "address", "imports")
    options = [f"--{name.removesuffix('s')}" for name in names if getattr(arguments, name)]
    if options:
        listed = ", ".join(options).replace("_", "-")
        raise RequestError(
            f"{arguments.sweep} is paused, and goes on as it began: leave {listed} out, or stop "
            "it first"
        )
    count = arguments.parallel
    more = {} if count is None else {"parallel": None if count == "auto" else count}
    set_limits(folder, is_paused=False, **more)


def _nothing_to_do(ledger: Ledger, option: str | None) -> str:
    name, trials = ledger.name, ledger.trials()
    failed = sum(trial.state == "failed" for trial in trials)
    text = (
        f"{name} has nothing left to do: {len(trials) - failed} of {len(trials)} trials have "
        f"ended. The result: {command('compare', name, option)}"
    )
    if not failed:
        return text
    again = command("resume", name, option)
    return f"{text}\n{failed} failed; to try them again: {again} --failed"
