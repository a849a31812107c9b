"""The name of this program in the commands that it prints."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

NAME = "carft-sweep"
SUBMITTED = "CARFT_SUBMITTED"
"""Variable of a job on a cluster: the command that submitted it, to be typed outside of it."""


def program() -> str:
    """Return how a shell calls this program: by name, or as it was called if PATH lacks it."""
    called = Path(sys.argv[0])
    if shutil.which(NAME) is None and SUBMITTED not in os.environ:
        if called.name == NAME:
            return shlex.quote(sys.argv[0])
        if called.parts[-2:] == ("carft_sweep", "__main__.py"):
            return f"{shlex.quote(sys.executable)} -m carft_sweep"
    return NAME


def command(verb: str, name: str, home: str | None, *options: str) -> str:
    """Return a command to type: `carft-sweep resume toy --home x`; `home` is as given."""
    of_home = ["--home", home] if home else []
    return f"{program()} {shlex.join([verb, name, *options, *of_home])}"
