"""Parts of a draft as the models that validate them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from carft_core.fields import explained
from sweeps.draft import Draft
from sweeps.yaml_lines import Route

M = TypeVar("M", bound=BaseModel)
_OF_A_KEY = "[key]"
"""Where pydantic says that it means a key and not its value."""


def validated(draft: Draft, cls: type[M], fields: Mapping[str, Any], route: Route) -> M | None:
    """The model of `fields`, which stand at `route`; None after reporting what is wrong."""
    try:
        return cls.model_validate(dict(fields))
    except ValidationError as error:
        for mistake in explained(error, cls, route):
            path = mistake.path[:-1] if mistake.path[-1:] == (_OF_A_KEY,) else mistake.path
            draft.report(path, mistake.message)
        return None
