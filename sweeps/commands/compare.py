"""`carft-sweep compare SWEEP...`: the table and the verdict, of a home or of an MLflow server."""

from __future__ import annotations

import argparse
import gc
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from carft_core.errors import RequestError
from sweeps.choosing import judged
from sweeps.home import find_home
from sweeps.json_lines import json_lines, json_list
from sweeps.parts import parts
from tracking.columns import MOST
from tracking.compare import Comparison
from tracking.filters import condition
from tracking.joint import Part, compared, sweeps_of
from tracking.report import csv_text, markdown, sweeps_of_row, terminal
from tracking.view import View, ordered
from tracking.where import EXPERIMENT

if TYPE_CHECKING:
    from tracking.published import Subject

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Several sweeps are one comparison, with `--separate` one after another."""
    gc.disable()  # Millions of objects are made here and kept: to look among them takes long.
    try:
        if arguments.tracking_uri and not arguments.sweeps:
            return _list(arguments, say)
        found = [_shown(chosen, arguments) for chosen in _chosen(arguments)]
        if arguments.csv and len(found) > 1:
            found = [replace(item, sweeps=item.sweeps or sweeps_of(item.parts)) for item in found]
        for text in _json(found) if arguments.json else _texts(found, arguments):
            say(text)
    finally:
        gc.enable()
    return 0


@dataclass(frozen=True)
class _Shown:
    """A comparison, and how to show it."""

    comparison: Comparison
    view: View
    parts: Sequence[Part]
    sweeps: Mapping[str, Sequence[str]] | None
    """By digest whose a run is, where there are several sweeps."""

    def plain(self) -> dict[str, Any]:
        """For JSON, with the rows one after another."""
        plain = self.comparison.in_parts()
        if self.sweeps is not None:
            plain["sweeps"] = self.comparison.sweep.split(" + ")
            plain["rows"] = self._rows(self.sweeps)
        if self.view.quoted or self.view.notes:
            plain["quoted"] = [row.as_dict() for row in self.view.quoted]
            plain["notes"] = list(self.view.notes)
        return plain

    def _rows(self, sweeps: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
        for row in self.comparison.rows:
            yield {**row.as_dict(), "sweeps": sweeps_of_row(row, sweeps)}


def _chosen(arguments: argparse.Namespace) -> Iterator[list[Part]]:
    """The sweeps of each comparison, judged as the options say."""
    found = judged(_read(arguments), arguments)
    yield from ([part] for part in found) if arguments.separate else [found]


def _read(arguments: argparse.Namespace) -> list[Part]:
    """From the home, or from the server that `--tracking-uri` names and no other."""
    if arguments.tracking_uri is None:
        if arguments.experiment is not None:
            raise RequestError("--experiment goes with --tracking-uri, which names the server")
        if not arguments.sweeps:
            raise RequestError("which sweep? `carft-sweep list` names those of this home")
        wide = True if arguments.published else None
        return parts(find_home(arguments.home), arguments.sweeps, with_fields=wide)
    if arguments.images:
        raise RequestError("--images reads the runs' folders, which lie in a home, not on a server")
    from tracking.mlflow_reader import MlflowReader
    from tracking.served import find

    reader = MlflowReader(arguments.tracking_uri, arguments.experiment or EXPERIMENT)
    there = reader.sweeps()
    wanted = dict.fromkeys(arguments.sweeps)
    return [reader.part(find(there, name), name) for name in wanted]


def _list(arguments: argparse.Namespace, say: Say) -> int:
    """The sweeps of a server."""
    from tracking.mlflow_reader import MlflowReader

    there = MlflowReader(arguments.tracking_uri, arguments.experiment or EXPERIMENT).sweeps()
    if arguments.json:
        say(json.dumps([sweep.as_dict() for sweep in there], indent=1))
    elif there:
        say("\n".join(sweep.line() for sweep in there))
    else:
        say("No sweep is there.")
    return 0


def _shown(chosen: Sequence[Part], arguments: argparse.Namespace) -> _Shown:
    found = compared(
        chosen,
        conditions=[condition(text) for text in arguments.where],
        reference=arguments.reference,
        with_images=arguments.images,
    )
    view = View(
        all_alphas=arguments.all_alphas,
        most=None if arguments.all else MOST,
        columns=tuple(name.strip() for name in (arguments.columns or "").split(",") if name),
    )
    view.metrics(found)  # a wrong name is told before anything is printed
    if arguments.sort:
        found, view = ordered(found, arguments.sort), replace(view, grouped=False)
    if arguments.published:
        view = _with_published(view, found, chosen)
    return _Shown(found, view, chosen, sweeps_of(chosen) if len(chosen) > 1 else None)


def _with_published(view: View, found: Comparison, chosen: Sequence[Part]) -> View:
    from tracking.published import nothing_for, quoted_beside

    subjects = set(_subjects(chosen))
    rows = quoted_beside(subjects, found)
    return replace(view, quoted=rows, notes=() if rows else (nothing_for(subjects),))


def _subjects(chosen: Sequence[Part]) -> Iterator[Subject]:
    from tracking.published import Subject

    for part in chosen:
        for record in part.records:
            known = part.fields.get(record.digest)
            if record.state == "done" and known is not None:
                tag = known.get("model.pretrained")
                yield Subject(
                    str(known.get("model.name")),
                    None if tag is None else str(tag),
                    str(known.get("data.family")),
                )


def _json(found: Sequence[_Shown]) -> Iterator[str]:
    plain = [item.plain() for item in found]
    return json_lines(plain[0]) if len(plain) == 1 else json_list(plain)


def _texts(found: Sequence[_Shown], arguments: argparse.Namespace) -> Iterator[str]:
    console = Console()
    for item in found:
        comparison, view = item.comparison, item.view
        if arguments.csv:
            text = csv_text(comparison, view=view, sweeps=item.sweeps)
        elif arguments.markdown:
            text = markdown(comparison, view=view)
        elif arguments.latex:
            from tracking.latex import latex

            text = latex(comparison, view=view, command=_command(arguments))
        else:
            colour = console.is_terminal
            text = terminal(comparison, width=console.width, colour=colour, view=view)
        yield text.rstrip()


def _command(arguments: argparse.Namespace) -> str:
    """What was typed, without where the sweeps lie."""
    words = ["carft-sweep", "compare", *arguments.sweeps]
    for name, value in vars(arguments).items():
        if name in ("sweeps", "command", "home", "tracking_uri", "experiment") or not value:
            continue
        option = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        words += [option] if value is True else [w for one in values for w in (option, str(one))]
    return shlex.join(words)
