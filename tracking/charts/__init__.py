"""Charts of the report, in the order of the page, and as files for papers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from carft_sweep.tracking.charts.base import HALO, HALO_ON_WHITE, Chart, as_spec, fitted
from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.charts.response import RESPONSE
from carft_sweep.tracking.charts.splits import CONTEXT, SHIFTS
from carft_sweep.tracking.charts.tradeoff import ID_OOD
from carft_sweep.tracking.charts.training import LEARNING
from carft_sweep.tracking.errors import TrackingError, unknown_name

__all__ = ["CHARTS", "Chart", "start_drawing", "write_figures"]

logger = logging.getLogger(__name__)

CHARTS: Mapping[str, Chart] = {
    chart.name: chart for chart in (ID_OOD, RESPONSE, SHIFTS, CONTEXT, LEARNING)
}
"""By name."""

WIDTH = 720
"""Pixels of an SVG."""
_CONFIG = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "axis": {"gridOpacity": 0.4},
    "view": {"stroke": "#bbbbbb"},
    "style": {HALO: HALO_ON_WHITE},
}


def write_figures(
    data: ChartData,
    folder: Path,
    kinds: Sequence[str] = ("png", "svg"),
    names: Collection[str] | None = None,
    *,
    scale: float = 2.0,
) -> list[Path]:
    """Write every chart that has something to show as `<name>.<kind>`, without a browser.

    `names` are those of the charts that are wanted; None: all. A PNG has `scale` times the pixels
    of an SVG.

    Returns:
        The files in the order of the page.

    Raises:
        TrackingError: A kind is unknown.
        OSError: The folder cannot be written.
    """
    for kind in kinds:
        if kind not in _CONVERTERS:
            raise TrackingError(unknown_name("kind of figure", kind, _CONVERTERS))
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for chart in CHARTS.values():
        if names is not None and chart.name not in names:
            continue
        picture = chart.draw(data)
        if picture is None:
            logger.debug("%s has nothing to show in %s", data.comparison.sweep, chart.name)
            continue
        spec = fitted(as_spec(picture), WIDTH)
        spec.pop("background", None)
        for kind in kinds:
            file = folder / f"{chart.name}.{kind}"
            file.write_bytes(_CONVERTERS[kind](spec, scale))
            files.append(file)
    return files


def start_drawing() -> None:
    """Start the JavaScript engine that `write_figures` needs, which takes a third of a second."""
    _svg({"mark": "point"}, 1.0)


def _png(spec: dict[str, Any], scale: float) -> bytes:
    import vl_convert

    return vl_convert.vegalite_to_png(spec, scale=scale, config=_CONFIG)


def _svg(spec: dict[str, Any], scale: float) -> bytes:
    import vl_convert

    del scale

    return vl_convert.vegalite_to_svg(spec, config=_CONFIG).encode()


_CONVERTERS: Mapping[str, Callable[[dict[str, Any], float], bytes]] = {"png": _png, "svg": _svg}
