"""The JSON schemas of sweep files and family files, from the models that validate them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from carft_core.algorithms import ALGORITHMS
from carft_core.config import SCALARS, SECTIONS, TrialConfig, field_names
from carft_core.data.declaration import Declaration
from carft_core.merges import MERGES
from sweeps.space.parameters import DISTRIBUTIONS
from sweeps.spec.normalize import IGNORED, SHORT
from sweeps.spec.settings import EARLY_TERMINATION_FIELDS, MAX_RETRIES, Settings

Schema = dict[str, Any]


def sweep_schema() -> Schema:
    """JSON schema (draft 2020-12) of a sweep file.

    It guides an editor: names, types and ranges. `load_spec` decides: it knows what no schema can
    tell, such as that a parameter's values suit its field, and forgives keys left empty.
    """
    properties, definitions = _settings()
    properties |= {
        "allow_grid": {"type": "boolean", "description": "Of early_terminate."},
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
        "profiles": {
            "type": "object",
            "additionalProperties": {"type": "object"},
            "description": "Named changes, for --profile: keys as --set takes them, with values.",
        },
    }
    properties |= {key: {"description": "W&B's; ignored."} for key in IGNORED}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "carft-sweep sweep file",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def family_schema() -> Schema:
    """JSON schema (draft 2020-12) of a family file; like the other it guides an editor."""
    schema = Declaration.model_json_schema()
    shift = schema["$defs"].pop("ShiftFolders")
    texts = schema["properties"]["train"]["anyOf"]
    schema["properties"]["shifts"]["additionalProperties"] = {"anyOf": [*texts, shift]}
    del schema["required"]  # the name may be the file's
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **schema,
        "title": "carft-sweep family file",
    }


def _settings() -> tuple[Schema, Schema]:
    """The keys of the plain settings, and the definitions to which they refer."""
    schema = Settings.model_json_schema()
    properties, definitions = schema["properties"], schema["$defs"]
    properties["early_terminate"] = _early_terminate(definitions.pop("EarlyTerminate"))
    properties["retries"] = {
        "anyOf": [
            {"type": "integer", "minimum": 0, "maximum": MAX_RETRIES},
            {"$ref": "#/$defs/Retries"},
        ]
    }
    properties["webhook"] = {"type": "string", "pattern": "^(https?://|env:)"}
    text = {"type": "string"}
    properties["import"] = {"anyOf": [text, {"type": "array", "items": text}]}
    for name, field in Settings.model_fields.items():
        properties[field.alias or name]["description"] = field.description
    return properties, definitions


def _trial() -> Schema:
    fields = TrialConfig.model_fields
    schema = TrialConfig.model_json_schema(by_alias=False)["properties"]
    plain = {key: schema[key] for key in fields if key in SCALARS}
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
        own = {
            key: _in_place(field, schema.get("$defs", {}))
            for key, field in schema.get("properties", {}).items()
        }
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


def _in_place(field: Schema, definitions: Schema) -> Schema:
    """A field with what it refers to, such as an algorithm inside another."""
    rest = {key: value for key, value in field.items() if key != "$ref"}
    return definitions[field["$ref"].rpartition("/")[2]] | rest if "$ref" in field else field


def _early_terminate(schema: Schema) -> Schema:
    """One form for each type, with its own fields; W&B's hyperband is one more."""
    fields = schema["properties"]
    shared = {key: fields[key] for key in ("metric", "allow_grid")}
    count = {"type": "integer", "minimum": 1}
    own = {
        kind: {key: fields[key] for key in keys} for kind, keys in EARLY_TERMINATION_FIELDS.items()
    }
    own["asha"] |= {
        name: {**fields[field], "description": f"Is {field}."} for name, field in SHORT.items()
    }
    own["hyperband"] = {
        **own["asha"],
        **{"min_iter": count, "max_iter": count, "s": count, "strict": {"type": "boolean"}},
    }
    forms = [
        {
            "type": "object",
            "properties": {"type": {"const": kind}, **shared, **keys},
            "required": ["type"],
            "additionalProperties": False,
        }
        for kind, keys in own.items()
    ]
    return {"anyOf": forms, "description": schema["description"]}


def _parameters() -> Schema:
    """One parameter a key: W&B's description of it, or more parameters nested in it."""
    nested = {
        "type": "object",
        "properties": {"parameters": {"$ref": "#/properties/parameters"}},
        "required": ["parameters"],
        "additionalProperties": False,
    }
    one = {"anyOf": [_distribution(), nested]}
    return {
        "type": "object",
        "description": "What varies: trial fields (dotted, nested or by alias).",
        "properties": dict.fromkeys(field_names(), one),
        "additionalProperties": one,
    }


def _distribution() -> Schema:
    number: Schema = {"type": "number"}
    positive = {**number, "exclusiveMinimum": 0}
    return {
        "type": "object",
        "properties": {
            "distribution": {"enum": list(DISTRIBUTIONS)},
            "value": {"description": "The only value."},
            "values": {"type": "array", "minItems": 1, "description": "The values to choose from."},
            "probabilities": {
                "type": "array",
                "items": {**number, "minimum": 0, "maximum": 1},
                "description": "One for each value.",
            },
            "min": number,
            "max": number,
            "q": {**positive, "description": "The step."},
            "mu": number,
            "sigma": positive,
            "a": positive,
            "b": positive,
            "when": {
                "type": "object",
                "minProperties": 1,
                "description": "It varies where these fields have these values.",
            },
        },
        "additionalProperties": False,
    }
