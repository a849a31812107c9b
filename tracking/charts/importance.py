"""How much of what a metric varies is due to each parameter."""

from __future__ import annotations

import altair as alt

from tracking.charts import marks
from tracking.charts.base import Chart, Picture
from tracking.charts.layout import layered, panels
from tracking.charts.measures import short
from tracking.charts.palette import NEUTRAL
from tracking.evidence import Evidence

_BAR = 24
_SHARE = "share"


def draw(evidence: Evidence) -> Picture | None:
    """None where importance is not known."""
    if not evidence.importance:
        return None
    titles = {parameter.name: parameter.title for parameter in evidence.parameters}
    charts = [
        _bars(short(metric), {titles.get(name, name): share for name, share in shares.items()})
        for metric, shares in evidence.importance.items()
        if shares
    ]
    told = "Share of each parameter in the variance of each metric"
    return panels(charts, told, most=3, margin=140, least=360) if charts else None


def _bars(metric: str, shares: dict[str, float]) -> alt.LayerChart:
    ordered = sorted(shares, key=lambda name: -shares[name])
    rows = [{"parameter": name, _SHARE: round(100 * shares[name], 2)} for name in ordered]
    base = alt.Chart(marks.data(rows), title=metric).encode(
        alt.X(
            field=_SHARE,
            type="quantitative",
            title="share of the variance (%)",
            scale=alt.Scale(domain=[0, 112]),
            axis=alt.Axis(values=[0, 25, 50, 75, 100]),
        ),
        alt.Y("parameter:N", sort=ordered, title=None, axis=alt.Axis(labelLimit=120)),
    )
    bars = base.mark_bar(color=NEUTRAL).encode(tooltip=marks.hints("parameter", (_SHARE, ".1f")))
    words = base.mark_text(align="left", dx=4, aria=False)
    numbers = words.encode(alt.Text(f"{_SHARE}:Q", format=".0f"))
    return layered([bars, numbers], _BAR * len(rows))


CHART = Chart(
    name="importance",
    title="Which parameter matters",
    about=(
        "How much of the differences between trials is due to each parameter, in percent, for the "
        "metric of the selection, ID test and OOD mean; from ten complete trials on. It says that "
        "a parameter matters in the range that was searched, not which value is better."
    ),
    draw=draw,
)
