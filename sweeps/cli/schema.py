"""`carft-sweep schema`: the JSON schema of sweep files or family files, for an editor."""

from __future__ import annotations

import argparse
import json

from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.spec.schema import family_schema, sweep_schema


def schema_command(arguments: argparse.Namespace, emit: Emit) -> None:
    """Run the `schema` command."""
    schema = family_schema() if arguments.family else sweep_schema()
    emit(json.dumps(schema, indent=1))
