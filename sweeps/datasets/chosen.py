"""The data that a command line names: a family by its name or its file, with fields of `data`."""

from __future__ import annotations

import argparse
from pathlib import Path

from carft_core.config import trial_config
from carft_core.data.base import DataConfig
from carft_core.errors import InvalidConfig, Problem
from sweeps.arguments import keys
from sweeps.data_root import from_environment
from sweeps.draft import COMMAND_LINE, Draft, Place
from sweeps.own_families import name_all
from sweeps.own_modules import import_all
from sweeps.shape import apply
from sweeps.yaml_lines import parse

_FAMILY = ("trial", "data", "family")


def chosen(arguments: argparse.Namespace) -> DataConfig:
    """As a sweep file with the same `data` has it: the options, CARFT_DATA, the family's defaults.

    Raises InvalidConfig with every mistake at once.
    """
    family: str = arguments.family
    overrides = [*arguments.overrides, *(f"{key}={it}" for key, it in keys(arguments).items())]
    draft = Draft(parse("{}"), "data")
    import_all(draft, Path.cwd(), arguments.imports)
    draft.put(_FAMILY, family, Place(COMMAND_LINE - 1, family))
    for index, override in enumerate(overrides):
        key = override.partition("=")[0].strip().removeprefix("trial.")
        if not key.startswith("data.") or key == "data.family":
            place = Place(COMMAND_LINE + index, f"--set {override[:60]}")
            draft.complain(place, "only fields of data count here, such as data.shifts=[v2,r]")
    apply(draft, overrides)
    name_all(draft, Path.cwd())
    draft.check()
    apply(draft, from_environment(draft))
    try:
        return trial_config({"data": draft.get(_FAMILY[:2]), "algorithm": "fine_tune"}).data
    except InvalidConfig as error:
        raise InvalidConfig(
            Problem((), f"{draft.place(('trial', *problem.path)).text}: {problem}")
            for problem in error.problems
        ) from None
