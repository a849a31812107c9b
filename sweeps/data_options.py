"""The options of `data list`, `data check` and `data prepare`, and where data lie in general."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

ACTIONS: Mapping[str, str] = {
    "list": "what each family reads, where to get it, and whether it is there",
    "check": "what is there of a family: images, classes and digests, and all that is wrong",
    "prepare": "do once what is slow, ahead of the first run, and look at every image",
}


def add(actions: Mapping[str, argparse.ArgumentParser]) -> None:
    """Add them to the parsers of the three."""
    of_root(*actions.values())
    actions["list"].add_argument(
        "families", metavar="FAMILY", nargs="*", help="names or family files; left out, every one"
    )
    for name in ("check", "prepare"):
        parser = actions[name]
        parser.add_argument("family", metavar="FAMILY", help="its name, or a family file")
        parser.add_argument(
            "--set",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            dest="overrides",
            help="a field of data: --set data.shifts=[v2,r]; repeatable",
        )
    for parser in actions.values():
        parser.add_argument(
            "--import",
            metavar="MODULE",
            action="append",
            default=[],
            dest="imports",
            help="a module or file with families of your own; repeatable",
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
    actions["check"].add_argument(
        "--against", metavar="FILE", help="what `data check --json` printed elsewhere"
    )
    actions["check"].add_argument(
        "--expect",
        metavar="DIGEST",
        help="the digest that the data must have, or 8 or more of its first characters",
    )


def of_root(*parsers: argparse.ArgumentParser) -> None:
    """Add `--data-root`."""
    for parser in parsers:
        parser.add_argument(
            "--data-root",
            metavar="FOLDER",
            type=_folder,
            help="where the data sets lie (the file's `data.root`, CARFT_DATA)",
        )


def _folder(text: str) -> str:
    """Absolute, as YAML: a sweep may go on from another folder."""
    return json.dumps(str(Path(text).expanduser().absolute()), ensure_ascii=False)
