"""The options of `ui`."""

from __future__ import annotations

import argparse


def add(ui: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    ui.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    ui.add_argument(
        "--port",
        metavar="N",
        type=_port,
        help="this port and no other; 0 for any (the first free one from 5000 on)",
    )
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


def _port(text: str) -> int:
    """`5000`. Raises ArgumentTypeError."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, got {text!r}")
    return int(text)


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
