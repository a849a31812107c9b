"""What a sweep leaves on its server for a comparison made elsewhere, as JSON files of its runs.

`result.json` of each finished run is all that was measured of it; `settings.json` of the sweep is
which runs it has, in which role and state. The tag `carft.rule` of the sweep is how it judges.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tracking.fields import fields, scalar
from tracking.records import RunRecord, Scalar

RESULT = "result.json"
SETTINGS = "settings.json"
RULE = "carft.rule"
HAS_RESULT, HAS_SETTINGS = "carft.result", "carft.settings"
"""Tags that say that a run has the file, by its name."""
TRAINS = "carft.trains"
"""Tag of a run that has a seed and trains nothing: `false`."""
OWN = "unmerged"
"""The label of the model that a run trained, among its evaluations."""
VERSION = 1
"""Of both files; one of another version counts as none."""


@dataclass(frozen=True)
class Result:
    """What was measured of one finished run."""

    params: Mapping[str, Scalar]
    metrics: Mapping[str, float]
    merges: Mapping[str, Mapping[str, float]]
    facts: Mapping[str, object] = field(default_factory=dict)
    fields: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """The runs of a sweep without what was measured, and which merges were asked for."""

    generation: int
    records: tuple[RunRecord, ...]
    """`merges` holds empty mappings: the labels that are compared."""


def result(
    record: RunRecord, claimed: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """A finished run as plain data: `claimed` is its `config.json`, `evaluations` by label."""
    return {
        "version": VERSION,
        "digest": record.digest,
        "algorithm": record.algorithm,
        "seed": record.seed,
        "params": dict(record.params),
        "config": claimed.get("config"),
        "identity": claimed.get("identity"),
        "evaluations": {
            label: {key: found.get(key) for key in ("step", "values", "metrics", "facts")}
            for label, found in evaluations.items()
        },
    }


def read_result(text: str) -> Result | None:
    """None for what `result` does not write."""
    try:
        told = _versioned(text)
        evaluations = {
            label: {name: float(value) for name, value in found["metrics"].items()}
            for label, found in told["evaluations"].items()
        }
        facts = told["evaluations"].get(OWN, {}).get("facts") or {}
        return Result(
            params={name: scalar(value) for name, value in told["params"].items()},
            metrics=evaluations.pop(OWN, {}),
            merges=evaluations,
            facts=dict(facts),
            fields=fields(told),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def settings(records: Sequence[RunRecord], generation: int) -> dict[str, Any]:
    """The runs of a sweep as plain data."""
    return {
        "version": VERSION,
        "generation": generation,
        "runs": [
            {
                "algorithm": record.algorithm,
                "params": dict(record.params),
                "seed": record.seed,
                "digest": record.digest,
                "state": record.state,
                "role": record.role,
                "trial": record.trial,
                "epochs": record.epochs,
                "merges": list(record.merges),
                "untrained": record.untrained,
            }
            for record in records
        ],
    }


def read_settings(text: str) -> Settings | None:
    """None for what `settings` does not write."""
    try:
        told = _versioned(text)
        records = tuple(_record(run) for run in told["runs"])
        return Settings(int(told["generation"]), records)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _record(run: Mapping[str, Any]) -> RunRecord:
    return RunRecord(
        algorithm=str(run["algorithm"]),
        params={name: scalar(value) for name, value in run["params"].items()},
        seed=None if run["seed"] is None else int(run["seed"]),
        digest=str(run["digest"]),
        state=run["state"],
        role=run["role"],
        trial=None if run["trial"] is None else int(run["trial"]),
        epochs=None if run["epochs"] is None else int(run["epochs"]),
        merges={str(label): {} for label in run["merges"]},
        untrained=bool(run.get("untrained", False)),  # older files know no such runs
    )


def _versioned(text: str) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(text)
    if told["version"] != VERSION:
        raise ValueError(f"version {told['version']}")
    return told
