"""`carft-sweep report SWEEP...`: the comparison as one HTML file, and its charts as pictures."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

from carft_core.errors import RequestError
from sweeps.choosing import judged, said
from sweeps.home import Home, find_home
from sweeps.mirror import Kept
from sweeps.named import look
from sweeps.page import FILE, page
from sweeps.parts import part
from sweeps.places import written
from sweeps.runs import Runs
from tracking.joint import compared

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Several sweeps are one comparison."""
    home = Home(find_home(arguments.home).path.absolute())
    sweeps = [look(home, name) for name in dict.fromkeys(arguments.sweeps)]
    out = _out(arguments.out, home, sweeps)
    figures = None if arguments.figures is None else Path(arguments.figures).expanduser()
    if figures is not None and figures.exists() and not figures.is_dir():
        raise RequestError(f"--figures: {figures} is a file; name a folder")
    runs, several = Runs(home.runs), len(sweeps) > 1
    parts = [part(sweep, runs, with_fields=several) for sweep in sweeps]
    found = compared(judged(parts, arguments), reference=arguments.reference)
    made = page(home, sweeps, found, options=said(arguments))
    with written("--out", out):
        made.write(out)
    files: list[Path] = []
    if figures is not None:
        from tracking.figures import write

        with written("--figures", figures):
            files = write(made.evidence, figures)
    if arguments.json:
        told = {"page": str(out), "figures": [str(file) for file in files]}
        say(json.dumps({**told, "verdict": found.verdict}, indent=1))
        return 0
    say(f"{found.sentences[0]}\nThe report is {out}")
    if figures is not None:
        say(f"{len(files)} figures are in {figures}")
    return 0


def _out(given: str | None, home: Home, sweeps: list[Kept]) -> Path:
    """Where the page goes. Raises RequestError for a folder."""
    if given is None:
        folder = home.sweep("+".join(sweep.name for sweep in sweeps))
        return folder / FILE if len(sweeps) == 1 else home.path / f"{folder.name}.{FILE}"
    out = Path(given).expanduser()
    if out.is_dir():
        raise RequestError(f"--out: {out} is a folder; name a file, such as {out / FILE}")
    return out
