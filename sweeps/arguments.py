"""The commands and their options, without importing what they need."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Mapping, Sequence
from typing import NoReturn

COMMANDS: Mapping[str, str] = {
    "run": "run a sweep, or go on with it",
    "check": "validate a sweep file and say what would run",
    "list": "the sweeps of this home",
    "show": "trials and runs of one sweep",
    "compare": "the comparison and the verdict of sweeps",
    "ui": "start MLflow's server on this home",
    "schema": "the JSON schema of sweep files, for an editor",
    "clean": "remove what no sweep needs any more",
}


class Parser(argparse.ArgumentParser):
    """An argument parser that names the nearest command or option."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)$", message)
        if wrong:
            allowed = re.findall(r"[\w-]+", wrong[2])
            message = f"unknown command {wrong[1]!r}{near(wrong[1], allowed)}"
            message += f" Known: {', '.join(allowed)}."
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help.\n")

    def options(self) -> list[str]:
        """The long options."""
        return [name for action in self._actions for name in action.option_strings]


def near(name: str, allowed: Sequence[str]) -> str:
    """`; did you mean 'run'?`, or a full stop when nothing is near."""
    found = difflib.get_close_matches(name, allowed, n=1)
    return f"; did you mean {found[0]!r}?" if found else "."


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command and its options. Exits with 2 for what nobody knows, with 0 after --help."""
    parser, commands = _parsers()
    found, extra = parser.parse_known_args(arguments)
    if extra:
        own = commands.get(found.command, parser) if found.command else parser
        unknown = next((word for word in extra if word.startswith("-")), None)
        if unknown is None:
            own.error(f"what is {extra[0]!r} for? It is one argument too many")
        name = unknown.partition("=")[0]
        own.error(f"unknown option {name}{near(name, own.options())}")
    if found.command is None:
        parser.print_help()
        parser.exit(2)
    return found


def _parsers() -> tuple[Parser, dict[str, Parser]]:
    parser = Parser(
        prog="carft-sweep",
        allow_abbrev=False,
        description="Sweeps of robust CLIP fine-tuning, measured in and out of distribution.",
        epilog="State lies in one folder: --home, or CARFT_HOME, or .carft here.",
    )
    parser.add_argument("--version", action="version", version=_version())
    _home(parser, default=None)
    subparsers = parser.add_subparsers(dest="command")
    commands = {}
    for name, told in COMMANDS.items():
        command = subparsers.add_parser(
            name, help=told, description=f"{told[0].upper()}{told[1:]}.", allow_abbrev=False
        )
        _home(command, default=argparse.SUPPRESS)
        commands[name] = command
    _of_files(commands["run"], commands["check"])
    _of_run(commands["run"])
    _of_results(commands)
    _of_upkeep(commands)
    return parser, commands


def _home(parser: Parser, *, default: str | None) -> None:
    parser.add_argument(
        "--home", metavar="FOLDER", default=default, help="where state lies (CARFT_HOME, .carft)"
    )


def _of_files(*parsers: Parser) -> None:
    for parser in parsers:
        parser.add_argument("file", metavar="FILE", help="a sweep file, or a shipped recipe's name")
        parser.add_argument(
            "--set",
            metavar="KEY=VALUE",
            action="append",
            default=[],
            dest="overrides",
            help="change a key of the file: --set seeds=5, --set trial.optim.epochs=3; repeatable",
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _of_run(parser: Parser) -> None:
    parser.add_argument("--fresh", action="store_true", help="train every run again")
    parser.add_argument(
        "--in-process", action="store_true", help="train in this process, for a debugger"
    )
    parser.add_argument(
        "--quiet", action="store_true", help="no progress, only failures and the end"
    )
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=float, help="a run that takes longer has failed"
    )


def _of_results(commands: Mapping[str, Parser]) -> None:
    commands["list"].add_argument("--json", action="store_true", help="print as JSON")
    show, compare = commands["show"], commands["compare"]
    show.add_argument("sweep", metavar="SWEEP", help="its name")
    show.add_argument("--json", action="store_true", help="print as JSON")
    compare.add_argument("sweeps", metavar="SWEEP", nargs="+", help="names")
    form = compare.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print as JSON")
    form.add_argument("--csv", action="store_true", help="print as CSV, fractions")
    form.add_argument("--markdown", action="store_true", help="print as Markdown")
    compare.add_argument("--all-alphas", action="store_true", help="every point of every merge")
    compare.add_argument(
        "--images", action="store_true", help="add bootstrap intervals over images"
    )


def _of_upkeep(commands: Mapping[str, Parser]) -> None:
    ui, clean = commands["ui"], commands["clean"]
    ui.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    ui.add_argument("--port", type=int, default=5000, help="first port to try (5000)")
    clean.add_argument("--yes", action="store_true", help="remove; without it only tell")
    clean.add_argument("--json", action="store_true", help="print as JSON")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"carft-sweep {version('carft-sweep')}"
    except PackageNotFoundError:
        return "carft-sweep (not installed)"
