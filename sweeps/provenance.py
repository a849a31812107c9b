"""Where the numbers of sweeps come from: runs, digests, code and commands, for the report."""

from __future__ import annotations

import datetime
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from carft_core.errors import RequestError
from carft_core.files import read_json
from sweeps.as_run import COPY, AsRun
from sweeps.executions import Code, executed
from sweeps.home import Home
from sweeps.mirror import Kept
from sweeps.runs import Runs
from tracking.compare import Comparison
from tracking.page import Fact, Provenance, SweepFile
from tracking.page.provenance import without_user
from tracking.records import RunRecord

_FACTS: Mapping[str, str] = {
    "transform": "image transform",
    "augmentation": "training transform",
    "budget": "training budget",
    "device": "device",
    "precision": "precision",
    "contexts": "context prompts",
}
"""What every run tells of itself, in words."""


def provenance(
    home: Home, sweeps: Sequence[Kept], comparison: Comparison, options: Sequence[str] = ()
) -> Provenance:
    """What a reader needs to judge the numbers, and to make them again.

    `options` are those of `report`. It names neither user nor machine, and does not change until
    a run does.
    """
    commands, files, names = [], [], [sweep.name for sweep in sweeps]
    for sweep in sweeps:
        command, file = _as_run(home.sweep(sweep.name), sweep.name)
        commands.append(command)
        files += [] if file is None else [file]
    return Provenance(
        facts=tuple(_facts(home, sweeps, comparison)),
        commands=(*commands, shlex.join(["carft-sweep", "report", *names, *options])),
        files=tuple(files),
    )


def _facts(home: Home, sweeps: Sequence[Kept], comparison: Comparison) -> Iterator[Fact]:
    runs = comparison.runs()
    done = [run for run in runs if run.state == "done"]
    for sweep in sweeps:
        told = f"generation {sweep.generation}, method {sweep.spec['method']}"
        yield Fact(f"sweep {sweep.name}", (told,))
    states = Counter(run.state for run in runs)
    counts = ", ".join(f"{count} {state}" for state, count in sorted(states.items()))
    yield Fact("runs", (counts,))
    yield from _times(Runs(home.runs), done)
    yield from _identities(done)
    for name, title in _FACTS.items():
        values = _distinct(run.facts.get(name) for run in done)
        if values:
            yield Fact(title, values)
    for sweep in sweeps:
        ran_with = tuple(map(str, executed(home.sweep(sweep.name))))
        if ran_with:
            yield Fact(f"{sweep.name} ran with", ran_with)
    yield Fact("this page was made with", (str(Code.here()),))


def _times(runs: Runs, done: Sequence[RunRecord]) -> Iterator[Fact]:
    known = [state for run in done if (state := runs.read(run.digest)) is not None]
    ends = [state.ended for state in known if state.ended is not None]
    if ends:
        first, last = min(state.created for state in known), max(ends)
        yield Fact("made", (f"from {_shown(first)} to {_shown(last)}",))


def _identities(done: Sequence[RunRecord]) -> Iterator[Fact]:
    """Of data, weights and training code: name and digest, as each run claimed them."""
    found: dict[str, list[str]] = {"data": [], "model": [], "training code": []}
    for run in done:
        claimed = None if run.folder is None else read_json(run.folder / "config.json")
        if claimed is not None and "identity" in claimed:
            parts, config = claimed["identity"], claimed["config"]
            found["data"].append(_named(config["data"]["family"], parts["data"]["digest"]))
            found["model"].append(_named(config["model"]["name"], parts["model"]))
            found["training code"].append(_training_code(run.algorithm, parts))
    for name, values in found.items():
        if values:
            yield Fact(name, _distinct(values))


def _training_code(algorithm: str, parts: Mapping[str, Any]) -> str:
    own = parts.get("own_code")
    return f"of {algorithm}: revision {parts['revision']}" + (f", sha256 {own}" if own else "")


def _as_run(folder: Path, name: str) -> tuple[str, SweepFile | None]:
    """The command that runs the sweep again, and its file."""
    try:
        before = AsRun.read(folder)
    except RequestError:
        return f"carft-sweep run {name}.yaml", None
    file = Path(before.file).name
    words = [file, *(word for one in before.overrides for word in ("--set", one))]
    words += [word for one in before.imports for word in ("--import", _last_part(one))]
    command = f"carft-sweep run {shlex.join(map(without_user, words))}"
    return command, SweepFile(file, without_user((folder / COPY).read_text(encoding="utf-8")))


def _named(name: str, digest: str) -> str:
    return f"{_last_part(name)}, sha256 {digest}"


def _last_part(name: str) -> str:
    """Of a path on this machine; other names stay."""
    path = Path(name)
    return path.name if path.is_absolute() else name


def _distinct(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(value) for value in values if value is not None))


def _shown(seconds: float) -> str:
    at = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{at:%Y-%m-%d %H:%M} UTC"
