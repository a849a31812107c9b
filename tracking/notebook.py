"""A comparison in a notebook: verdict, warnings and table as HTML, and the charts of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tracking.base import TrackingError
from tracking.compare import Comparison
from tracking.names import unknown
from tracking.view import View

if TYPE_CHECKING:
    from altair import TopLevelMixin

    from tracking.page.tables import Table

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

    from tracking.page.tables import tasks

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
    from tracking.page.tables import headline, of_rows

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
    from tracking.charts.layout import fitted
    from tracking.evidence import gather

    if name not in CHARTS:
        raise TrackingError(unknown("chart", name, CHARTS))
    drawn = CHARTS[name].draw(gather(comparison))
    if drawn is None:
        raise TrackingError(f"{comparison.sweep} has nothing to show in the chart {name!r}")
    spec = fitted(drawn.to_dict(validate=False), width)
    # Transparent is for the report, which gives words the colours of its theme.
    spec.pop("background", None)
    assert isinstance(drawn, alt.SchemaBase)  # as every chart of Altair is
    found: TopLevelMixin = type(drawn).from_dict(spec, validate=False)
    return found
