"""The options of every command."""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from carft_core.errors import unknown
from sweeps.spec.durations import seconds
from tracking.comparison.metrics import KINDS


class Parser(argparse.ArgumentParser):
    """An argument parser that names the nearest command or option."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)$", message)
        if wrong:
            allowed = re.findall(r"[\w-]+", wrong[2])
            option = re.match(r"argument (--[\w-]+):", message)
            kind = f"value of {option[1]}:" if option else "command"
            message = f"unknown {kind} {wrong[1]!r}{near(wrong[1], allowed)}"
            message += f" Known: {', '.join(allowed)}."
        self.exit(2, f"{self.prog}: {message}\nSee {self.prog} --help.\n")

    def options(self) -> list[str]:
        """The long options."""
        return [name for action in self._actions for name in action.option_strings]


def near(name: str, allowed: Sequence[str]) -> str:
    """`; did you mean 'run'?`, or a full stop when nothing is near."""
    found = difflib.get_close_matches(name, allowed, n=1)
    return f"; did you mean {found[0]!r}?" if found else "."


def add_compare(compare: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    compare.add_argument(
        "sweeps", metavar="SWEEP", nargs="*", help="names; several are one comparison"
    )
    form = compare.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print as JSON")
    form.add_argument("--csv", action="store_true", help="print as CSV, fractions")
    form.add_argument("--markdown", action="store_true", help="print as Markdown")
    form.add_argument("--latex", action="store_true", help="print as a LaTeX table (booktabs)")
    compare.add_argument("--separate", action="store_true", help="one comparison for each sweep")
    _of_rows(compare)
    of_choice(compare)
    _of_server(compare)


def _of_rows(compare: argparse.ArgumentParser) -> None:
    compare.add_argument(
        "--where",
        metavar="CONDITION",
        action="append",
        default=[],
        help="only these runs: algorithm=car_ft, kl_weight>=0.3; repeatable",
    )
    compare.add_argument("--columns", metavar="NAME,...", help="headers or metrics, in this order")
    compare.add_argument(
        "--sort", metavar="COLUMN", help="rows by this column; COLUMN:asc, COLUMN:desc"
    )
    compare.add_argument("--all", action="store_true", help="every trial, not the best 50 only")
    compare.add_argument("--all-alphas", action="store_true", help="every point of every merge")
    compare.add_argument(
        "--images", action="store_true", help="add bootstrap intervals over images"
    )
    compare.add_argument(
        "--published", action="store_true", help="add what others have published, marked as quoted"
    )


def of_choice(command: argparse.ArgumentParser) -> None:
    """What is chosen by what, and tested against which algorithm."""
    command.add_argument(
        "--reference",
        metavar="ALGORITHM",
        default="fine_tune",
        help="what the others are tested against (fine_tune)",
    )
    command.add_argument(
        "--metric",
        metavar="NAME",
        help="choose by this metric: id/val/nll, wise_ft@0.5/id/val/top1",
    )
    command.add_argument(
        "--selection",
        metavar="RULE",
        help="choose by best_val, within=0.005, oracle, training_domain or leave_one_domain_out",
    )
    command.add_argument(
        "--id-margin",
        metavar="FRACTION",
        type=_fraction,
        help="by how much ID may be lower and still count as not worse",
    )
    command.add_argument(
        "--by",
        metavar="ACCURACY",
        type=_kind,
        help="judge by top1, macro_f1, mean_per_class_top1, mean_group_top1 or worst_group_top1",
    )


def _of_server(compare: argparse.ArgumentParser) -> None:
    compare.add_argument(
        "--tracking-uri",
        metavar="URI",
        help="read from this MLflow server or database; without names, list its sweeps",
    )
    compare.add_argument("--experiment", metavar="NAME", help="of that server (carft-sweep)")


def _kind(text: str) -> str:
    """`macro_f1`."""
    if text not in KINDS:
        raise argparse.ArgumentTypeError(unknown("accuracy", text, KINDS))
    return text


def _fraction(text: str) -> float:
    """`0.005`."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to below 1, got {text!r}")
    return value


ACTIONS: Mapping[str, str] = {
    "list": "what each family reads, where to get it, and whether it is there",
    "check": "what is there of a family: images, classes and digests, and all that is wrong",
    "prepare": "do once what is slow, ahead of the first run, and look at every image",
}


def add_data(actions: Mapping[str, argparse.ArgumentParser]) -> None:
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


def add_doctor(doctor: argparse.ArgumentParser) -> None:
    """Add them to the parser of the command."""
    doctor.add_argument(
        "only", metavar="SUBJECT", nargs="*", help="home, trials, mlflow, ray.nodes, ...; all"
    )
    doctor.add_argument("--address", metavar="ADDRESS", help="of a Ray cluster (RAY_ADDRESS)")
    doctor.add_argument(
        "--nodes", action="store_true", help="ask each node of the cluster too, by a task there"
    )
    doctor.add_argument("--json", action="store_true", help="print as JSON")


EMITTED = ("rayjob",)
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def add_submit(parser: argparse.ArgumentParser) -> None:
    """Add them to the command's parser."""
    parser.usage = "%(prog)s FILE --address http://HOST:8265 [options] [-- options of run]"
    parser.add_argument(
        "file", metavar="FILE", nargs="?", help="a sweep file, or a shipped recipe's name"
    )
    parser.add_argument(
        "--address", metavar="URL", help="of the head's dashboard (RAY_API_SERVER_ADDRESS)"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    _of_jobs(parser)
    _of_the_sweep(parser)
    _of_the_bundle(parser)
    _of_the_environment(parser)
    _of_kubernetes(parser)


def split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of `submit`, and those behind `--`, which are for `run`; argparse knows no such
    thing. Of other commands all words are their own.
    """
    words = list(arguments)
    if "--" not in words or "submit" not in words[: words.index("--")]:
        return words, []
    at = words.index("--")
    return words[:at], words[at + 1 :]


def _of_jobs(parser: argparse.ArgumentParser) -> None:
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument("--no-wait", action="store_true", help="only submit, and print the job's id")
    asked.add_argument("--status", metavar="ID", help="how a job stands")
    asked.add_argument("--logs", metavar="ID", help="what a job has printed")
    asked.add_argument("--stop", metavar="ID", help="let a job end, so that it can go on later")
    asked.add_argument("--list", action="store_true", help="the sweeps that were submitted")
    asked.add_argument(
        "--emit", choices=EMITTED, help="write a manifest for KubeRay instead of submitting"
    )
    parser.add_argument(
        "--follow", action="store_true", help="with --logs: until the job ends, with its exit code"
    )


def _of_the_sweep(parser: argparse.ArgumentParser) -> None:
    for option, metavar, told, dest in (
        ("--set", "KEY=VALUE", "change a key of the file; repeatable", "overrides"),
        ("--profile", "NAME", "changes that the file keeps; repeatable", "profiles"),
        ("--import", "MODULE", "a module or file of your own; repeatable", "imports"),
    ):
        parser.add_argument(
            option, metavar=metavar, action="append", default=[], dest=dest, help=told
        )
    parser.add_argument("--parallel", metavar="N", help="most runs at once")
    parser.add_argument("--timeout", metavar="TIME", help="a run that takes longer has failed")
    parser.add_argument("--data-root", metavar="FOLDER", help="where the data lie on the cluster")
    parser.add_argument("--fresh", action="store_true", help="train every run again")
    parser.add_argument("--quiet", action="store_true", help="no progress in the job's log")


def _of_the_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--only-committed", action="store_true", help="send what is committed and nothing else"
    )
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        default=[],
        help="files or folders that are not sent; repeatable",
    )
    parser.add_argument(
        "--max-bundle",
        metavar="SIZE",
        type=_size,
        default=_size("100MB"),
        help="most that is sent (100MB)",
    )


def _of_the_environment(parser: argparse.ArgumentParser) -> None:
    for option, metavar, told in (
        ("--pip", "PACKAGE|FILE", "install it for the job; repeatable"),
        ("--env", "NAME=VALUE", "a variable of the job; repeatable"),
        ("--secret", "NAME=PATH", "a secret that lies in a file on the cluster; repeatable"),
    ):
        parser.add_argument(option, metavar=metavar, action="append", default=[], help=told)
    parser.add_argument(
        "--python", metavar="PATH", default="python", help="of the cluster, for the driver (python)"
    )


def _of_kubernetes(parser: argparse.ArgumentParser) -> None:
    told = parser.add_argument_group("with --emit rayjob")
    told.add_argument("--out", metavar="FILE", help="where to write the manifest (printed)")
    told.add_argument("--image", metavar="NAME", help="of the pods; it has carft-sweep and Ray")
    told.add_argument(
        "--working-dir", metavar="URI", help="an archive with your files: https://....zip, s3://..."
    )
    told.add_argument("--claim", metavar="NAME", default="carft-home", help="the home's volume")
    told.add_argument("--memory", metavar="SIZE", default="16Gi", help="of a worker pod (16Gi)")
    told.add_argument(
        "--workers", metavar="N", type=_count_of_nodes, help="pods (enough for `parallel`)"
    )
    told.add_argument("--cluster", metavar="NAME", help="a RayCluster that is there already")


def _size(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,6})\s*([KMG]B)?", text.upper())
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"must be a size like 50MB, got {text!r}")
    return int(found[1]) * _UNITS[found[2] or ""]


def _count_of_nodes(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text):
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 on, got {text!r}")
    return int(text)


def add_ui(ui: argparse.ArgumentParser) -> None:
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
    from tracking.ui_server import check_name

    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        try:
            check_name(name)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
    return names


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
    words, more = split(arguments)
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
    of_root(commands["run"], commands["resume"], commands["check"])
    _of_place(commands["run"], commands["resume"], commands["check"])
    commands["run"].add_argument("--fresh", action="store_true", help="train every run again")
    add_submit(commands["submit"])
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
    for name, told in ACTIONS.items():
        actions[name] = subparsers.add_parser(
            name, help=told, description=f"{told[0].upper()}{told[1:]}.", allow_abbrev=False
        )
        _home(actions[name], default=argparse.SUPPRESS)
    add_data(actions)
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
    add_compare(compare)


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
    of_choice(report)


def _of_upkeep(commands: Mapping[str, Parser]) -> None:
    clean = commands["clean"]
    commands["schema"].add_argument(
        "--family", action="store_true", help="of family files instead of sweep files"
    )
    add_ui(commands["ui"])
    add_doctor(commands["doctor"])
    clean.add_argument("--yes", action="store_true", help="remove; without it only tell")
    clean.add_argument("--json", action="store_true", help="print as JSON")


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"carft-sweep {version('carft-sweep')}"
    except PackageNotFoundError:
        return "carft-sweep (not installed)"
