"""Charts of the report, in the order of the page, and as files for papers."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from carft_sweep.tracking.charts.base import Chart, on_white
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.response import RESPONSE
from carft_sweep.tracking.charts.splits import CONTEXT, SHIFTS
from carft_sweep.tracking.charts.tradeoff import ID_OOD

__all__ = ["CHARTS", "Chart", "write_figures"]

logger = logging.getLogger(__name__)

CHARTS: Mapping[str, Chart] = {chart.name: chart for chart in (ID_OOD, RESPONSE, SHIFTS, CONTEXT)}
"""The charts by name, in the order of the page."""

Kind = Literal["png", "svg"]
WIDTH = 720
"""Width of an SVG in pixels."""
_CONFIG = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "axis": {"gridOpacity": 0.4},
    "view": {"stroke": "#bbbbbb"},
}


def write_figures(
    data: ChartData,
    folder: Path,
    kinds: Sequence[Kind] = ("png", "svg"),
    names: Collection[str] | None = None,
    *,
    scale: float = 2.0,
) -> list[Path]:
    """Write every chart with content as `<name>.<kind>`, without a browser. `names` are the wanted
    charts; None: all. A PNG has `scale` times the pixels of an SVG. Return the files in the order
    of the page. Raises OSError where the folder cannot be written."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for chart in CHARTS.values():
        if names is not None and chart.name not in names:
            continue
        picture = chart.draw(data)
        if picture is None:
            logger.debug("%s has nothing to show in %s", data.comparison.sweep, chart.name)
            continue
        spec = on_white(picture, WIDTH)
        for kind in kinds:
            file = folder / f"{chart.name}.{kind}"
            file.write_bytes(_convert(spec, kind, scale))
            files.append(file)
    return files


def _convert(spec: dict[str, Any], kind: Kind, scale: float) -> bytes:
    import vl_convert

    if kind == "svg":
        return vl_convert.vegalite_to_svg(spec, config=_CONFIG).encode()
    return vl_convert.vegalite_to_png(spec, scale=scale, config=_CONFIG)
