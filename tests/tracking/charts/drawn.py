"""What a drawn chart holds: its spec, and the rows that it shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from carft_sweep.tracking.charts import CHARTS
from carft_sweep.tracking.charts.data import ChartData

Spec = dict[str, Any]


def spec_of(name: str, data: ChartData) -> Spec:
    """The checked spec of a chart that has something to show."""
    picture = CHARTS[name].draw(data)
    assert picture is not None
    spec: Spec = picture.to_dict()
    return spec


def data_of(spec: Spec, *fields: str) -> list[dict[str, Any]]:
    """The rows of every data set that has these fields."""
    datasets = [
        rows
        for rows in spec["datasets"].values()
        if set(fields) <= {field for row in rows for field in row}
    ]
    assert datasets, f"no data with {fields}"
    return [row for rows in datasets for row in rows]


def channels(spec: Spec, name: str) -> list[dict[str, Any]]:
    """Every encoding of a channel by a field."""
    encodings = (node.get(name) for node in nodes(spec))
    return [channel for channel in encodings if isinstance(channel, dict) and "field" in channel]


def nodes(spec: Any) -> Iterator[dict[str, Any]]:
    """Every mapping in a spec but for its data."""
    if isinstance(spec, dict):
        yield spec
        for name, part in spec.items():
            if name != "datasets":
                yield from nodes(part)
    elif isinstance(spec, list):
        for part in spec:
            yield from nodes(part)
