"""`carft-sweep compare SWEEP...`: the table and the verdict, from what is on disk."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from rich.console import Console

from sweeps.home import find_home
from sweeps.named import find
from sweeps.records import comparison
from sweeps.runs import Runs
from tracking.report import csv_text, markdown, terminal

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Several sweeps are shown one after another, as JSON in a list."""
    home = find_home(arguments.home)
    runs = Runs(home.runs)
    ledgers = [find(home, name) for name in arguments.sweeps]
    found = [comparison(ledger, runs, with_images=arguments.images) for ledger in ledgers]
    if arguments.json:
        plain = [item.as_dict() for item in found]
        say(json.dumps(plain[0] if len(plain) == 1 else plain, indent=1, allow_nan=False))
        return 0
    console = Console()
    for item in found:
        if arguments.csv:
            say(csv_text(item).rstrip())
        elif arguments.markdown:
            say(markdown(item, all_alphas=arguments.all_alphas).rstrip())
        else:
            say(
                terminal(
                    item,
                    width=console.width,
                    all_alphas=arguments.all_alphas,
                    colour=console.is_terminal,
                ).rstrip()
            )
    return 0
