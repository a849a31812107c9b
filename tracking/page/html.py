"""Puts the page together: text, tables, what charts are drawn from, and the scripts that draw."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.compare import Comparison
from tracking.page.library import library
from tracking.page.pictures import Pictures
from tracking.page.provenance import Provenance
from tracking.page.tables import everything, headline, tasks

if TYPE_CHECKING:
    from altair import TopLevelMixin

    from tracking.evidence import Evidence

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
    evidence: Evidence,
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
    scripts = [_closed(text) for text in (library(cache), (HERE / "page.js").read_text())]
    return environment.get_template("page.html").render(
        comparison=comparison,
        description=description,
        headline=headline(comparison),
        everything=everything(comparison),
        tasks=tasks(comparison),
        settings={task: headline(found) for task, found in comparison.tasks.items()},
        sections=list(_sections(comparison, evidence, pictures, provenance)),
        gallery=pictures,
        provenance=provenance,
        css=Markup((HERE / "page.css").read_text()),
        scripts=[Markup(text) for text in scripts],
        policy=_policy(scripts),
    )


def _sections(
    comparison: Comparison,
    evidence: Evidence,
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
        drawn = chart.draw(evidence)
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
