"""The tags by which a run is found again, whatever id the store gave it."""

from __future__ import annotations

from collections.abc import Mapping

from tracking import limits
from tracking.base import RunKey, TrackingError


def identity(key: RunKey, home: str) -> dict[str, str]:
    """`carft.kind`, `carft.sweep`, `carft.run` (not for the sweep itself) and `carft.home`."""
    tags = {"carft.kind": "run" if key.digest else "sweep", "carft.sweep": key.sweep}
    if key.digest:
        tags["carft.run"] = key.digest
    if home:
        tags["carft.home"] = home
    return limits.tags(tags)


def query(tags: Mapping[str, str]) -> str:
    """The filter in MLflow's language that finds runs with all these tags."""
    return " and ".join(f"tags.`{name}` = {_quoted(value)}" for name, value in tags.items())


def _quoted(value: str) -> str:
    if "'" not in value:
        return f"'{value}'"
    if '"' not in value:
        return f'"{value}"'
    # The language has no escapes.
    raise TrackingError(f"a sweep's name may not hold both kinds of quotes: {value}")
