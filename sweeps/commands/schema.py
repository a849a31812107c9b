"""`carft-sweep schema`: the JSON schema of sweep files, or of family files, for an editor."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from sweeps.schema import family_schema, sweep_schema

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command."""
    schema = family_schema() if arguments.family else sweep_schema()
    say(json.dumps(schema, indent=1))
    return 0
