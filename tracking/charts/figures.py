"""The charts as files for papers: PNG and SVG, made without a browser and without network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tracking.errors import TrackingError, unknown
from tracking.evidence.data import Evidence

WIDTH = 720
"""Pixels of an SVG; a PNG has twice as many."""
_PNG_SCALE = 2.0
_CONFIG = {
    "background": "white",
    "font": "Helvetica, Arial, sans-serif",
    "axis": {"gridOpacity": 0.4},
    "view": {"stroke": "#bbbbbb"},
}


def write(evidence: Evidence, folder: Path, kinds: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write every chart that has something to show as `<name>.<kind>`; the files in page order.

    Raises TrackingError for a kind that is not known, OSError where the folder cannot be written.
    """
    from tracking.charts import CHARTS
    from tracking.charts.base import fitted

    makers = _makers()
    for kind in kinds:
        if kind not in makers:
            raise TrackingError(unknown("kind of figure", kind, makers))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for chart in CHARTS.values():
        picture = chart.draw(evidence)
        if picture is None:
            continue
        spec = fitted(picture.to_dict(validate=False), WIDTH)
        spec.pop("background", None)
        for kind in kinds:
            file = folder / f"{chart.name}.{kind}"
            file.write_bytes(makers[kind](spec))
            written.append(file)
    return written


def _makers() -> Mapping[str, Callable[[Mapping[str, Any]], bytes]]:
    import vl_convert

    def png(spec: Mapping[str, Any]) -> bytes:
        return vl_convert.vegalite_to_png(dict(spec), scale=_PNG_SCALE, config=_CONFIG)

    def svg(spec: Mapping[str, Any]) -> bytes:
        return vl_convert.vegalite_to_svg(dict(spec), config=_CONFIG).encode()

    return {"png": png, "svg": svg}
