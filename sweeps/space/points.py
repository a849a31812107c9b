"""Trial configs of the points of a space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from carft_core.algorithms import ALGORITHMS
from carft_core.config import TrialConfig, trial_config
from sweeps.space.distributions import fields_of


def config_at(trial: Mapping[str, Any], params: Mapping[str, Any]) -> TrialConfig:
    """Make the config of the trial's fields with `params` (dotted) over them.

    Where the algorithm itself is a parameter, only the fields that it has are used. Raises
    InvalidConfig when the fields do not make a config.
    """
    name = params.get("algorithm.name")
    if not isinstance(name, str) or name not in ALGORITHMS:
        return trial_config(_placed(trial, params))
    own = {**_algorithm(trial, name), "name": name}
    return trial_config(_placed({**trial, "algorithm": own}, fields_of(params, name)))


def baseline_at(
    trial: Mapping[str, Any], baseline: Mapping[str, Any], params: Mapping[str, Any]
) -> TrialConfig:
    """Make the same with another algorithm: `baseline` holds its name and its own fields.

    Fields of the trial's algorithm that the baseline has too are taken over. Raises
    InvalidConfig as `config_at` does.
    """
    own = {**_algorithm(trial, str(baseline["name"])), **baseline}
    return trial_config(_placed({**trial, "algorithm": own}, baseline_params(baseline, params)))


def baseline_params(baseline: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a point that a baseline has and leaves open."""
    fixed = {("algorithm", field) for field in ("name", *baseline)}
    own = fields_of(params, str(baseline["name"]))
    return {name: own[name] for name in own if tuple(name.split(".")[:2]) not in fixed}


def _algorithm(trial: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the fields that the trial fixes for its algorithm, as far as `name` has them."""
    given = trial.get("algorithm")
    known = ALGORITHMS[name].model_fields
    return {
        field: value
        for field, value in (given if isinstance(given, Mapping) else {}).items()
        if field in known
    }


def _placed(trial: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Put each dotted field in its section, or deeper, in a copy of nested data."""
    nested: dict[str, Any] = _copied(trial)
    for name, value in params.items():
        *sections, field = name.split(".")
        place: Any = nested
        for section in sections:
            place = place.setdefault(section, {}) if isinstance(place, dict) else None
        if isinstance(place, dict):
            place[field] = value
    return nested


def _copied(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copied(inner) for key, inner in value.items()}
    return value
