"""The JSON schema of sweep files, from the same models that validate them, for editors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from carft_core.algorithms import ALGORITHMS
from carft_core.config import SECTIONS, TrialConfig, field_names
from carft_core.merges import MERGES
from sweeps.parameters import DISTRIBUTIONS
from sweeps.settings import Settings

Schema = dict[str, Any]


def sweep_schema() -> Schema:
    """JSON schema (draft 2020-12) of a sweep file.

    It guides an editor: names, types and ranges. `load_spec` decides: it knows what no schema can
    tell, such as that a parameter's values suit its field, and forgives keys left empty.
    """
    settings = Settings.model_json_schema()
    properties = settings["properties"]
    properties |= {
        "parameters": _parameters(),
        "baselines": {
            "type": "array",
            "items": _named(ALGORITHMS),
            "description": "Other algorithms with the same data, budget and seeds.",
        },
        "trial": _trial(),
        "aliases": {
            "type": "object",
            "additionalProperties": {"enum": list(field_names())},
            "description": "Short names for trial fields, such as {lr: optim.lr}.",
        },
        "program": {"description": "W&B's; ignored."},
        "command": {"description": "W&B's; ignored."},
        "project": {"description": "W&B's; ignored."},
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "carft-sweep sweep file",
        "type": "object",
        "properties": properties,
        "required": ["name"],
        "additionalProperties": False,
        "$defs": settings.get("$defs", {}),
    }


def _trial() -> Schema:
    fields = TrialConfig.model_fields
    schema = TrialConfig.model_json_schema(by_alias=False)["properties"]
    plain = {key: schema[key] for key in fields if key in ("device", "precision", "workers")}
    sections = {name: _closed(cls) for name, cls in SECTIONS.items()}
    dotted = "^[a-z_]+\\.[a-z_.]+$"
    return {
        "type": "object",
        "description": "What every run shares; fields left out have defaults.",
        "properties": {
            **sections,
            "algorithm": _named(ALGORITHMS, needs_name=False),
            "merges": {"type": "array", "items": _named(MERGES)},
            **plain,
        },
        "patternProperties": {dotted: {}},
        # An alias may stand here as well.
        "additionalProperties": {"type": ["string", "number", "boolean", "null"]},
    }


def _closed(cls: type[BaseModel]) -> Schema:
    schema = cls.model_json_schema()
    return {**schema, "additionalProperties": False}


def _named(registry: Mapping[str, type[BaseModel]], *, needs_name: bool = True) -> Schema:
    """A bare name, or a mapping of a name and that one's own fields."""
    forms: list[Schema] = [{"enum": sorted(registry)}]
    for name, cls in sorted(registry.items()):
        schema = cls.model_json_schema()
        own = schema.get("properties", {})
        forms.append(
            {
                "type": "object",
                "description": schema.get("description", ""),
                "properties": {"name": {"const": name}, **own},
                "required": ["name"] if needs_name else [],
                "additionalProperties": False,
            }
        )
    return {"anyOf": forms}


def _parameters() -> Schema:
    """One parameter a key: W&B's description of it, or more parameters nested in it."""
    number = {"type": "number"}
    distribution = {
        "type": "object",
        "properties": {
            "distribution": {"enum": list(DISTRIBUTIONS)},
            "value": {"description": "The only value."},
            "values": {"type": "array", "minItems": 1, "description": "The values to choose from."},
            "min": number,
            "max": number,
            "q": {**number, "exclusiveMinimum": 0, "description": "The step of q_uniform."},
        },
        "additionalProperties": False,
    }
    nested = {
        "type": "object",
        "properties": {"parameters": {"$ref": "#/properties/parameters"}},
        "required": ["parameters"],
        "additionalProperties": False,
    }
    one = {"anyOf": [distribution, nested]}
    return {
        "type": "object",
        "description": "What varies: trial fields (dotted, nested or by alias).",
        "properties": dict.fromkeys(field_names(), one),
        "additionalProperties": one,
    }
