"""The charts of the report, in the order of the page."""

from __future__ import annotations

from collections.abc import Mapping

from tracking.charts import (
    calibration,
    classes,
    context,
    cost,
    id_ood,
    importance,
    learning,
    parallel,
    parameter_map,
    response,
    shifts,
)
from tracking.charts.base import Chart

__all__ = ["CHARTS", "Chart"]

CHARTS: Mapping[str, Chart] = {
    module.CHART.name: module.CHART
    for module in (
        id_ood,
        response,
        parameter_map,
        parallel,
        importance,
        learning,
        shifts,
        classes,
        calibration,
        context,
        cost,
    )
}
"""By name."""
