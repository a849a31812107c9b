"""How a law is told to be broken, and the laws that algorithms and merges share."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping

from pydantic import BaseModel, ValidationError


class BrokenContract(AssertionError):
    """A law does not hold; a test that lets it through has failed."""


def must(holds: bool, what: str) -> None:
    """Raise BrokenContract, saying what must be, unless it holds."""
    if not holds:
        raise BrokenContract(what)


def must_be_registered(registry: Mapping[str, object], name: str, thing: object) -> None:
    """A sweep file finds it by its name."""
    must(registry.get(name) is thing, f"{name}: it must be registered under its name")


def must_be_plain_settings(cls: type[BaseModel], name: str) -> None:
    """All fields have defaults, none can be changed, and nothing is lost in JSON and pickle."""
    required = [field for field, info in cls.model_fields.items() if info.is_required()]
    must(not required, f"{name}: every field must have a default; these lack one: {required}")
    settings = cls()
    for field in cls.model_fields:
        try:
            setattr(settings, field, getattr(settings, field))
        except ValidationError:
            continue
        raise BrokenContract(f"{name}: it must be frozen, but {field} can be set")
    again = cls.model_validate(json.loads(settings.model_dump_json()))
    must(again == settings, f"{name}: its fields must survive JSON; got {again!r}")
    must(
        pickle.loads(pickle.dumps(settings)) == settings,
        f"{name}: it must survive pickle, since it goes to other processes",
    )
    try:
        cls.model_validate({"no_such_field": 1})
    except ValidationError:
        return
    raise BrokenContract(f"{name}: it must refuse a field that it does not have")
