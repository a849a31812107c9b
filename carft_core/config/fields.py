"""The types of fields that configs share, and the words for a value that does not fit one."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, get_args

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
)
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError

from carft_sweep.carft_core.errors import Problem, dotted, misspelt, unknown

Fraction = Annotated[float, Field(gt=0, le=1)]
OpenFraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
UnitInterval = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, Field(ge=1)]
ShiftName = Annotated[str, Field(min_length=1)]

SYNONYMS: Mapping[str, str] = {
    **dict.fromkeys(("learning_rate", "lr0", "eta"), "optim.lr"),
    **dict.fromkeys(("wd", "decay", "l2"), "optim.weight_decay"),
    **dict.fromkeys(("bs", "batchsize", "train_batch_size"), "optim.batch_size"),
    **dict.fromkeys(("num_epochs", "n_epochs", "max_epochs"), "optim.epochs"),
    **dict.fromkeys(("max_steps", "num_steps"), "optim.steps"),
    **dict.fromkeys(("optimizer", "optimiser"), "optim.name"),
    **dict.fromkeys(("arch", "architecture", "backbone", "model"), "model.name"),
    **dict.fromkeys(("dataset", "dataset_name"), "data.family"),
    **dict.fromkeys(("warmup_steps", "warmup_ratio"), "optim.warmup"),
    **dict.fromkeys(("grad_clip", "max_grad_norm", "gradient_clip_val"), "optim.clip"),
    **dict.fromkeys(("num_workers", "n_workers"), "workers"),
}
"""Other programs' names of a trial's fields, without their sections -> the names here."""


def each_once(names: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """Return the names unchanged. Raises ValueError for a name that occurs twice."""
    twice = [name for index, name in enumerate(names or ()) if name in (names or ())[:index]]
    if twice:
        raise ValueError(f"{twice[0]} is in the list twice")
    return names


def _meanings(cls: type) -> dict[str, str]:
    """Return the docstrings of the fields that the class itself declares, by field. They are read
    from the source when a schema needs them, since pydantic would read them at every start."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):  # a class of a notebook or of a string has no file
        return {}
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    return {
        field.target.id: " ".join(str(below.value.value).split())
        for field, below in pairwise(definition.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
    }


def _accept_lists(schema: Any) -> None:
    """Make every tuple in a validation schema accept a list too."""
    if isinstance(schema, dict):
        if schema.get("type") == "tuple":
            schema["strict"] = False
        for part in schema.values():
            _accept_lists(part)
    elif isinstance(schema, list):
        for part in schema:
            _accept_lists(part)


class Section(BaseModel):
    """A part of the trial config. Values are not converted to a field's type, except lists, as
    files hold them, to tuples."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[BaseModel], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        schema = handler(source)
        _accept_lists(handler.resolve_ref_schema(schema))
        return schema

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return the JSON schema, with the docstrings of the fields as descriptions."""
        shown = handler(schema)
        properties = handler.resolve_ref_schema(shown).get("properties", {})
        for base in cls.__mro__[: cls.__mro__.index(Section)]:
            for name, text in _meanings(base).items():
                if name in cls.model_fields:
                    key = cls.model_fields[name].alias or name
                    properties.get(key, {}).setdefault("description", text)
        return shown


_BRANCH = re.compile(r"bool|constrained-\w+|literal\[.*\]")
"""The last part of pydantic's path to an error in one alternative of a union type."""


def error_of(problems: Iterable[Problem]) -> ValidationError:
    """Return a ValidationError for a validator to raise, with the message of each of the `problems`
    at its path below the validated value."""
    details: list[InitErrorDetails] = [
        {
            "type": PydanticCustomError("problem", "{message}", {"message": problem.message}),
            "loc": problem.path,
            "input": None,
        }
        for problem in problems
    ]
    return ValidationError.from_exception_data("config", details)


def explained(
    error: ValidationError, cls: type[BaseModel], path: tuple[str | int, ...] = ()
) -> Iterator[Problem]:
    """Yield a problem in our own words for each pydantic error in the model `cls` at `path`."""
    items = error.errors()
    places = [item["loc"] for item in items]
    extra = [item["loc"] for item in items if item["type"] == "extra_forbidden"]
    for item in items:
        depth = len(item["loc"])
        if item["type"] == "too_short" and any(
            place[:depth] == item["loc"] and len(place) > depth for place in places
        ):
            continue  # pydantic leaves wrong elements out and then counts
        where = (*path, *item["loc"])
        value = item.get("input")
        rules = [_rule(item)]
        if _is_branch(item["loc"]):
            branches = [
                branch
                for branch in items
                if _is_branch(branch["loc"]) and branch["loc"][:-1] == item["loc"][:-1]
            ]
            if branches[0] is not item:
                continue
            where, rules = where[:-1], [_rule(branch) for branch in branches]
        if item["type"] == "extra_forbidden":
            message = _unknown_field(item["loc"], _fields_at(cls, item["loc"][:-1]))
        elif item["type"] == "missing":
            beside = (place[-1] for place in extra if place[:-1] == item["loc"][:-1])
            if misspelt(str(item["loc"][-1]), beside):
                continue  # the misspelt name is reported
            message = "is required"
        elif item["type"] == "value_error":
            message = str(item["ctx"]["error"])
        elif item["type"] == "problem":
            message = item["msg"]
        elif item["type"] == "model_type":
            message = f"must be a mapping of fields, got {value!r}"
        else:
            shown = repr(value)
            shown = shown if len(shown) <= 80 else f"{shown[:80]}..."
            message = f"must {' or '.join(rules)}, got {shown}"
        yield Problem(where, message)


def _unknown_field(place: tuple[str | int, ...], known: Mapping[str, FieldInfo]) -> str:
    """Return the message for an unknown field at `place`. It suggests the field of this name in a
    section below, the field that other tools call so, else a similar one of `known`."""
    *section, name = place
    below = [
        f"{field}.{name}"
        for field, info in known.items()
        if any(name in model.model_fields for model in _models_in(info.annotation))
    ]
    meant = SYNONYMS.get(str(name), "").removeprefix(f"{dotted(section)}.")
    if below or meant.partition(".")[0] in known:
        names = " or ".join(map(repr, below or [meant]))
        return f"unknown field {name!r}; did you mean {names}?"
    return unknown("field", name, known)


def _rule(item: Any) -> str:
    """Return the rule that a value breaks, such as `be a valid integer`, for a message."""
    rule = item["msg"].partition(" should ")[2] or str(item["msg"])
    return rule.replace("valid tuple", "list")


def _is_branch(place: tuple[str | int, ...]) -> bool:
    return bool(place) and isinstance(place[-1], str) and bool(_BRANCH.fullmatch(place[-1]))


def _fields_at(cls: type[BaseModel], path: Iterable[str | int]) -> Mapping[str, FieldInfo]:
    """Return the fields of the nested model at `path`."""
    for step in path:
        field = cls.model_fields.get(step) if isinstance(step, str) else None
        inner = field and next(_models_in(field.annotation), None)
        cls = inner or cls
    return cls.model_fields


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in an annotation: `X`, `X | None`, `Mapping[str, X]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models_in(part)
