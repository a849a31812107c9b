"""The file by which a sweep can be compared without its home: its runs, and how it judges them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carft_sweep.regular_files import read_regular
from carft_sweep.tracking.comparison.pooling import SweepRuns
from carft_sweep.tracking.comparison.runs import RunRecord, scalar
from carft_sweep.tracking.comparison.spec import ComparisonSpec
from carft_sweep.tracking.errors import TrackingError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

COMPARISON_INPUT = "comparison_input.json"
_FIELDS = (
    *("algorithm", "params", "seed", "digest", "state", "role", "trial", "untrained"),
    *("metrics", "merges", "facts"),
)
"""Fields of a record that are in the file. Its folder is not: it names a place on one machine."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_LARGEST = 1e30
"""Largest value that is read: sums of larger ones overflow."""


def comparison_input(part: SweepRuns, generation: int) -> str:
    """Return as JSON the generation, a sweep's runs in any state, and its comparison rules."""
    runs = [
        {name: getattr(record, name) for name in _FIELDS}
        | {"fields": part.fields.get(record.digest)}
        for record in part.records
    ]
    rule = part.spec.model_dump(mode="json")
    return json.dumps({"generation": generation, "rule": rule, "runs": runs}, default=dict)


def read_comparison_input(text: str, sweep: str) -> tuple[int, SweepRuns]:
    """Return the generation and the runs, named `sweep`, of a text that `comparison_input` wrote.
    Raises TrackingError for other content, which anybody who may write to the server can store."""
    try:
        data = json.loads(text)
        fields = {
            run["digest"]: {name: scalar(value) for name, value in run["fields"].items()}
            for run in data["runs"]
            if run["fields"] is not None
        }
        if _SURROGATE.search(text):  # half a pair is in no text
            json.dumps(data, ensure_ascii=False).encode()
        rule = ComparisonSpec.model_validate(data["rule"])
        records = [*map(_record, data["runs"])]
        return int(data["generation"]), SweepRuns(sweep, records, rule, fields)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError):
        raise TrackingError(f"{COMPARISON_INPUT} is not one") from None


def read_published(folder: Path) -> SweepRuns:
    """Return the runs of a sweep that was published as a folder, under the folder's name. Raises
    TrackingError where the folder has no readable `comparison_input.json`."""
    try:
        text = read_regular(folder / COMPARISON_INPUT, follow=True).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise TrackingError(
            f"{folder} is no published sweep: {COMPARISON_INPUT} cannot be read "
            f"({getattr(error, 'strerror', 'no text')}); `report SWEEP --out FOLDER/` writes one"
        ) from None
    return read_comparison_input(text, folder.resolve().name)[1]


def _record(run: Mapping[str, Any]) -> RunRecord:
    """Return a run's record from JSON. Raises ValueError for a value that is no measurement."""
    plain = {name: run[name] for name in _FIELDS}
    record = _adapter().validate_python(plain)
    for metrics in (record.metrics, *record.merges.values()):
        if any(math.isfinite(value) and abs(value) > _LARGEST for value in metrics.values()):
            raise ValueError("a value was not measured")
    numbers = (value for value in record.params.values() if isinstance(value, (int, float)))
    if not all(abs(value) <= _LARGEST for value in numbers):
        raise ValueError("a parameter is no number")
    images = dict(plain["facts"].get("images") or {})
    if not all(type(count) is int and 0 < count < _LARGEST for count in images.values()):
        raise ValueError("the numbers of images are none")
    return record


@cache
def _adapter() -> TypeAdapter[RunRecord]:
    from pydantic import TypeAdapter  # slow to build, and few commands need it

    return TypeAdapter(RunRecord)
