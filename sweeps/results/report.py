"""The HTML report of sweeps."""

from __future__ import annotations

import datetime
import hashlib
import logging
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import read_json, write_text
from carft_sweep.carft_core.runs.result import Claim
from carft_sweep.regular_files import read_regular
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.generations import COPY, Invocation
from carft_sweep.sweeps.ledger.ledger import Ledger
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results.artifacts import COMPARED, FIGURES, PAGE, write_comparison
from carft_sweep.sweeps.results.export import export_commands
from carft_sweep.sweeps.results.sent_log import SentLog, place_of
from carft_sweep.sweeps.spec.document import read_text
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.input_file import COMPARISON_INPUT, comparison_input
from carft_sweep.tracking.comparison.pooling import SweepRuns
from carft_sweep.tracking.comparison.runs import RunRecord, fields
from carft_sweep.tracking.location import is_server, pages_address, resolve_location
from carft_sweep.tracking.provenance import describe_code, provenance_tags
from carft_sweep.tracking.report.html import Export, Provenance, RunPages, without_user
from carft_sweep.tracking.report.published_zero_shot import check_zero_shot
from carft_sweep.tracking.store.base import ARM
from carft_sweep.tracking.store.mlflow_pages import run_page

if TYPE_CHECKING:
    from carft_sweep.tracking.charts.data import ChartData


logger = logging.getLogger(__name__)

INDEX = "index.html"
"""The page of a published folder."""


def _claim(run: RunRecord) -> dict[str, Any] | None:
    """Return the content of a run's `config.json`; None if it is missing or has no identity."""
    claim = None if run.folder is None else read_json(run.folder / "config.json", Claim)
    return claim if claim and "identity" in claim else None


def _run_pages(home: Home, sweeps: Sequence[Ledger], *, for_others: bool) -> RunPages | None:
    """Return MLflow's pages of the runs that were sent; None where MLflow's address is unknown, or
    `for_others` where it is of this machine alone."""
    place = resolve_location(home.path)
    address, is_own = pages_address(place), not is_server(place.named)
    if address is None or (for_others and is_own):
        return None
    logs = (SentLog(home.sweep(sweep.name), place_of(home, sweep)) for sweep in sweeps)
    pages = {
        digest: f"{address}/{run_page(log.experiment, run_id)}"
        for log in logs
        for digest, run_id in log.run_ids().items()
        if log.experiment and digest and run_id and not digest.startswith(ARM)
    }
    return RunPages(address, pages, is_own=is_own)


def has_dead_links(page: Path, run_ids: Iterable[str]) -> bool:
    """Return whether a stored page links to runs of MLflow that are not among `run_ids`."""
    text = read_regular(page).decode(errors="replace") if page.exists() else ""
    return not {*re.findall(r"#/experiments/[^/]+/runs/([^/?]+)", text)} <= {*run_ids}


def _exports(
    sweeps: Sequence[Ledger], comparison: Comparison, options: Sequence[str]
) -> Sequence[Export]:
    """Return the commands that export what is selected here; `options` may select other runs than
    the sweeps' own rules."""
    if comparison.selected is None and not comparison.tasks:
        return ()
    selected = [] if comparison.selected is None else comparison.selected.arm.done
    digests = {run.digest for run in selected[:1]}
    runs = ((part, item.runs.values()) for part in sweeps for item in part.settings())
    owner = next((part for part, own in runs if digests & {*own}), sweeps[0])
    return [*export_commands(comparison, owner.name, named=bool(options) or len(sweeps) > 1)]


Fact = tuple[str, tuple[str, ...]]
"""A name and its values, several where runs differ."""
_FACTS: Mapping[str, str] = {
    "transform": "image transform",
    "augmentation": "training transform",
    "budget": "training budget",
    "device": "device",
    "precision": "precision",
    "contexts": "context prompts",
}
"""Facts of every run, in words."""


def provenance(
    home: Home,
    sweeps: Sequence[Ledger],
    comparison: Comparison,
    options: Sequence[str] = (),
    published_zero_shot: tuple[str, ...] = (),
) -> Provenance:
    """Return what a reader needs to judge the numbers, and to reproduce them. `options` are those
    of `report`. The result names neither user nor machine, and stays the same until a run
    changes."""
    ran = [_command(sweep) for sweep in sweeps]
    again = shlex.join(["carft-sweep", "report", *(sweep.name for sweep in sweeps), *options])
    facts = dict(_facts(home, sweeps, comparison))
    if published_zero_shot:
        facts["zero-shot and LAION's table"] = published_zero_shot
    return Provenance(
        facts=facts,
        commands=(*(command for command, _ in ran), again),
        files=tuple(file for _, file in ran if file is not None),
    )


def _facts(home: Home, sweeps: Sequence[Ledger], comparison: Comparison) -> Iterator[Fact]:
    runs = comparison.runs()
    done = [run for run in runs if run.state == "done"]
    for sweep in sweeps:
        text = f"generation {sweep.generation}, method {sweep.spec['method']}"
        yield f"sweep {sweep.name}", (text,)
    counts = Counter(run.state for run in runs)
    yield "runs", (", ".join(f"{count} {state}" for state, count in sorted(counts.items())),)
    runs_of_home = RunStore(home.runs)
    states = [state for run in done if (state := runs_of_home.read(run.digest)) is not None]
    ends = [state.ended for state in states if state.ended is not None]
    if ends:
        first, last = min(state.created for state in states), max(ends)
        yield "made", (f"from {_format_time(first)} to {_format_time(last)}",)
    yield from _identities(done)
    for name, title in _FACTS.items():
        values = _distinct(run.facts.get(name) for run in done)
        if values:
            yield title, values
    for sweep in sweeps:
        ran_with = _distinct(describe_code(start["tags"]) for start in sweep.executions)
        if ran_with:
            yield f"{sweep.name} ran with", ran_with
    yield "this page was made with", (describe_code(provenance_tags()),)


def _identities(done: Sequence[RunRecord]) -> Iterator[Fact]:
    """Yield the facts `data`, `model` and `training code`: names and digests that runs recorded."""
    identities: dict[str, list[str]] = {"data": [], "model": [], "training code": []}
    for run in done:
        if (claim := _claim(run)) is not None:
            parts, config = claim["identity"], claim["config"]
            data = _with_digest(config["data"]["family"], parts["data"]["digest"])
            identities["data"].append(data)
            identities["model"].append(_with_digest(config["model"]["name"], parts["model"]))
            code, own = f"of {run.algorithm}: revision {parts['revision']}", parts.get("own_code")
            identities["training code"].append(f"{code}, sha256 {own}" if own else code)
    for name, values in identities.items():
        if values:
            yield name, _distinct(values)


def _command(sweep: Ledger) -> tuple[str, tuple[str, str] | None]:
    """Return the command that runs the sweep again, and its file's name and content, or None."""
    try:
        before = Invocation.last(sweep)
    except RequestError:
        return f"carft-sweep run {sweep.name}.yaml", None
    file = Path(before.file).name
    words = [file, *(word for text in before.overrides for word in ("--set", text))]
    words += [word for module in before.imports for word in ("--import", _last_part(module))]
    text = read_text(sweep.file.parent / COPY, follow=False)
    command = f"carft-sweep run {shlex.join(map(without_user, words))}"
    return command, (file, without_user(text))


def _with_digest(name: str, digest: str) -> str:
    return f"{_last_part(name)}, sha256 {digest}"


def _last_part(name: str) -> str:
    """Return the last part of an absolute path; other names are returned unchanged."""
    path = Path(name)
    return path.name if path.is_absolute() else name


def _distinct(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(value) for value in values if value is not None))


def _format_time(seconds: float) -> str:
    at = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return f"{at:%Y-%m-%d %H:%M} UTC"


@dataclass(frozen=True)
class Page:
    """A report as HTML, and what its charts are drawn from."""

    text: str
    data: ChartData
    published_zero_shot: tuple[str, ...] = ()
    """Sentences on the zero-shot models beside LAION's table."""


def page(
    home: Home,
    sweeps: Sequence[Ledger],
    comparison: Comparison,
    *,
    options: Sequence[str] = (),
    for_others: bool = False,
) -> Page:
    """Return the report of one sweep, or of several that were compared as one. `options` are those
    of the command that makes the report again, besides the sweeps; a page `for_others` has no link
    to this machine."""
    from carft_sweep.tracking.charts.data import ChartData
    from carft_sweep.tracking.report.html import document

    claims = ((run.digest, _claim(run)) for run in comparison.runs() if run.is_zero_shot)
    own_fields = {digest: fields(claim) for digest, claim in claims if claim is not None}
    comparison, sentences = check_zero_shot(comparison, own_fields)
    data = ChartData(comparison)
    text = document(
        comparison,
        data,
        description=sweeps[0].spec["description"] if len(sweeps) == 1 else "",
        provenance=provenance(home, sweeps, comparison, options, sentences),
        run_pages=_run_pages(home, sweeps, for_others=for_others),
        exports=_exports(sweeps, comparison, options),
    )
    return Page(text, data, sentences)


def publish(folder: Path, sweep: Ledger, part: SweepRuns) -> None:
    """Write what is published beside a sweep's page: its comparison, every number of every run,
    which `compare` reads, and the sweep file. No text names a user's home folder. Raises
    RequestError where the folder has files of these names that are not published ones."""
    present = [name for name in (COPY, INDEX, *COMPARED) if (folder / name).exists()]
    if present and not (folder / COMPARISON_INPUT).exists():
        raise RequestError(f"--out: {folder} has another {present[0]}; name another folder")
    folder.mkdir(parents=True, exist_ok=True)
    numbers = comparison_input(part, sweep.generation)
    write_text(folder / COMPARISON_INPUT, without_user(numbers))
    write_comparison(folder, part)
    _, file = _command(sweep)
    if file is not None:
        write_text(folder / COPY, file[1])


def table_page(table: Path, comparison: Comparison, *, options: Sequence[str] = ()) -> Page:
    """Return the report of a table of results without runs."""
    from carft_sweep.tracking.charts.data import ChartData
    from carft_sweep.tracking.report.html import document

    digest = hashlib.sha256(read_regular(table, follow=True)).hexdigest()
    facts = {
        "table": (_with_digest(table.name, digest),),
        "this page was made with": (describe_code(provenance_tags()),),
    }
    command = shlex.join(["carft-sweep", "report", table.name, *options])
    data = ChartData(comparison)
    provenance = Provenance(facts=facts, commands=(command,), files=())
    return Page(document(comparison, data, provenance=provenance), data)


def write_page(
    home: Home, sweep: Ledger, comparison: Comparison, note: Callable[[str], None]
) -> list[Path]:
    """Write the page and its main charts into the sweep's folder; return the files, or an empty
    list after an error. `note` gets the error, since the results exist without the page."""
    from carft_sweep.tracking.charts import write_figures

    folder = home.sweep(sweep.name)
    try:
        report = page(home, [sweep], comparison)
        for name in FIGURES:
            (folder / name).unlink(missing_ok=True)  # this comparison may have less to show
        names = [Path(name).stem for name in FIGURES]
        figures = write_figures(report.data, folder, ["png"], names, scale=1.0)
        write_text(folder / PAGE, report.text)  # last: where it is, the others are
    except Exception as error:  # whatever goes wrong in a picture, the sweep has ended well
        note(f"the report was not written ({type(error).__name__}: {error})")
        return []
    return [folder / PAGE, *figures]
