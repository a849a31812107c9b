"""The commands and their options, without importing what they need."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from sweeps import compare_options, data_options, doctor_options, submit_options, ui_options
from sweeps.durations import seconds
from sweeps.parser import Parser, near

T = TypeVar("T")
ENGINES = ("auto", "local", "ray")
KEYS: Mapping[str, str] = {
    "engine": "engine",
    "parallel": "parallel",
    "timeout": "timeout",
    "data_root": "data.root",
}
"""Options that stand for a key of the sweep file, and the key."""
COMMANDS: Mapping[str, str] = {
    "init": "look at a folder of images, and write a first family file and sweep file for it",
    "data": "the data sets: what is expected where, what is there, and whether it is whole",
    "run": "run a sweep, or go on with it",
    "check": "validate a sweep file and plan: runs, time, disk, whether it can be done",
    "resume": "go on with a sweep by its name, as it was run",
    "stop": "ask a running sweep to stop, on whatever host",
    "submit": "send a sweep to a Ray cluster from outside, and follow it",
    "watch": "how a sweep stands, from another terminal",
    "list": "the sweeps of this home",
    "show": "trials and runs of one sweep",
    "compare": "the comparison and the verdict of sweeps",
    "report": "the comparison as one HTML page, with charts and images",
    "export": "a model of a sweep as a folder that plain open_clip loads",
    "predict": "what an exported model says of images",
    "sync": "deliver to the tracking server what it missed",
    "ui": "start MLflow's server on this home",
    "doctor": "whether everything that sweeps stand on is there, and what to do where it is not",
    "schema": "the JSON schema of sweep files or family files, for an editor",
    "clean": "remove what no sweep needs any more",
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The command and its options. Exits with 2 for what nobody knows, with 0 after --help."""
    parser, commands = _parsers()
    words, more = submit_options.split(arguments)
    found, extra = parser.parse_known_args(words)
    found.more = more
    if extra:
        own = commands.get(_full_name(found), parser)
        unknown = next((word for word in extra if word.startswith("-")), None)
        if unknown is None:
            own.error(f"what is {extra[0]!r} for? It is one argument too many")
        name = unknown.partition("=")[0]
        own.error(f"unknown option {name}{near(name, own.options())}")
    if found.command is None:
        parser.print_help()
        parser.exit(2)
    return found


def _full_name(found: argparse.Namespace) -> str:
    """`check`, `data check`."""
    action = getattr(found, "action", None)
    return f"{found.command} {action}" if action else str(found.command)


def keys(arguments: argparse.Namespace) -> dict[str, object]:
    """What was given for keys of the sweep file, by key, but for `--set`."""
    given = vars(arguments)
    return {key: given[name] for name, key in KEYS.items() if given.get(name) is not None}


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Every `key=value` that goes before the file, the later ones before the earlier.

    Profiles, then `--set`, then the options that say the same.
    """
    profiles = (f"profile={name}" for name in arguments.profiles)
    said = (f"{key}={value}" for key, value in keys(arguments).items())
    return [*profiles, *arguments.overrides, *said]


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
    _of_beginning(commands["init"])
    commands |= _of_datasets(commands["data"])
    _of_files(commands["run"], commands["check"])
    _of_execution(commands["run"], commands["resume"])
    data_options.of_root(commands["run"], commands["resume"], commands["check"])
    _of_place(commands["run"], commands["resume"], commands["check"])
    commands["run"].add_argument("--fresh", action="store_true", help="train every run again")
    commands["check"].add_argument(
        "--measure",
        action="store_true",
        help="train a few steps of the first run, to tell how long it all takes",
    )
    submit_options.add(commands["submit"])
    _of_going_on(commands)
    _of_results(commands)
    _of_report(commands["report"])
    _of_models(commands)
    _of_upkeep(commands)
    return parser, commands


def _home(parser: Parser, *, default: str | None) -> None:
    parser.add_argument(
        "--home", metavar="FOLDER", default=default, help="where state lies (CARFT_HOME, .carft)"
    )


def _of_beginning(init: Parser) -> None:
    init.add_argument("folder", metavar="DIR", help="the folder of images")
    init.add_argument("--out", metavar="FOLDER", help="where to write (the current folder)")
    init.add_argument("--name", metavar="NAME", help="of family and sweep (made of the folder's)")
    init.add_argument("--force", action="store_true", help="write over files that are there")
    init.add_argument("--json", action="store_true", help="print what was found as JSON")


def _of_datasets(data: Parser) -> dict[str, Parser]:
    """The actions of `data`, by their full names."""
    subparsers = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    actions = {}
    for name, told in data_options.ACTIONS.items():
        actions[name] = subparsers.add_parser(
            name, help=told, description=f"{told[0].upper()}{told[1:]}.", allow_abbrev=False
        )
        _home(actions[name], default=argparse.SUPPRESS)
    data_options.add(actions)
    return {f"data {name}": action for name, action in actions.items()}


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
        parser.add_argument(
            "--profile",
            metavar="NAME",
            action="append",
            default=[],
            dest="profiles",
            help="the changes that the file keeps under profiles.NAME; repeatable",
        )
        parser.add_argument("--json", action="store_true", help="print the result as JSON")


def _of_execution(*parsers: Parser) -> None:
    for parser in parsers:
        parser.add_argument(
            "--in-process", action="store_true", help="train in this process, for a debugger"
        )
        parser.add_argument(
            "--quiet", action="store_true", help="no progress, only failures and the end"
        )
        parser.add_argument(
            "--timeout",
            metavar="TIME",
            type=_checked(seconds),
            help="a run that takes longer has failed: seconds, or 90m, 2h30m",
        )
        parser.add_argument(
            "--webhook",
            choices=["no"],
            help="no: tell no webhook, whatever the file and CARFT_WEBHOOK say",
        )


def _of_place(*parsers: Parser) -> None:
    for parser in parsers:
        parser.add_argument(
            "--engine",
            choices=ENGINES,
            help="where runs execute: local, ray, or auto (the file's `engine`)",
        )
        parser.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster (RAY_ADDRESS)")
        parser.add_argument(
            "--parallel", metavar="N", type=_checked(_count), help="most runs at once, with ray"
        )
        parser.add_argument(
            "--import",
            metavar="MODULE",
            action="append",
            default=[],
            dest="imports",
            help="a module or file with algorithms, merges or families of your own; repeatable",
        )


def _of_going_on(commands: Mapping[str, Parser]) -> None:
    resume, stop, watch = commands["resume"], commands["stop"], commands["watch"]
    for parser in (resume, stop, watch):
        parser.add_argument("sweep", metavar="SWEEP", help="its name")
    resume.add_argument(
        "--failed", action="store_true", help="try every failed trial again, NaN too"
    )
    resume.add_argument("--trials", metavar="+N", type=_checked(_count), help="so many trials more")
    resume.add_argument("--json", action="store_true", help="print the result as JSON")
    stop.add_argument("--now", action="store_true", help="in the middle of an epoch")
    stop.add_argument("--no-wait", action="store_true", help="only ask")
    watch.add_argument("--once", action="store_true", help="print it and end")
    watch.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_checked(seconds),
        default=2.0,
        help="between two looks (2)",
    )
    commands["sync"].add_argument(
        "sweeps", metavar="SWEEP", nargs="*", help="names; left out, every sweep"
    )


def _checked(convert: Callable[[str], T]) -> Callable[[str], T]:
    """For `type=`: what is wrong with a value is said in its own words."""

    def converted(text: str) -> T:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


def _count(text: str) -> int:
    """`3` or `+3`. Raises ValueError."""
    if not re.fullmatch(r"\+?[1-9][0-9]{0,8}", text):
        raise ValueError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def _of_results(commands: Mapping[str, Parser]) -> None:
    commands["list"].add_argument("--json", action="store_true", help="print as JSON")
    show, compare = commands["show"], commands["compare"]
    show.add_argument("sweep", metavar="SWEEP", help="its name")
    show.add_argument("--json", action="store_true", help="print as JSON, every trial")
    show.add_argument(
        "--state",
        choices=["running", "complete", "pruned", "failed"],
        help="only the trials in this state",
    )
    number = show.add_mutually_exclusive_group()
    number.add_argument(
        "--limit", metavar="N", type=_checked(_count), help="the best N trials (50)"
    )
    number.add_argument("--all", action="store_true", help="every trial")
    compare_options.add(compare)


def _of_models(commands: Mapping[str, Parser]) -> None:
    export, predict = commands["export"], commands["predict"]
    export.add_argument("sweep", metavar="SWEEP", help="its name")
    which = export.add_mutually_exclusive_group()
    which.add_argument("--run", metavar="DIGEST", help="this run, by the beginning of its digest")
    which.add_argument("--setting", metavar="LABEL", help="this setting, not the selected one")
    export.add_argument(
        "--seed", metavar="N", type=_checked(_whole), help="the run with this seed (the median)"
    )
    export.add_argument("--merge", metavar="LABEL", help="merged: wise_ft@0.5")
    export.add_argument("--out", metavar="FOLDER", help="where to (SWEEP-model)")
    export.add_argument("--mlflow", action="store_true", help="keep it in MLflow too")
    export.add_argument("--register", metavar="NAME", help="and register it there")
    export.add_argument("--force", action="store_true", help="replace another model there")
    export.add_argument("--json", action="store_true", help="print the result as JSON")
    predict.add_argument("model", metavar="MODEL", help="an exported folder, or a sweep's name")
    predict.add_argument("images", metavar="IMAGE", nargs="+", help="files, or folders of them")
    predict.add_argument(
        "--top", metavar="N", type=_checked(_count), default=5, help="most likely classes (5)"
    )
    predict.add_argument(
        "--contexts", metavar="N", type=_checked(_whole), default=3, help="contexts (3)"
    )
    predict.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    predict.add_argument("--json", action="store_true", help="print as JSON")


def _whole(text: str) -> int:
    """`0`, `3`. Raises ValueError."""
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise ValueError(f"must be a whole number, got {text!r}")
    return int(text)


def _of_report(report: Parser) -> None:
    report.add_argument("sweeps", metavar="SWEEP", nargs="+", help="names; several are one report")
    report.add_argument(
        "--out", metavar="FILE", help="where the page goes (report.html in the sweep's folder)"
    )
    report.add_argument(
        "--figures", metavar="FOLDER", help="write each chart there too, as PNG and SVG"
    )
    report.add_argument("--json", action="store_true", help="print where the files are as JSON")
    compare_options.of_choice(report)


def _of_upkeep(commands: Mapping[str, Parser]) -> None:
    clean = commands["clean"]
    commands["schema"].add_argument(
        "--family", action="store_true", help="of family files instead of sweep files"
    )
    ui_options.add(commands["ui"])
    doctor_options.add(commands["doctor"])
    clean.add_argument("--yes", action="store_true", help="remove; without it only tell")
    clean.add_argument("--json", action="store_true", help="print as JSON")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"carft-sweep {version('carft-sweep')}"
    except PackageNotFoundError:
        return "carft-sweep (not installed)"
