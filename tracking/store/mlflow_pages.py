"""MLflow's own pages: their addresses behind a server's, and saved views of runs.

The format of a view is that of MLflow 3.17, which lists it under "Views"; a server that does not
know it shows all runs.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import quote

from carft_sweep.tracking.store.base import ARTIFACT, RunsView

VIEW = "mlflow.sharedViewState."
"""Beginning of the tag of an experiment that holds a view."""
SWEEPS = "carft-sweeps"
"""The id of the view of all sweeps."""
DESCRIPTION = "mlflow.note.content"
"""The tag of a run or a model whose Markdown MLflow shows."""
_WORKFLOW = "workflowType=machine_learning"
"""Query without which MLflow 3 takes an address to be one of its pages for agents."""
_DEFLATED = "deflate;"
"""Beginning of a view's state that is compressed, as tags are short."""
_IMAGE = re.compile(rf"!\[(?![^][]*\]\({ARTIFACT})")
"""Matches the beginning of an image that is no artifact of the run."""
_NAME = "attributes.`Run Name`"
_SECTION = "main"
_NAME_WIDTH, _LETTER, _AROUND = 290, 7, 32
"""Widths in pixels: of the column of names, of a letter, and around a column's title."""
_HEIGHT = 420
"""Height of a chart in pixels."""


def runs_page(experiment: str, view: str = "") -> str:
    """Return the address of an experiment's runs, or of a saved view of them."""
    shared = f"&viewStateShareKey={quote(view)}" if view else ""
    return f"#/experiments/{experiment}/runs?{_WORKFLOW}{shared}"


def run_page(experiment: str, run_id: str, artifact: str = "") -> str:
    """Return the address of a run, or of one of its artifacts in MLflow's frame."""
    file = f"/artifacts/{quote(artifact)}" if artifact else ""
    return f"#/experiments/{experiment}/runs/{run_id}{file}?{_WORKFLOW}"


def leading_to_sweeps(experiment: str) -> str:
    """Return an experiment's description (MLflow shows one line) with a link to the sweeps."""
    return f"Sweeps with their answers and arms: [open]({runs_page(experiment, SWEEPS)})"


def artifact_source(run_id: str, artifact: str) -> str:
    """Return the address of an artifact's content, for images in a description."""
    return f"get-artifact?run_uuid={run_id}&path={quote(artifact)}"


def without_remote_content(description: str) -> str:
    """Return a description with escapes of what makes a browser load something: HTML, of which
    MLflow lets `img` and `iframe` through, and other images than the run's own."""
    return _IMAGE.sub(r"!\\[", description.replace("<", "&lt;"))


def saved_view(view: RunsView, query: str, timestamp: int) -> str:
    """Return the value of a view's tag; `query` finds the runs, `timestamp` is in milliseconds."""
    plain = json.dumps(_state(view, query)).encode()
    state = _DEFLATED + base64.b64encode(zlib.compress(plain)).decode()
    times = {"createdAt": timestamp, "updatedAt": timestamp}
    return json.dumps({"name": view.title, **times, "state": state})


def _state(view: RunsView, query: str) -> dict[str, Any]:
    shown = (("tags", view.tags), ("metrics", view.metrics), ("params", view.params))
    widths = {
        f"{kind}.`{name}`": _AROUND + _LETTER * len(name) for kind, names in shown for name in names
    }
    columns = [*widths]
    sorted_by = "metrics" if view.sort_by in view.metrics else "tags"
    return {
        "searchFilter": query,
        # By the time of their creation MLflow would hide runs below their parent.
        "orderByKey": f"{sorted_by}.`{view.sort_by}`",
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [_NAME, *columns],
        "columnWidths": {_NAME: _NAME_WIDTH, **widths},
        "runsHiddenMode": "SHOW_ALL",
        "compareRunSections": [
            {
                "uuid": _SECTION,
                "name": view.title,
                "display": True,
                "isReordered": False,
                # Points have no names: in a narrow chart most are cut off in the legend too.
                "columns": 1 if view.scatters else 2,
                "cardHeight": _HEIGHT,
            }
        ],
        "compareRunCharts": [
            {"uuid": str(place), "metricSectionId": _SECTION, "runsCountToCompare": 100, **chart}
            for place, chart in enumerate(_charts(view))
        ],
        # Else MLflow sorts its own sections before this one.
        "isAccordionReordered": True,
    }


def _charts(view: RunsView) -> Iterator[Mapping[str, Any]]:
    metrics = {*view.metrics, *view.lines}
    for names in view.scatters:
        kinds = ("METRIC" if name in metrics else "PARAM" for name in names)
        x, y = ({"key": name, "type": kind} for name, kind in zip(names, kinds, strict=True))
        yield {"type": "SCATTER", "xaxis": x, "yaxis": y}
    for name in view.lines:
        yield {"type": "LINE", "metricKey": name, "selectedMetricKeys": [name]}
