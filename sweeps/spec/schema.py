"""The JSON schemas of sweep files and family files, from the models that validate them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, TypeAdapter

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config.trial import SCALARS, SECTIONS, TrialConfig, field_names
from carft_sweep.carft_core.data.families.declaration import Declaration
from carft_sweep.carft_core.merges import MERGES
from carft_sweep.carft_core.training.optim import OPTIMISERS
from carft_sweep.sweeps.space.parameters import AnyParameter
from carft_sweep.sweeps.spec.normalize import IGNORED
from carft_sweep.sweeps.spec.settings import Settings

Schema = dict[str, Any]
_DRAFT = "https://json-schema.org/draft/2020-12/schema"


def sweep_schema() -> Schema:
    """Return the JSON schema (draft 2020-12) of a sweep file. The schema guides an editor by names,
    types and ranges. `load_spec` checks more than a schema can express, such as that a parameter's
    values suit its field, and accepts empty keys."""
    schema = Settings.model_json_schema(ref_template="#/$defs/{model}")
    properties, definitions = schema["properties"], schema["$defs"]
    for kind in definitions.keys() & {"Median", "Asha", "Patience", "Threshold"}:
        definitions[kind]["required"] = ["type"]
    parameter = TypeAdapter(AnyParameter).json_schema(ref_template="#/$defs/{model}")
    definitions |= parameter.pop("$defs")
    definitions["Parameter"] = parameter
    reference = {"$ref": "#/$defs/Parameter"}
    properties |= {
        "parameters": {
            "type": "object",
            "description": "What varies: fields of the trial, dotted. A grid without any is one "
            "trial.",
            "properties": dict.fromkeys(field_names(), reference),
            "additionalProperties": reference,
        },
        "baselines": {
            "type": "array",
            "items": _baseline(reference),
            "description": "Other algorithms with the same data, budget and seeds.",
            "x-words": "list of names or mappings",
        },
        "trial": _trial(),
        "profiles": {
            "type": "object",
            "additionalProperties": {"type": "object"},
            "description": "Named sets of changes, for `--profile`: keys as `--set` takes them.",
        },
        **{key: {"description": "W&B's; ignored."} for key in IGNORED},
    }
    return {
        "$schema": _DRAFT,
        "title": "carft-sweep sweep file",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
        "$defs": definitions,
    }


def family_schema() -> Schema:
    """Return the JSON schema (draft 2020-12) of a family file, which guides an editor too."""
    schema = Declaration.model_json_schema()
    shift = schema["$defs"].pop("ShiftFolders")
    texts = schema["properties"]["train"]["anyOf"]
    schema["properties"]["shifts"]["additionalProperties"] = {"anyOf": [*texts, shift]}
    del schema["required"]  # the name may be the file's
    return {"$schema": _DRAFT, **schema, "title": "carft-sweep family file"}


def _trial() -> Schema:
    schema = TrialConfig.model_json_schema(by_alias=False)["properties"]
    closed = {"additionalProperties": False}
    sections = {name: cls.model_json_schema() | closed for name, cls in SECTIONS.items()}
    sections["optim"]["properties"]["name"]["enum"] = sorted(OPTIMISERS)
    sections["model"]["type"] = ["string", "object"]
    return {
        "type": "object",
        "description": "What every run shares; fields that are left out have defaults.",
        "properties": {
            **sections,
            "algorithm": _named(ALGORITHMS, needs_name=False),
            "merges": {
                "type": "array",
                "items": _named(MERGES),
                "description": schema["merges"]["description"],
                "x-words": "list of names or mappings",
            },
            **{key: schema[key] for key in SCALARS},
        },
        "patternProperties": {"^[a-z_]+\\.[a-z_.]+$": {}},
        "additionalProperties": False,
    }


def _baseline(parameter: Schema) -> Schema:
    """Return the schema of a baseline: an algorithm by name, or with its own fields and those of
    `optim`, each a value or a list of values (the schema `parameter`)."""
    schema, optim = _named(ALGORITHMS), SECTIONS["optim"].model_json_schema()["properties"]
    for form in schema["anyOf"][1:]:
        fields = form["properties"] | {f"optim.{key}": field for key, field in optim.items()}
        form["properties"] = {
            key: field if key == "name" else {"anyOf": [field, parameter]}
            for key, field in fields.items()
        }
    return schema


def _named(registry: Mapping[str, type[BaseModel]], *, needs_name: bool = True) -> Schema:
    """Return the schema of a name in `registry`, alone or in a mapping with the fields of its
    class; `needs_name` says whether the mapping must have the name."""
    forms: list[Schema] = [{"enum": sorted(registry)}]
    for name, cls in sorted(registry.items()):
        schema = cls.model_json_schema()
        fields, definitions = schema.get("properties", {}), schema.get("$defs", {})
        own = {key: _in_place(field, definitions) for key, field in fields.items()}
        form = {
            "type": "object",
            "description": schema.get("description", ""),
            "properties": {"name": {"const": name}, **own},
            "required": ["name"] if needs_name else [],
            "additionalProperties": False,
        }
        forms.append(form)
    return {"anyOf": forms}


def _in_place(field: Schema, definitions: Schema) -> Schema:
    """Return a field's schema with its `$ref` inlined, such as an algorithm inside another."""
    rest = {key: value for key, value in field.items() if key != "$ref"}
    return definitions[field["$ref"].rpartition("/")[2]] | rest if "$ref" in field else field
