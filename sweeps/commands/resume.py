"""`carft-sweep resume SWEEP`: go on with a sweep by its name, as it was run."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from carft_core.errors import RequestError
from carft_core.files import read_json
from sweeps.arguments import keys
from sweeps.as_run import AsRun
from sweeps.claim import holder
from sweeps.home import Home, find_home
from sweeps.imports import resolve
from sweeps.known import command, sweep_folder
from sweeps.live import is_open
from sweeps.named import look

if TYPE_CHECKING:
    from sweeps.spec import SweepSpec

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = Home(find_home(arguments.home).path.absolute())
    folder = sweep_folder(home, arguments.sweep)
    before = AsRun.read(folder)
    more = resolve(arguments.imports, Path.cwd())
    with before.in_its_folder() as lost:
        now = replace(before, imports=tuple(dict.fromkeys([*before.imports, *more])))
        for key, value in keys(arguments).items():
            now = now.changed(key, value)
        spec, changed = now.load(folder)
        if arguments.trials is not None:
            spec, changed = now.changed("run_cap", _cap(spec, arguments.trials)).load(folder)
        if _is_done(home, spec, failed_again=arguments.failed):
            for line in _nothing_to_do(home, spec.name, arguments.home):
                say(line)
            return 0
        from sweeps.commands.execution import carry_out

        return carry_out(
            spec,
            home,
            arguments,
            say,
            address=_address(arguments.address, before, spec),
            notes=[note for note in (changed, lost) if note],
            failed_again=arguments.failed,
        )


def _address(given: str | None, before: AsRun, spec: SweepSpec) -> str | None:
    """Of the cluster to go on with: what is given, else the one it was run on."""
    if given is not None:
        return given
    return None if spec.engine == "local" else before.address


def _cap(spec: SweepSpec, more: int) -> int:
    """The `run_cap` with which there are `more` trials. Raises RequestError for a whole grid."""
    if spec.method != "grid":
        return spec.trial_count + more
    whole = replace(spec, run_cap=None).trial_count
    if spec.trial_count == whole:
        raise RequestError(
            f"the grid of {spec.name} has no more points than its {whole} trials; give its "
            f"parameters more values in {spec.source_path}, then: carft-sweep run "
            f"{spec.source_path}"
        )
    return min(spec.trial_count + more, whole)


def _is_done(home: Home, spec: SweepSpec, *, failed_again: bool) -> bool:
    """Whether another execution would find nothing to run."""
    folder = home.sweep(spec.name)
    summary = read_json(folder / "summary.json") or {}
    if summary.get("state") != "done" or holder(folder) is not None:
        return False
    return not is_open(home, look(home, spec.name), spec.trial_count, failed_again=failed_again)


def _nothing_to_do(home: Home, name: str, option: str | None) -> list[str]:
    trials = look(home, name).trials()
    failed = sum(trial.state == "failed" for trial in trials)
    lines = [
        f"{name} has nothing left to do: {len(trials) - failed} of {len(trials)} trials have come "
        f"to their end. The result: {command('compare', name, option)}"
    ]
    if failed:
        again = command("resume", name, option)
        lines.append(f"{failed} failed; to try them again: {again} --failed")
    return lines
