"""The commands that compare: compare, report."""

from __future__ import annotations

import argparse
import gc
import json
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from carft_core.errors import RequestError, unknown
from sweeps.home import Home, find_home
from sweeps.ledger.runs import Runs
from sweeps.ledger.snapshot import Kept, look
from sweeps.results.records import load_part, load_parts
from sweeps.results.report import FILE, page
from sweeps.spec.metrics import PATTERN, natural_goal, problem
from sweeps.spec.settings import SELECTION_RULES
from tracking.comparison.compare import REFERENCE, Comparison
from tracking.comparison.pooling import Part, compared, condition, sweeps_of
from tracking.comparison.spec import LEAVE_ONE_OUT, NAMED, TASK, Judging, Rule
from tracking.location import EXPERIMENT
from tracking.report.table import MOST, View, ordered
from tracking.report.terminal import csv_text, markdown, sweeps_of_row, terminal

if TYPE_CHECKING:
    from tracking.report.published import Subject
from sweeps.cli.json_lines import json_lines, json_list

_OPTIONS = ("metric", "selection", "id_margin", "by")


def judged(parts: Sequence[Part], arguments: argparse.Namespace) -> list[Part]:
    """Sweeps, judged as the options of a command say. Raises RequestError for what is wrong."""
    options = {name: getattr(arguments, name) for name in _OPTIONS}
    found = [replace(part, judging=chosen_by(part.judging, **options)) for part in parts]
    if arguments.metric:
        labels = {label for part in found for run in part.records for label in run.merges}
        check_merge(found[0].judging.rule.merge, labels)
    return found


def said(arguments: argparse.Namespace) -> list[str]:
    """These options once more, as far as they were given."""
    given = {name: getattr(arguments, name) for name in _OPTIONS}
    if arguments.reference != REFERENCE:
        given["reference"] = arguments.reference
    found = {name: value for name, value in given.items() if value is not None}
    return [f"--{name.replace('_', '-')}={value}" for name, value in found.items()]


def chosen_by(
    told: Judging,
    *,
    metric: str | None,
    selection: str | None,
    id_margin: float | None,
    by: str | None = None,
) -> Judging:
    """The judging of a sweep with what was said instead. Raises RequestError for what is wrong."""
    rule, terms = told.rule, told.terms
    changes = [_selection(selection)] if selection else []
    changes += [_metric(metric)] if metric else []
    if not changes and id_margin is None and by is None:
        return told
    if by is not None:
        terms = replace(terms, by=by, by_task={})
    if id_margin is not None:
        terms = replace(terms, id_margin=id_margin)
    fields = dict(vars(rule))
    for change in changes:
        fields |= change
    if told.tasks is None and (TASK in fields["metric"] or fields["named"] == LEAVE_ONE_OUT):
        raise RequestError(f"--selection {LEAVE_ONE_OUT} and {TASK} in --metric go with tasks")
    try:
        return replace(told, rule=Rule(**fields), terms=terms)
    except ValueError as error:
        raise RequestError(f"{error} (--selection oracle)") from None


def check_merge(merge: str | None, labels: Iterable[str]) -> None:
    """Raise RequestError where no run has the merged model that counts."""
    known = set(labels)
    if merge is not None and merge not in known:
        raise RequestError(f"--metric: {unknown('merged model', merge, known)}")


def _metric(text: str) -> dict[str, object]:
    """`id/val/nll`, `wise_ft@0.5/id/val/top1`, either with `:minimize` behind it."""
    name, _, goal = text.partition(":")
    merge = None
    if not re.fullmatch(PATTERN, name):
        head, _, rest = name.partition("/")
        if "@" in head and re.fullmatch(PATTERN, rest):
            merge, name = head, rest
    wrong = problem(name)
    if wrong:
        raise RequestError(f"--metric: {wrong}")
    natural = natural_goal(name)
    if goal and goal not in ("minimize", "maximize"):
        allowed = unknown("direction", goal, ("minimize", "maximize"))
        raise RequestError(f"--metric {text}: {allowed}")
    if goal and goal != natural:
        raise RequestError(f"--metric {text}: {name} is better the other way round; say {natural}")
    return {"metric": name, "goal": natural, "merge": merge}


def _selection(text: str) -> dict[str, object]:
    """A rule's name, or `within=0.005`."""
    if text in SELECTION_RULES:
        named = text if text in NAMED else None
        return {"within": None, "oracle": text == "oracle", "named": named}
    name, _, margin = text.partition("=")
    try:
        within = float(margin)
    except ValueError:
        within = -1.0
    if name != "within" or not 0 < within < 1:
        raise RequestError(
            f"--selection {text}: say {', '.join(SELECTION_RULES)}, "
            "or within=0.005 (a margin between 0 and 1)"
        )
    return {"within": within, "oracle": False, "named": None}


@contextmanager
def written(option: str, place: Path) -> Iterator[None]:
    """Raise RequestError for an OSError within that is about the place or what lies there."""
    try:
        yield
    except OSError as error:
        where = Path(error.filename) if isinstance(error.filename, str) else place
        if not {where, *where.parents} & {place, *place.parents[:-1]}:
            raise
        raise RequestError(f"{option}: {place} cannot be written: {error.strerror}") from None


Say = Callable[[str], None]


def compare_command(arguments: argparse.Namespace, say: Say) -> int:
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
        return load_parts(find_home(arguments.home), arguments.sweeps, with_fields=wide)
    if arguments.images:
        raise RequestError("--images reads the runs' folders, which lie in a home, not on a server")
    from tracking.mlflow_reader import MlflowReader, find

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
    from tracking.report.published import nothing_for, quoted_beside

    subjects = set(_subjects(chosen))
    rows = quoted_beside(subjects, found)
    return replace(view, quoted=rows, notes=() if rows else (nothing_for(subjects),))


def _subjects(chosen: Sequence[Part]) -> Iterator[Subject]:
    from tracking.report.published import Subject

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
            from tracking.report.formats import latex

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


def report_command(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Several sweeps are one comparison."""
    home = Home(find_home(arguments.home).path.absolute())
    sweeps = [look(home, name) for name in dict.fromkeys(arguments.sweeps)]
    out = _out(arguments.out, home, sweeps)
    figures = None if arguments.figures is None else Path(arguments.figures).expanduser()
    if figures is not None and figures.exists() and not figures.is_dir():
        raise RequestError(f"--figures: {figures} is a file; name a folder")
    runs, several = Runs(home.runs), len(sweeps) > 1
    parts = [load_part(sweep, runs, with_fields=several) for sweep in sweeps]
    found = compared(judged(parts, arguments), reference=arguments.reference)
    made = page(home, sweeps, found, options=said(arguments))
    with written("--out", out):
        made.write(out)
    files: list[Path] = []
    if figures is not None:
        from tracking.charts import write_figures

        with written("--figures", figures):
            files = write_figures(made.data, figures)
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
