"""The options of `doctor`."""

from __future__ import annotations

import argparse


def add(doctor: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    doctor.add_argument(
        "only", metavar="SUBJECT", nargs="*", help="home, trials, mlflow, ray.nodes, ...; all"
    )
    doctor.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster (RAY_ADDRESS)")
    doctor.add_argument(
        "--nodes", action="store_true", help="ask each node of the cluster too, by a task there"
    )
    doctor.add_argument("--json", action="store_true", help="print as JSON")
