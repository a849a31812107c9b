"""`carft-sweep data list`, `data check` and `data prepare`: data sets before any run."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

Say = Callable[[str], None]
_MODULES = {"list": "listing", "check": "checking", "prepare": "preparing"}


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run one of the three. Raises RequestError as it does."""
    action = importlib.import_module(f"sweeps.datasets.{_MODULES[arguments.action]}")
    code: int = action.run(arguments, say)
    return code
