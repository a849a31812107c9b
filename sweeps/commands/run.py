"""`carft-sweep run FILE`: run a sweep, or go on with it, and end with the comparison."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from sweeps.commands.execution import carry_out, with_options
from sweeps.home import find_home
from sweeps.imports import resolve
from sweeps.spec import load_spec

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    home = find_home(arguments.home)
    overrides = with_options(arguments.overrides, arguments)
    spec = load_spec(arguments.file, overrides, resolve(arguments.imports, Path.cwd()))
    return carry_out(spec, home, arguments, say, fresh=arguments.fresh)
