"""`carft-sweep schema`: the JSON schema of sweep files, for an editor."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from sweeps.schema import sweep_schema

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    del arguments
    say(json.dumps(sweep_schema(), indent=1))
    return 0
