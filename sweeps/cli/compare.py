"""The commands that compare: compare, report."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from carft_sweep.carft_core.errors import RequestError, unknown
from carft_sweep.carft_core.files import write_text
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.table import table_lines
from carft_sweep.sweeps.home import find_home
from carft_sweep.sweeps.ledger.ledger import find_ledger
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results.records import load_part, load_parts
from carft_sweep.sweeps.spec.metrics import PATTERN, natural_goal, problem
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.flips import find_flips
from carft_sweep.tracking.comparison.pooling import Owners, SweepRuns, compare_sweeps, owners
from carft_sweep.tracking.comparison.result_table import check_table, is_table, read_table
from carft_sweep.tracking.comparison.spec import (
    REFERENCE,
    SELECTION_RULES,
    TASK,
    ComparisonSpec,
    SelectionRule,
)
from carft_sweep.tracking.console import PlainConsole
from carft_sweep.tracking.location import EXPERIMENT
from carft_sweep.tracking.program import program
from carft_sweep.tracking.report.formats import latex, markdown, to_csv, to_json
from carft_sweep.tracking.report.published_zero_shot import check_zero_shot
from carft_sweep.tracking.report.table import MOST, TableOptions, power_table, resolve_columns
from carft_sweep.tracking.report.terminal import table_text, terminal

_OVERRIDES = ("metric", "selection", "id_margin", "ood_margin", "by")


def override_specs(sweeps: Sequence[SweepRuns], arguments: argparse.Namespace) -> list[SweepRuns]:
    """Return the sweeps with `spec` changed by options such as `--metric`. Raises RequestError."""
    options = {name: getattr(arguments, name) for name in _OVERRIDES}
    overridden = []
    for part in sweeps:
        spec = part.spec.model_copy(update={"reference": arguments.reference})
        if any(value is not None for value in options.values()):
            spec = _override(spec, options)
        overridden.append(replace(part, spec=spec))
    if any(map(is_table, arguments.sweeps)):
        check_table(overridden[0], overridden[0].spec)
    merge = overridden[0].spec.rule.merge
    labels = {label for part in sweeps for run in part.records for label in run.merges}
    if arguments.metric and merge is not None and merge not in labels:
        raise RequestError(f"--metric: {unknown('merged model', merge, labels)}")
    return overridden


def _override(spec: ComparisonSpec, options: Mapping[str, Any]) -> ComparisonSpec:
    """Return `spec` with the values of the options (by name) that are set. Raises RequestError."""
    rule = _selection(options["selection"]) if options["selection"] else {}
    rule |= _metric(options["metric"]) if options["metric"] else {}
    endpoint = {name: options[name] for name in ("id_margin", "ood_margin", "by")}
    endpoint = {name: value for name, value in endpoint.items() if value is not None}
    endpoint |= {"by_task": {}} if "by" in endpoint else {}
    changed = {**spec.rule.model_dump(), **rule}
    if spec.tasks is None and TASK in changed["metric"]:
        raise RequestError(f"{TASK} in --metric goes with tasks")
    try:
        new = SelectionRule.model_validate(changed)
    except ValidationError as error:
        reason = error.errors()[0]["ctx"]["error"]
        raise RequestError(f"{reason} (--selection oracle)") from None
    changes = {"rule": new, "endpoint": spec.endpoint.model_copy(update=endpoint)}
    return spec.model_copy(update=changes)


def _metric(text: str) -> dict[str, object]:
    """Return the fields of SelectionRule that `id/val/nll` or `wise_ft@0.5/id/val/top1` sets."""
    name, merge = text, None
    if not re.fullmatch(PATTERN, name):
        head, _, rest = name.partition("/")
        if "@" in head and re.fullmatch(PATTERN, rest):
            merge, name = head, rest
    wrong = problem(name)
    if wrong:
        raise RequestError(f"--metric: {wrong}")
    return {"metric": name, "goal": natural_goal(name), "merge": merge}


def _selection(text: str) -> dict[str, object]:
    """Return the fields of SelectionRule that a rule's name, or `within=0.005`, sets."""
    if text in SELECTION_RULES:
        return {"within": None, "oracle": text == "oracle"}
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
    return {"within": within, "oracle": False}


@contextmanager
def written(option: str, place: Path) -> Iterator[None]:
    """Turn an OSError on the output `place` within the context into a RequestError on `option`."""
    try:
        yield
    except OSError as error:
        where = Path(error.filename) if isinstance(error.filename, str) else place
        if not {where, *where.parents} & {place, *place.parents[:-1]}:
            raise
        raise RequestError(f"{option}: {place} cannot be written: {error.strerror}") from None


def compare_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `compare` command. Several sweeps are one comparison."""
    if arguments.tracking_uri and not arguments.sweeps:
        _list(arguments, emit)
        return
    if arguments.flips:
        _flips(arguments, emit)
        return
    options = TableOptions(
        columns=tuple(name.strip() for name in (arguments.columns or "").split(",") if name),
        max_trials=None if arguments.all else MOST,
        all_alphas=arguments.all_alphas,
    )
    sweeps = override_specs(_read(arguments), arguments)
    comparison = compare_sweeps(sweeps, where=arguments.where)
    fields = {digest: own for part in sweeps for digest, own in part.fields.items()}
    comparison, sentences = check_zero_shot(comparison, fields)
    options = replace(options, published_zero_shot=sentences)
    rendered = _render(comparison, options, owners(sweeps) if len(sweeps) > 1 else None, arguments)
    if arguments.json:
        # Not indented: that takes four times as long, half a minute for ten thousand trials.
        rendered = json.dumps(rendered, allow_nan=False)
    is_plain = arguments.json or arguments.csv or arguments.markdown or arguments.latex
    emit(rendered, styled=not is_plain)


def _flips(arguments: argparse.Namespace, emit: Emit) -> None:
    """Print the images that a setting wins and loses against another."""
    if arguments.csv or arguments.markdown or arguments.latex:
        raise RequestError("--flips prints one table, or --json")
    sweeps = override_specs(_read(arguments), arguments)
    reference, candidate = arguments.flips
    compared = compare_sweeps(sweeps, where=arguments.where)
    seeds, splits = find_flips(compared, reference, candidate)
    if arguments.json:
        plain = json.loads(splits.to_json(orient="records"))
        sides = {"reference": reference, "candidate": candidate}
        emit(json.dumps({**sides, "seeds": seeds, "splits": plain}, indent=1))
        return
    emit(f"What {candidate} wins and loses against {reference}.")
    if len(seeds) > 1:
        emit(f"An image counts as right where more than half of {len(seeds)} seeds have it so.")
    emit("")
    heads = ("split", "images", "won", "lost", "net", "net pp", "mean pp")
    rows = [
        (
            flip.split.removeprefix("ood/"),
            *map(str, (flip.images, flip.won, flip.lost)),
            f"{flip.net:+d}",
            *(f"{100 * share + 0.0:+.1f}" for share in (flip.net / flip.images, flip.difference)),
        )
        for flip in splits.itertuples()
    ]
    for line in table_lines(heads, rows, right=heads[1:]):
        emit(line)
    emit("")
    emit("net: won minus lost; mean pp: the difference in accuracy, mean over the seeds.")


def _read(arguments: argparse.Namespace) -> list[SweepRuns]:
    """Return the runs of a table, or of sweeps in the home or on the server of `--tracking-uri`."""
    if (table := _table(arguments)) is not None:
        if arguments.flips or arguments.tracking_uri:
            raise RequestError("a table has neither --flips nor a --tracking-uri")
        return [read_table(table)]
    if arguments.tracking_uri is None:
        if arguments.experiment is not None:
            raise RequestError("--experiment goes with --tracking-uri, which names the server")
        if not arguments.sweeps:
            raise RequestError(f"which sweep? `{program()} list` names those of this home")
        home = find_home(arguments.home, trust=arguments.trust_home)
        return load_parts(home, arguments.sweeps)
    if arguments.flips:
        raise RequestError("--flips reads the runs' folders, which lie in a home, not on a server")
    from carft_sweep.tracking.mlflow_reader import read_sweeps

    return read_sweeps(arguments.tracking_uri, arguments.experiment, arguments.sweeps)


def _table(arguments: argparse.Namespace) -> Path | None:
    """Return the path of a table that is named instead of sweeps, or None. Raises RequestError if
    there are further names."""
    if not any(map(is_table, arguments.sweeps)):
        return None
    if len(arguments.sweeps) > 1:
        raise RequestError("a table is compared alone, neither with another one nor with sweeps")
    return Path(arguments.sweeps[0]).expanduser()


def _list(arguments: argparse.Namespace, emit: Emit) -> None:
    """Print the sweeps of a server."""
    from carft_sweep.tracking.mlflow_reader import MlflowReader

    served = MlflowReader(arguments.tracking_uri, arguments.experiment or EXPERIMENT).sweeps()
    if arguments.json:
        emit(json.dumps([sweep.as_dict() for sweep in served], indent=1))
    elif served:
        emit("\n".join(sweep.line() for sweep in served))
    else:
        emit("No sweep is there.")


def _render(
    comparison: Comparison,
    options: TableOptions,
    of_runs: Owners | None,
    arguments: argparse.Namespace,
) -> Any:
    """Return the comparison in the format of the options: a text, or plain data for JSON. `of_runs`
    names each run's sweep, where there are several."""
    if options.columns:
        resolve_columns(comparison, options.columns)  # of JSON too: no wrong name passes
    if arguments.json:
        return to_json(comparison, options=options, owners=of_runs)
    if arguments.csv:
        text = to_csv(comparison, options=options, owners=of_runs)
    elif arguments.markdown:
        text = markdown(comparison, options=options)
    elif arguments.latex:
        text = latex(comparison, options=options, command=_command(arguments))
    elif arguments.power:
        if not (comparison.curve_verdicts or comparison.verdicts):
            raise RequestError(
                "--power is of claims, and there are none: nothing is compared with "
                f"{comparison.spec.reference}; name another with --reference"
            )
        text = table_text(power_table(comparison), width=PlainConsole().width)
    else:
        console = PlainConsole()
        colour = console.is_terminal
        text = terminal(comparison, width=console.width, colour=colour, options=options)
    return text.rstrip()


def _command(arguments: argparse.Namespace) -> str:
    """Return the command line as it was typed, without options on where sweeps are stored."""
    names = (Path(name).name if is_table(name) else name for name in arguments.sweeps)
    words = ["carft-sweep", "compare", *names]
    others = ("sweeps", "command", "home", "trust_home", "tracking_uri", "experiment", "verbose")
    for name, value in vars(arguments).items():
        is_left_out = value is None or value is False or value == []
        if name in others or is_left_out:
            continue
        option = f"--{name.replace('_', '-')}"
        values = value if isinstance(value, list) else [value]
        words += [option] if value is True else [w for item in values for w in (option, str(item))]
    return shlex.join(words)


def report_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `report` command. Several sweeps are one comparison."""
    # Draws charts.
    from carft_sweep.sweeps.results.artifacts import PAGE
    from carft_sweep.sweeps.results.report import INDEX, page, publish, table_page

    figures = None if arguments.figures is None else Path(arguments.figures).expanduser()
    if figures is not None and figures.exists() and not figures.is_dir():
        raise RequestError(f"--figures: {figures} is a file; name a folder")
    options = _options(arguments)
    if (table := _table(arguments)) is not None:
        out = _out(arguments.out, table.with_suffix(f".{PAGE}"))
        parts = override_specs([read_table(table)], arguments)
        comparison = compare_sweeps(parts, where=arguments.where)
        report = table_page(table, comparison, options=options)
    else:
        home = find_home(arguments.home, trust=arguments.trust_home).absolute()
        sweeps = [find_ledger(home, name) for name in dict.fromkeys(arguments.sweeps)]
        several = len(sweeps) > 1
        name = "+".join(sweep.name for sweep in sweeps)
        usual = home.path / f"{name}.{PAGE}" if several else home.sweep(name) / PAGE
        out = _out(arguments.out, usual, may_be_folder=not several)
        runs, is_folder = RunStore(home.runs), out.suffix.lower() not in PAGES
        parts = [load_part(sweep, runs, with_fields=several or is_folder) for sweep in sweeps]
        parts = override_specs(parts, arguments)
        comparison = compare_sweeps(parts, where=arguments.where)
        report = page(home, sweeps, comparison, options=options, for_others=is_folder)
        if is_folder:
            with written("--out", out):
                publish(out, sweeps[0], parts[0])
            out /= INDEX
    with written("--out", out):
        write_text(out, report.text)
    files: list[Path] = []
    if figures is not None:
        from carft_sweep.tracking.charts import write_figures

        with written("--figures", figures):
            files = write_figures(report.data, figures)
    if arguments.json:
        plain: dict[str, Any] = {"page": str(out), "figures": [str(file) for file in files]}
        plain |= {"verdict": comparison.verdict, "published_zero_shot": report.published_zero_shot}
        emit(json.dumps(plain, indent=1))
        return
    emit("\n".join((*comparison.answer.lines, f"The report is {out}")))
    if figures is not None:
        emit(f"{len(files)} figures are in {figures}")


def _options(arguments: argparse.Namespace) -> list[str]:
    """Return the command's options that change what is compared and how."""
    options = {name: getattr(arguments, name) for name in _OVERRIDES}
    options["reference"] = None if arguments.reference == REFERENCE else arguments.reference
    texts = ((name.replace("_", "-"), text) for name, text in options.items() if text is not None)
    conditions = (f"--where={condition}" for condition in arguments.where)
    return [*conditions, *(f"--{name}={text}" for name, text in texts)]


PAGES = (".html", ".htm")
"""Suffixes of the file of a page."""


def _out(text: str | None, usual: Path, *, may_be_folder: bool = False) -> Path:
    """Return the path of the page, or of the folder to publish, from `--out`, by default `usual`.
    Raises RequestError for a path of another kind."""
    if text is None:
        return usual
    out = Path(text).expanduser()
    suffix = out.suffix.lower()
    # The `.2` of `v1.2` is no suffix of a file.
    is_folder_name = not suffix or suffix[1].isdigit() or text.endswith("/")
    if may_be_folder and (out.is_dir() or (is_folder_name and suffix not in PAGES)):
        return out
    if out.is_dir():
        raise RequestError(f"--out: {out} is a folder; name a file, such as {out / usual.name}")
    if suffix not in PAGES:
        raise RequestError(
            f"--out: {text} must end in .html: the report is a page, which a browser prints as PDF"
        )
    return out
