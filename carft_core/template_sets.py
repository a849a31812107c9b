"""A user's own template set, known by its name like the built-in ones."""

from __future__ import annotations

import functools
from typing import cast

from carft_core.errors import RequestError
from carft_core.prompts import TEMPLATE_SETS, TemplateSet, _LazySets
from carft_core.registry import NAME


def register_templates(templates: TemplateSet, *, again: bool = False) -> TemplateSet:
    """Make a set known to `prompts.classes` and `prompts.contexts`; gives it back.

    The same set may come again, and `again` lets it take the place of an earlier one. Raises
    RequestError when its name is another's, or no name.
    """
    name = templates.name
    if not NAME.fullmatch(name):
        raise RequestError(
            f"template set {name!r} cannot be registered: its name must be lower-case letters, "
            "digits and '_', beginning with a letter"
        )
    if not again and name in TEMPLATE_SETS and TEMPLATE_SETS[name] != templates:
        raise RequestError(
            f"template set {name!r} cannot be registered: another set has this name; give it "
            "another"
        )
    # Not a method over there: the source of prompts.py is a part of every run's digest.
    cast(_LazySets, TEMPLATE_SETS)._makers[name] = functools.cache(lambda: templates)
    return templates
