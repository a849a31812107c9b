"""The report as one HTML file, and a comparison as a notebook's cell."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.errors import TrackingError, unknown_name
from carft_sweep.tracking.report.table import build_table, full_table, headline, task_table

if TYPE_CHECKING:
    from altair import TopLevelMixin
    from jinja2 import Template

    from carft_sweep.tracking.charts.data import ChartData


@cache
def library() -> str:
    """Return Vega, Vega-Lite and Vega-Embed as JavaScript that defines `window.vegaEmbed`."""
    import vl_convert  # it takes a second, once a process

    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # In a page a carriage return would be read as a line feed, and its digest be another one.
    return text.replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class RunPages:
    """The addresses of MLflow's pages of the runs."""

    address: str
    """Address of MLflow's server."""
    pages: Mapping[str, str]
    """Address of a run's page, by the run's digest."""
    is_own: bool
    """Whether they are there only while `carft-sweep ui` serves the home."""


@dataclass(frozen=True)
class Export:
    """A command that exports a selected model."""

    model: str
    """The setting, and why this seed was taken."""
    command: str
    is_baseline: bool = False
    """Whether the model is the reference, which the verdict calls better than the selected one."""


_HOMES = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s\"']+")


@dataclass(frozen=True)
class Provenance:
    """Facts, commands and files with which the numbers can be judged and reproduced."""

    facts: Mapping[str, tuple[str, ...]]
    """Values by name, such as the digest of the data; several where runs differ."""
    commands: tuple[str, ...]
    files: tuple[tuple[str, str], ...]
    """Name and text of each sweep file as it was run."""


def without_user(text: str) -> str:
    """Return a text with every user's home folder written as `~`."""
    home = str(Path.home())
    # A folder deeper down that is called the same, such as /data/root, is nobody's home.
    whole = re.compile(rf"(?<![\w.~/\\-]){re.escape(home)}(?![\w.-])")
    own = whole.sub("~", text) if len(home) > 1 else text
    return _HOMES.sub("~", own)


HERE = Path(__file__).parent


LEAD = "id_ood"
"""Name of the chart beside the verdict."""
FIRST = 2
"""Number of the verdict's sentences beside it; the others are among the details."""


@dataclass(frozen=True)
class Section:
    """A part of the page, with a chart or without."""

    name: str
    title: str
    about: str = ""
    spec: str = ""
    """Vega-Lite as JSON that can stand in a script element; empty without a chart."""
    folded: bool = False


def document(
    comparison: Comparison,
    data: ChartData,
    *,
    description: str = "",
    provenance: Provenance | None = None,
    run_pages: RunPages | None = None,
    exports: Sequence[Export] = (),
) -> str:
    """Return the report of a comparison as HTML. Equal arguments give equal text, but for names
    that Altair numbers. What a reader asks first is open, the rest is folded under "More". A policy
    in the page forbids it to load anything, or to run other scripts than its own."""
    from markupsafe import Markup

    script = (HERE / "page.js").read_text(encoding="utf-8")
    scripts = [_closed(text) for text in (library(), script)]
    sections = list(_sections(comparison, data, provenance))
    return _template("page.html").render(
        comparison=comparison,
        sentences=_sentences(comparison),
        description=description,
        headline=headline(comparison),
        full=full_table(comparison),
        tasks=task_table(comparison),
        settings={task: headline(part) for task, part in comparison.tasks.items()},
        sections=sections,
        first=FIRST,
        lead=next((section for section in sections if section.name == LEAD), None),
        provenance=provenance,
        run_pages=run_pages,
        exports=exports,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(text) for text in scripts],
        policy=_policy(scripts),
    )


def _template(name: str) -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(HERE)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template(name)


def _sections(
    comparison: Comparison, data: ChartData, provenance: Provenance | None
) -> Iterator[Section]:
    from carft_sweep.tracking.charts import CHARTS

    drawn = [(chart, picture) for chart in CHARTS.values() if (picture := chart.draw(data))]
    charts = [
        Section(chart.name, chart.title, chart.about, _spec(picture), chart.folded)
        for chart, picture in drawn
    ]
    yield Section("verdict", "Verdict")
    yield from (section for section in charts if section.name == LEAD)
    if comparison.tasks:
        yield Section("tasks", "Tasks")
    yield Section("table", "Comparison")
    if len(_sentences(comparison)) > FIRST or comparison.warnings:
        yield Section("details", "Details")
    yield from (section for section in charts if not section.folded and section.name != LEAD)
    yield from (section for section in charts if section.folded)
    if provenance is not None:
        yield Section("provenance", "Provenance", folded=True)


def _sentences(comparison: Comparison) -> tuple[str, ...]:
    return (*comparison.answer.lines, *comparison.statistics)


def _spec(chart: TopLevelMixin) -> str:
    """Return a Vega-Lite specification as JSON that is safe inside a script element."""
    from markupsafe import Markup

    from carft_sweep.tracking.charts.base import as_spec

    text = json.dumps(as_spec(chart), separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    # In a script element only `<` could begin something else than the script.
    return Markup(text.replace("<", "\\u003c"))


def _closed(script: str) -> str:
    """Return a script escaped so that nothing in it ends its script element."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(scripts: Sequence[str]) -> str:
    """Return the Content-Security-Policy that permits only the page's own scripts and images."""
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts
    ]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


MOST_WARNINGS = 5


def cell(comparison: Comparison) -> str:
    """Return the HTML of a notebook's cell: the table that a terminal shows, warnings and the
    answer. All quoted text is escaped. The cell has no script, no colours and no links."""
    warnings = list(comparison.warnings[:MOST_WARNINGS])
    if more := len(comparison.warnings) - len(warnings):
        warnings.append(f"and {more} more, in its warnings")
    tables = (task_table(comparison), build_table(comparison))
    return _template("cell.html").render(
        comparison=comparison,
        sentences=_sentences(comparison),
        warnings=warnings,
        tables=[table for table in tables if table is not None],
    )


def show_in_notebooks() -> None:
    """Make notebooks show a comparison as `cell` renders it; do nothing elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    if shell is not None:
        shell.display_formatter.formatters["text/html"].for_type(Comparison, cell)


def chart(comparison: Comparison, name: str = "id_ood", *, width: int = 720) -> TopLevelMixin:
    """Return a chart of the report, `width` pixels wide, on white like Altair's own. Raises
    TrackingError for an unknown chart, and for a chart without content."""
    import altair as alt

    from carft_sweep.tracking.charts import CHARTS
    from carft_sweep.tracking.charts.base import on_white
    from carft_sweep.tracking.charts.data import ChartData

    if name not in CHARTS:
        raise TrackingError(unknown_name("chart", name, CHARTS))
    drawn = CHARTS[name].draw(ChartData(comparison))
    if drawn is None:
        raise TrackingError(f"{comparison.sweep} has nothing to show in the chart {name!r}")
    assert isinstance(drawn, alt.SchemaBase)  # as every chart of Altair is
    picture: TopLevelMixin = type(drawn).from_dict(on_white(drawn, width), validate=False)
    return picture
