"""The report as one HTML file, and a notebook's cell."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.comparison.compare import Comparison
from tracking.comparison.predictions import Answer, Counts, Gallery, Keeper, Picture
from tracking.errors import TrackingError, unknown_name
from tracking.report.table import View, everything, headline, tasks

if TYPE_CHECKING:
    from altair import TopLevelMixin

    from tracking.charts.data import ChartData
    from tracking.report.table import Table


def library(cache: Path | None = None) -> str:
    """Vega, Vega-Lite and Vega-Embed as JavaScript; `window.vegaEmbed` is what it defines.

    To bundle it takes seconds, so it is kept in the folder `cache`, by the versions in it.
    """
    import vl_convert

    if cache is None:
        return _bundle()
    versions = (
        version("vl-convert-python"),
        vl_convert.get_vega_version(),
        vl_convert.get_vegalite_versions()[-1],
        vl_convert.get_vega_embed_version(),
    )
    file = cache / "page" / f"vega-{'-'.join(versions)}.js"
    try:
        return file.read_text(encoding="utf-8")
    except OSError:
        text = _bundle()
    with suppress(OSError):  # of a home that may only be read it is made each time
        _keep(text, file)
    return text


def _keep(text: str, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent)
    with os.fdopen(handle, "w", encoding="utf-8") as written:
        written.write(text)
    Path(name).replace(file)  # another process may do the same: whoever is last, it is whole


def _bundle() -> str:
    import vl_convert

    text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    # In a page a carriage return would be read as a line feed, and its digest be another one.
    return text.replace("\r\n", "\n").replace("\r", "\n")


@dataclass(frozen=True)
class Said:
    """What a model says of an image."""

    text: str
    right: bool


@dataclass(frozen=True)
class Shown:
    """One picture with its caption."""

    source: str
    """A data URI."""
    alt: str
    label: str
    shift: str
    zero_shot: Said
    reference: Said
    candidate: Said


@dataclass(frozen=True)
class Group:
    """The pictures of one cell."""

    title: str
    pictures: tuple[Shown, ...]


@dataclass(frozen=True)
class Pictures:
    """A gallery with its thumbnails, as far as there are any."""

    gallery: Gallery
    thumbnails: Mapping[tuple[str, str], bytes]
    """PNG files by (split, item)."""
    class_names: Sequence[str]

    @property
    def counts(self) -> tuple[Counts, ...]:
        """One for each split."""
        return self.gallery.counts

    @property
    def candidate(self) -> str:
        """The label of the setting that is judged."""
        return self.gallery.candidate

    @property
    def reference(self) -> str:
        """The label of what it is judged against."""
        return self.gallery.reference

    @cached_property
    def about(self) -> str:
        """What is shown and by which rule it was taken."""
        text = (
            "Of the images that the zero-shot model has right: which did training keep? A setting "
            "keeps an image when more than half of its runs have it right."
        )
        if any(group.pictures for group in self.groups):
            text += (
                " The pictures are taken by a fixed rule, as many of either kind as there are up "
                "to twelve: in turn from every shift, those first on which the runs agree most."
            )
        return text

    @cached_property
    def groups(self) -> tuple[Group, ...]:
        """Both cells in which the two differ."""
        names = (self.candidate, self.reference)
        return (
            Group(_title(*names), tuple(self._shown("candidate"))),
            Group(_title(*reversed(names)), tuple(self._shown("reference"))),
        )

    def _shown(self, keeper: Keeper) -> Iterator[Shown]:
        for picture in self.gallery.pictures:
            png = self.thumbnails.get((picture.split, picture.item))
            if picture.kept_by == keeper and png is not None:
                yield self._one(picture, png)

    def _one(self, picture: Picture, png: bytes) -> Shown:
        shift, label = picture.split.removeprefix("ood/"), self._name(picture.label)
        encoded = base64.b64encode(png).decode()
        return Shown(
            source=f"data:image/png;base64,{encoded}",
            alt=f"{label}, {shift}",
            label=label,
            shift=shift,
            zero_shot=self._said(picture.zero_shot),
            reference=self._said(picture.reference),
            candidate=self._said(picture.candidate),
        )

    def _said(self, answer: Answer) -> Said:
        """`✓ 3 of 3 runs`, or `✗ bathtub, right in 1 of 3 runs`."""
        kept = answer.right > answer.of / 2
        wrong = "" if kept or answer.wrong is None else self._name(answer.wrong)
        runs = f"{answer.right} of {answer.of} runs" if answer.of > 1 else ""
        if wrong and runs:
            runs = f", right in {runs}"
        return Said(f"{'✓' if kept else '✗'} {wrong}{runs}".rstrip(), kept)

    def _name(self, number: int) -> str:
        known = 0 <= number < len(self.class_names)
        return self.class_names[number] if known else f"class {number}"


def _title(keeper: str, loser: str) -> str:
    return f"Kept by {keeper}, lost by {loser}"


_HOMES = re.compile(r"(?:/home|/Users|[A-Za-z]:\\Users)[/\\][^/\\\s\"']+")


@dataclass(frozen=True)
class Fact:
    """One thing that is known, such as the digest of the data."""

    name: str
    values: tuple[str, ...]
    """Several where runs differ."""


@dataclass(frozen=True)
class SweepFile:
    """A sweep file as it was run."""

    name: str
    text: str


@dataclass(frozen=True)
class Provenance:
    """What a reader needs to judge the numbers, and to make them again."""

    facts: tuple[Fact, ...]
    commands: tuple[str, ...]
    files: tuple[SweepFile, ...]


def without_user(text: str) -> str:
    """The text with every user's home folder as `~`."""
    home = str(Path.home())
    # A folder deeper down that is called the same, such as /data/root, is nobody's home.
    whole = re.compile(rf"(?<![\w.~/\\-]){re.escape(home)}(?![\w.-])")
    own = whole.sub("~", text) if len(home) > 1 else text
    return _HOMES.sub("~", own)


HERE = Path(__file__).parent
_BEFORE_COST = "cost"
"""The chart in front of which the images stand: they belong to the accuracies."""


@dataclass(frozen=True)
class Drawn:
    """A chart that has something to show."""

    about: str
    spec: str
    """Vega-Lite as JSON that can stand in a script element."""


@dataclass(frozen=True)
class Section:
    """An entry of the table of contents."""

    name: str
    title: str
    chart: Drawn | None = None


def document(
    comparison: Comparison,
    data: ChartData,
    *,
    description: str = "",
    pictures: Pictures | None = None,
    provenance: Provenance | None = None,
    cache: Path | None = None,
) -> str:
    """The report as HTML. Equal arguments give equal text, but for names that Altair counts.

    A policy in the page forbids it to load anything, or to run other scripts than its own.
    `cache` is a folder for what takes long and is the same for every page.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined
    )
    script = (HERE / "page.js").read_text(encoding="utf-8")
    scripts = [_closed(text) for text in (library(cache), script)]
    return environment.get_template("page.html").render(
        comparison=comparison,
        description=description,
        headline=headline(comparison),
        everything=everything(comparison),
        tasks=tasks(comparison),
        settings={task: headline(found) for task, found in comparison.tasks.items()},
        sections=list(_sections(comparison, data, pictures, provenance)),
        gallery=pictures,
        provenance=provenance,
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        scripts=[Markup(text) for text in scripts],
        policy=_policy(scripts),
    )


def _sections(
    comparison: Comparison,
    data: ChartData,
    pictures: Pictures | None,
    provenance: Provenance | None,
) -> Iterator[Section]:
    from tracking.charts import CHARTS

    yield Section("verdict", "Verdict")
    if comparison.tasks:
        yield Section("tasks", "Tasks")
    yield Section("table", "Comparison")
    gallery = [] if pictures is None else [Section("gallery", "Images kept and lost")]
    for chart in CHARTS.values():
        if chart.name == _BEFORE_COST:
            yield from gallery
            gallery = []
        drawn = chart.draw(data)
        if drawn is not None:
            yield Section(chart.name, chart.title, Drawn(chart.about, _spec(drawn)))
    yield from gallery
    if provenance is not None:
        yield Section("provenance", "Provenance")


def _spec(chart: TopLevelMixin) -> str:
    from markupsafe import Markup

    text = json.dumps(
        chart.to_dict(validate=False), separators=(",", ":"), allow_nan=False, ensure_ascii=False
    )
    # In a script element only `<` could begin something else than the script.
    return Markup(text.replace("<", "\\u003c"))


def _closed(script: str) -> str:
    """The script such that nothing in it ends its element."""
    return script.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(scripts: Sequence[str]) -> str:
    """The Content-Security-Policy: these scripts, styles and images within the page, no more."""
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts
    ]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )


MOST_ROWS = 200
"""Beyond them only what stands for each algorithm is shown: a cell is no place to look one up."""
MOST_WARNINGS = 5
# No colours, no classes, no script: the notebook's own theme, light or dark, decides how text
# looks, and styles on elements are what survives in notebooks that are not trusted.
_TEMPLATE = """\
<div>
<p><strong>{{ sentences[0] }}</strong></p>
{%- for sentence in sentences[1:] %}
<p>{{ sentence }}</p>
{%- endfor %}
{%- if warnings %}
<details open><summary>Before you believe it</summary><ul>
{%- for warning in warnings %}
<li>{{ warning }}</li>
{%- endfor %}
</ul></details>
{%- endif %}
{%- for table in tables %}
<div style="overflow-x: auto">
<table>
<caption style="caption-side: top; text-align: left">{{ table.caption }}</caption>
<thead><tr>
{%- for head in table.heads %}
<th scope="col" style="text-align: {{ 'right' if loop.index0 else 'left' }}">{{ head }}</th>
{%- endfor %}
</tr></thead>
<tbody>
{%- for line in table.lines %}
{%- set weight = "bold" if line.selected else "normal" %}
<tr><th scope="row" style="text-align: left; min-width: 16em; font-weight: {{ weight }}">
{{- line.name }}</th>
{%- for cell in line.cells %}
{%- set mark = "; text-decoration: underline" if loop.index0 in line.best else "" %}
<td style="text-align: right; white-space: nowrap; font-weight: {{ weight }}{{ mark }}">
{{- cell }}</td>
{%- endfor %}</tr>
{%- endfor %}
</tbody>
</table>
</div>
<p><small>{{ table.notes }}{% if left and loop.last %} {{ left }}{% endif %}</small></p>
{%- endfor %}
</div>
"""


def html(comparison: Comparison) -> str:
    """The comparison as a cell shows it: the rows that a terminal shows, as long as they are few.

    Everything that it quotes is escaped. It has no script, no colours and no links.
    """
    from jinja2 import Environment, StrictUndefined

    from tracking.report.table import tasks

    table, left = _table(comparison)
    warnings = list(comparison.warnings[:MOST_WARNINGS])
    if more := len(comparison.warnings) - len(warnings):
        warnings.append(f"and {more} more, in its warnings")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    of_tasks = tasks(comparison)
    return environment.from_string(_TEMPLATE).render(
        sentences=comparison.sentences or ("",),
        warnings=warnings,
        tables=[table] if of_tasks is None else [of_tasks, table],
        left=left,
    )


def _table(comparison: Comparison) -> tuple[Table, str]:
    """The table, and what it leaves out besides what its notes say."""
    from tracking.report.table import headline, of_rows

    rows = View().rows(comparison)
    if len(rows) <= MOST_ROWS:
        return of_rows(comparison, rows), ""
    table = headline(comparison)
    return table, f"{len(rows) - len(table.lines)} more rows are in rows_frame()."


def chart(comparison: Comparison, name: str, *, width: int) -> TopLevelMixin:
    """A chart of the report, `width` pixels wide, on white as Altair's own are.

    What is read from the folders of runs (learning curves, classes, calibration) is there in the
    home that made them, not after reading from a tracking server. Raises TrackingError for a name
    that no chart has, and where the sweep has nothing to show in it.
    """
    import altair as alt

    from tracking.charts import CHARTS
    from tracking.charts.base import fitted
    from tracking.charts.data import ChartData

    if name not in CHARTS:
        raise TrackingError(unknown_name("chart", name, CHARTS))
    drawn = CHARTS[name].draw(ChartData(comparison))
    if drawn is None:
        raise TrackingError(f"{comparison.sweep} has nothing to show in the chart {name!r}")
    spec = fitted(drawn.to_dict(validate=False), width)
    # Transparent is for the report, which gives words the colours of its theme.
    spec.pop("background", None)
    assert isinstance(drawn, alt.SchemaBase)  # as every chart of Altair is
    found: TopLevelMixin = type(drawn).from_dict(spec, validate=False)
    return found
