"""The charts of the report, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping

from tracking.charts.base import Chart
from tracking.charts.parallel import PARALLEL
from tracking.charts.predictions import CALIBRATION, CLASSES
from tracking.charts.response import IMPORTANCE, PARAMETER_MAP, RESPONSE
from tracking.charts.splits import CONTEXT, SHIFTS
from tracking.charts.tradeoff import ID_OOD
from tracking.charts.training import COST, LEARNING

__all__ = ["CHARTS", "Chart"]

CHARTS: Mapping[str, Chart] = {
    chart.name: chart
    for chart in (
        ID_OOD,
        RESPONSE,
        PARAMETER_MAP,
        PARALLEL,
        IMPORTANCE,
        LEARNING,
        SHIFTS,
        CLASSES,
        CALIBRATION,
        CONTEXT,
        COST,
    )
}
"""By name."""
