"""The difference to the reference on the test split, on every shift, and on their mean."""

from __future__ import annotations

from tracking.accuracy import NOUNS, TITLES, TOP1, capitalised
from tracking.charts import dots, marks, palette
from tracking.charts.base import Chart, Picture
from tracking.charts.layout import single
from tracking.charts.measures import ends, percent, split_name
from tracking.evidence import Evidence

_VALUE = "difference"


def draw(evidence: Evidence) -> Picture | None:
    """None where there is no reference, or nothing to compare with it."""
    reference, found = evidence.reference, evidence.differences
    if reference is None or not found:
        return None
    signs = palette.of_rows({part.row.arm.label: part.row for part in found}, evidence.algorithms)
    metrics = list(dict.fromkeys(part.metric for part in found))
    rows = [
        {
            "setting": part.row.arm.label,
            "split": split_name(part.metric.rpartition("/")[0]),
            _VALUE: percent(part.mean),
            "pairs": part.n,
            **ends(part.ci95, _VALUE),
        }
        for metric in metrics
        for part in found
        if part.metric == metric
    ]
    by = evidence.comparison.terms.by
    title = f"{capitalised(TITLES[by])} minus {reference.arm.label} (points)"
    drawn, height = dots.dots(rows, signs, _VALUE, title, "+.2f")
    kind = "top-1 accuracy" if by == TOP1 else NOUNS[by]
    told = f"Differences in {kind} to {reference.arm.label}, by split"
    return single([marks.rule_at(0, "x"), *drawn], height, told, rows)


CHART = Chart(
    name="shifts",
    title="Difference on every split",
    about=(
        "Each method minus the reference, in points of accuracy, paired over seeds; right of "
        "the line is better. Bars are 95 % intervals of the paired difference, drawn from three "
        "seeds on. They are not adjusted for the number of shifts: the verdict tests their mean."
    ),
    draw=draw,
)
