"""`carft-sweep run FILE`: run a sweep, or go on with it, and end with the comparison."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from sweeps.arguments import overrides
from sweeps.commands.execution import carry_out
from sweeps.home import find_home
from sweeps.imports import resolve
from sweeps.spec import load_spec

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = find_home(arguments.home)
    modules = resolve(arguments.imports, Path.cwd())
    spec = load_spec(arguments.file, overrides(arguments), modules)
    address = arguments.address
    return carry_out(spec, home, arguments, say, address=address, fresh=arguments.fresh)
