"""The command that goes on with a sweep: resume."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.parser import keys
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.claim import DRIVER
from carft_sweep.sweeps.ledger.generations import Invocation
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import has_work_left, summary_of
from carft_sweep.sweeps.ledger.trials import Ledger, find_ledger
from carft_sweep.tracking.program import command, program

if TYPE_CHECKING:
    from carft_sweep.sweeps.spec.spec import SweepSpec


def resume_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the command."""
    home = find_home(arguments.home, trust=arguments.trust_home).absolute()
    ledger = find_ledger(home, arguments.sweep)
    before, folder = Invocation.last(ledger), home.sweep(arguments.sweep)
    overrides = keys(arguments)
    as_it_was = not overrides and not arguments.imports and arguments.trials is None
    # Of a sweep as it was run the ledger says enough, and nothing that trains is imported.
    if as_it_was and _is_done(home, ledger, failed_again=arguments.failed):
        emit(_nothing_to_do(ledger, arguments.home))
        return 0

    from carft_sweep.sweeps.cli.run import carry_out
    from carft_sweep.sweeps.engines.factory import vet_address
    from carft_sweep.sweeps.spec.user_code import resolve, vet_of

    more = resolve(arguments.imports, Path.cwd())
    vet = vet_of(home, besides=more)
    with before.working_directory() as lost:
        now = replace(before, imports=tuple(dict.fromkeys([*before.imports, *more])))
        for key, value in overrides.items():
            now = now.with_override(key, value)
        spec, changed = now.load(folder, vet)
        if arguments.trials is not None:
            now = now.with_override("run_cap", _cap(spec, arguments.trials))
            spec, changed = now.load(folder, vet)
        address = arguments.address
        if address is None and spec.engine != "local":
            address = vet_address(before.address, home)  # the cluster that it was run on
        return carry_out(
            spec,
            home,
            arguments,
            emit,
            address=address,
            notes=[note for note in (changed, lost) if note],
            failed_again=arguments.failed,
        )


def _cap(spec: SweepSpec, more: int) -> int:
    """The `run_cap` with which there are `more` trials. Raises RequestError for a whole grid."""
    if spec.method != "grid":
        return spec.trial_count + more
    whole = spec.model_copy(update={"run_cap": None}).trial_count
    if spec.trial_count == whole:
        raise RequestError(
            f"the grid of {spec.name} has {whole} point{'' if whole == 1 else 's'} and no more; "
            f"give its parameters more values in {spec.source_path}, then: {program()} run "
            f"{spec.source_path}"
        )
    return min(spec.trial_count + more, whole)


def _is_done(home: Home, ledger: Ledger, *, failed_again: bool) -> bool:
    """Whether another execution of the sweep as it was run would find nothing to do."""
    # A driver lets go when it has sent the end of the sweep: one that was killed has not.
    if summary_of(ledger)["state"] != "done" or (ledger.file.parent / DRIVER).exists():
        return False
    return not has_work_left(ledger, RunStore(home.runs), failed_again=failed_again)


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
