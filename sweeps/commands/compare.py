"""`carft-sweep compare SWEEP...`: the table and the verdict, from what is on disk."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from rich.console import Console

from sweeps.home import find_home
from sweeps.json_lines import json_lines, json_list
from sweeps.named import look
from sweeps.records import comparison
from sweeps.runs import Runs
from tracking.columns import MOST
from tracking.compare import Comparison
from tracking.report import csv_text, markdown, terminal

Say = Callable[[str], None]


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. Several sweeps are shown one after another, as JSON in a list."""
    home = find_home(arguments.home)
    runs = Runs(home.runs)
    sweeps = [look(home, name) for name in arguments.sweeps]
    found = [comparison(sweep, runs, with_images=arguments.images) for sweep in sweeps]
    if arguments.json:
        plain = [item.in_parts() for item in found]
        for line in json_lines(plain[0]) if len(plain) == 1 else json_list(plain):
            say(line)
        return 0
    console = Console()
    for item in found:
        say(_text(item, arguments, console).rstrip())
    return 0


def _text(found: Comparison, arguments: argparse.Namespace, console: Console) -> str:
    most, all_alphas = None if arguments.all else MOST, arguments.all_alphas
    if arguments.csv:
        return csv_text(found)
    if arguments.markdown:
        return markdown(found, all_alphas=all_alphas, most=most)
    return terminal(
        found,
        width=console.width,
        all_alphas=all_alphas,
        colour=console.is_terminal,
        most=most,
    )
