"""The options of `ui`."""

from __future__ import annotations

import argparse


def add(ui: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    ui.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    ui.add_argument("--port", type=int, default=5000, help="first port to try (5000)")
    ui.add_argument(
        "--allowed-hosts",
        metavar="NAME,...",
        type=_names,
        default=(),
        help="names under which people open it: mlflow.lab.example",
    )
    protection = ui.add_mutually_exclusive_group()
    protection.add_argument(
        "--auth", action="store_true", help="ask for a name and a password (users in the home)"
    )
    protection.add_argument(
        "--no-auth", action="store_true", help="let everybody in who reaches --host"
    )
    ui.add_argument(
        "--static-prefix", metavar="/PATH", help="below which path a proxy shows it: /mlflow"
    )


def _names(text: str) -> tuple[str, ...]:
    """`lab,*.lab.example`. Raises ArgumentTypeError."""
    from tracking.ui_hosts import check_name

    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        try:
            check_name(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return names
