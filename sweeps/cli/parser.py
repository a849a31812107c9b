"""The options of every command: one function a command."""

from __future__ import annotations

import argparse
import difflib
import json
import platform
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from carft_sweep.carft_core.errors import RequestError, unknown
from carft_sweep.sweeps.spec.durations import seconds
from carft_sweep.tracking.comparison.metrics import KINDS
from carft_sweep.tracking.location import UI_PORT
from carft_sweep.tracking.ownership import TRUST_OPTION
from carft_sweep.tracking.program import NAME, program

ENGINES = ("auto", "local", "ray")
PACKAGES = ("carft-sweep", "torch", "open-clip-torch", "mlflow", "optuna", "ray")
"""Packages whose versions `--version` prints."""
KEYS: Mapping[str, str] = {
    "engine": "engine",
    "parallel": "parallel",
    "timeout": "timeout",
    "data_root": "data.root",
}
"""Options that stand for a key of the sweep file, and the key."""
EVERYWHERE = ("--home", TRUST_OPTION, "--verbose")
"""What every command takes, before its name or after it."""


class _Versions(argparse.Action):
    """Prints the versions of the packages that decide about results, without importing them."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print the versions and exit with 0."""
        from carft_sweep.carft_core.requirements import installed_version

        lines = [f"{name} {installed_version(name) or '(not installed)'}" for name in PACKAGES]
        lines.insert(1, f"Python {platform.python_version()}")
        sys.stdout.write("".join(f"{line}\n" for line in lines))
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser that suggests the nearest command or option."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and exit with 2."""
        wrong = re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)$", message)
        if wrong:
            option = re.match(r"argument (--[\w-]+):", message)
            kind = f"value of {option[1]}:" if option else "command"
            allowed = re.findall(r"[\w-]+", wrong[2])
            message = unknown(kind, wrong[1], allowed)
        self.exit(
            2, f"{self.prog}: {message}\nSee {self.prog.replace(NAME, program(), 1)} --help.\n"
        )

    def actions(self) -> list[argparse.Action]:
        """Return the command's arguments and options, in order."""
        return self._actions

    def options(self) -> list[str]:
        """Return the names of the command's options."""
        return [name for action in self._actions for name in action.option_strings]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the parsed command and its options. Exits with 2 for a mistake, 0 after --help."""
    parser, commands = parsers()
    words, more = _split(arguments)
    namespace, extra = parser.parse_known_args(words)
    namespace.more = more
    if namespace.command is None and not extra:
        parser.print_help()
        parser.exit(2)
    if extra:
        action = getattr(namespace, "action", None)
        name = f"{namespace.command} {action}" if action else namespace.command
        command = commands.get(name, parser)
        options = [word.partition("=")[0] for word in extra if word.startswith("-")]
        if not options:
            is_change = "=" in extra[0] and "--set" in command.options()
            hint = f"; did you mean --set {extra[0]}?" if is_change else ""
            command.error(f"unexpected argument {extra[0]!r}{hint}")
        command.error("\n".join(_unknown_option(command, option) for option in options))
    return namespace


def _unknown_option(command: Parser, option: str) -> str:
    own = {name.lstrip("-"): name for name in command.options()}
    near = difflib.get_close_matches(option.lstrip("-"), own, n=1, cutoff=0.75)
    if near:
        return f"unknown option {option!r}; did you mean {own[near[0]]!r}?"
    if "--set" in command.options():
        return f"unknown option {option!r}; a key of the sweep file is changed by --set KEY=VALUE"
    return f"unknown option {option!r}"


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the arguments in two parts: `submit` passes those behind `--` on to `run`, which
    argparse cannot do."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    return (words[:at], words[at + 1 :]) if "submit" in words[:at] else (words, [])


def keys(arguments: argparse.Namespace) -> dict[str, object]:
    """Return the values of options for keys of the sweep file, by key, without `--set`."""
    given = vars(arguments)
    return {key: given[name] for name, key in KEYS.items() if given.get(name) is not None}


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Return every `key=value` that overrides the file, where later ones override earlier ones.
    Profiles come first, then `--set`, then the options for the same keys."""
    profiles = (f"profile={name}" for name in arguments.profiles)
    options = (f"{key}={value}" for key, value in keys(arguments).items())
    return [*profiles, *arguments.overrides, *options]


class _WholeParser(Parser):
    """The parser of all commands, whose help begins with examples and has commands in groups."""

    def format_help(self) -> str:
        """Return the text of the help page."""
        formatter = self._get_formatter()
        formatter.add_usage(self.usage, [], [])
        printed = {words.replace(NAME, program(), 1): what for words, what in EXAMPLES.items()}
        width = max(map(len, printed))
        examples = (f"  {words:{width}}  {what}" for words, what in printed.items())
        formatter.add_text("\n".join([f"{self.description}\n", "examples:", *examples]))
        for title, names in GROUPS.items():
            formatter.start_section(title)
            formatter.add_arguments(
                argparse.Action([], name, metavar=name, help=COMMANDS[name][0]) for name in names
            )
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments(action for action in self._actions if action.option_strings)
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help()


def parsers() -> tuple[Parser, dict[str, Parser]]:
    """Return the parser of all commands, and that of each command by full name (`data check`)."""
    parser = _WholeParser(
        prog=NAME,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] COMMAND ...",
        description="Sweeps of robust CLIP fine-tuning, measured in and out of distribution.",
        epilog="State is in one folder: --home, or CARFT_HOME, or .carft here.",
    )
    purpose = "print the versions of carft-sweep and of what it runs on"
    parser.add_argument("--version", action=_Versions, nargs=0, help=purpose)
    _everywhere(parser, home=None, trust=False, verbose=0)
    commands = _subcommands(parser, "command", COMMANDS)
    return parser, commands | _subcommands(commands["data"], "action", DATA_ACTIONS, "data ")


def _subcommands(
    parser: Parser,
    dest: str,
    table: Mapping[str, tuple[str, Callable[[Parser], None]]],
    prefix: str = "",
) -> dict[str, Parser]:
    # `prog` is given, since argparse would take it from the whole parser's usage, which is ours.
    subparsers = parser.add_subparsers(
        dest=dest,
        metavar=dest.upper(),
        prog=parser.prog,
        parser_class=Parser,
        required=bool(prefix),
    )
    commands = {}
    for name, (purpose, add_options) in table.items():
        command = subparsers.add_parser(
            name,
            help=purpose,
            description=f"{purpose[0].upper()}{purpose[1:]}.",
            allow_abbrev=False,
        )
        add_options(command)
        hidden = argparse.SUPPRESS  # what stands before the command counts
        _everywhere(command, home=hidden, trust=hidden, verbose=hidden)
        commands[f"{prefix}{name}"] = command
    return commands


# Options of several commands.


def _everywhere(parser: Parser, *, home: str | None, trust: bool | str, verbose: int | str) -> None:
    _value(parser, "--home", "FOLDER", "where state is (CARFT_HOME, .carft)", default=home)
    parser.add_argument(
        TRUST_OPTION,
        action="store_true",
        default=trust,
        help="use a home that others own or can write to, and run the modules that it names",
    )
    parser.add_argument(
        "-v",
        "--verbose",
        action="count",
        default=verbose,
        help="log to standard error what is decided and why; -vv in detail",
    )


def _value(
    parser: argparse._ActionsContainer,
    name: str,
    metavar: str | tuple[str, ...],
    purpose: str,
    **more: Any,
) -> None:
    """Add to a parser an argument (`sweep`) or an option (`--seed`) with one value or several."""
    parser.add_argument(name, metavar=metavar, help=purpose, **more)


def _flag(parser: argparse._ActionsContainer, option: str, purpose: str) -> None:
    parser.add_argument(option, action="store_true", help=purpose)


def _json(parser: argparse._ActionsContainer, purpose: str = "print the result as JSON") -> None:
    _flag(parser, "--json", purpose)


def _repeated(
    parser: Parser, option: str, metavar: str, purpose: str, dest: str | None = None
) -> None:
    more = {"action": "append", "default": [], "dest": dest or option.strip("-")}
    _value(parser, option, metavar, f"{purpose}; repeatable", **more)


def _imports(parser: Parser, what: str = "algorithms, merges or families") -> None:
    purpose = f"a module or file with {what} of your own"
    _repeated(parser, "--import", "MODULE", purpose, "imports")


def _data_root(parser: Parser) -> None:
    purpose = "where the data sets are (the file's `data.root`, CARFT_DATA)"
    _value(parser, "--data-root", "FOLDER", purpose, type=_absolute)


def _sweep(parser: Parser) -> None:
    _value(parser, "sweep", "SWEEP", "its name, or its file", type=_sweep_name)


def _sweep_file(parser: Parser) -> None:
    _value(parser, "file", "FILE", "a sweep file, or a shipped recipe's name")
    purpose = "change a key of the file: --set seeds=5, --set trial.optim.epochs=3"
    _repeated(parser, "--set", "KEY=VALUE", purpose, "overrides")
    purpose = "make the changes that the file keeps under profiles.NAME, before any --set"
    _repeated(parser, "--profile", "NAME", purpose, "profiles")


def _execution(parser: Parser) -> None:
    purpose = "train in this process, so that breakpoint() works; nothing guards it"
    _flag(parser, "--in-process", purpose)
    _flag(parser, "--quiet", "no progress, only failures and the end")
    purpose = "a run that takes longer has failed: seconds, or 90m, 2h30m"
    _value(parser, "--timeout", "TIME", purpose, type=_seconds)


def _engine(parser: Parser) -> None:
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        help="where runs execute: local, ray, or auto (the file's `engine`)",
    )
    _value(parser, "--address", "ADDRESS", "HOST:PORT of a Ray cluster (RAY_ADDRESS)")
    purpose = "the most runs at once, or auto (the file's `parallel`)"
    _value(parser, "--parallel", "N", purpose, type=_count_or_auto)
    _imports(parser)


def _selection(parser: Parser) -> None:
    """Add options for the runs to compare, the selection metric and rule, and the reference."""
    _repeated(parser, "--where", "CONDITION", "only these runs: algorithm=car_ft, kl_weight>=0.3")
    purpose = "what the others are tested against (fine_tune)"
    _value(parser, "--reference", "ALGORITHM", purpose, default="fine_tune")
    purpose = "select by this metric: id/val/nll, wise_ft@0.5/id/val/top1"
    _value(parser, "--metric", "NAME", purpose)
    purpose = "select by best_val, within=0.005 or oracle"
    _value(parser, "--selection", "RULE", purpose)
    purpose = "the loss of ID accuracy that still counts as kept (0.005)"
    _value(parser, "--id-margin", "FRACTION", purpose, type=_fraction)
    purpose = "the OOD gain that is worth having, which NO GAIN excludes"
    _value(parser, "--ood-margin", "FRACTION", purpose, type=_fraction)
    purpose = "judge by top1, macro_f1, mean_per_class_top1, mean_group_top1 or worst_group_top1"
    _value(parser, "--by", "ACCURACY", purpose, choices=KINDS)


# Options of one command.


def _init(parser: Parser) -> None:
    _value(parser, "folder", "DIR", "the folder of images")
    _value(parser, "--out", "FOLDER", "where the files go (the current folder)")
    _value(parser, "--name", "NAME", "of family and sweep (made of the folder's)")
    _flag(parser, "--force", "overwrite existing files")
    _json(parser, "print what the folder holds as JSON")


def _data(parser: Parser) -> None:
    """Add nothing, since the options belong to the actions `list` and `check`."""


def _data_list(parser: Parser) -> None:
    _data_root(parser)
    _value(parser, "families", "FAMILY", "names or family files; left out, every one", nargs="*")
    _imports(parser, "families")
    _json(parser)


def _data_check(parser: Parser) -> None:
    _data_root(parser)
    _value(parser, "family", "FAMILY", "its name, or a family file")
    purpose = "a field of data: --set data.shifts=[v2,r]"
    _repeated(parser, "--set", "KEY=VALUE", purpose, "overrides")
    _imports(parser, "families")
    _flag(parser, "--read", "decode every image too, once; the first run then need not")
    _json(parser)


def _run(parser: Parser) -> None:
    _sweep_file(parser)
    _json(parser)
    _execution(parser)
    _data_root(parser)
    _engine(parser)
    purpose = "train every run again; earlier results are replaced when the new ones are complete"
    _flag(parser, "--fresh", purpose)


def _check(parser: Parser) -> None:
    _sweep_file(parser)
    purpose = (
        "say what the runs would take of a GPU that need not be here, such as H100: memory, hours"
    )
    _value(parser, "--gpu", "NAME", purpose)
    _json(parser)
    _data_root(parser)
    _engine(parser)


def _resume(parser: Parser) -> None:
    _sweep(parser)
    _flag(parser, "--failed", "retry all failed trials, including those that became NaN")
    _json(parser)
    _execution(parser)
    _data_root(parser)
    _engine(parser)


def _stop(parser: Parser) -> None:
    _sweep(parser)
    _flag(parser, "--now", "in the middle of an epoch")
    _flag(parser, "--no-wait", "only request it")


def _set(parser: Parser) -> None:
    _sweep(parser)
    _value(parser, "change", "parallel=N", "the most runs at once, up to those it began with")


def _submit(parser: Parser) -> None:
    parser.usage = "%(prog)s FILE --address http://HOST:8265 [options] [-- options of run]"
    _sweep_file(parser)
    _imports(parser)
    _value(parser, "--address", "URL", "of the head's dashboard (RAY_API_SERVER_ADDRESS)")
    _json(parser)
    _flag(parser, "--no-wait", "only submit, and print the job's id")
    _repeated(parser, "--exclude", "PATTERN", "what is not sent, as in a .gitignore")
    _repeated(parser, "--env", "NAME=VALUE", "a variable of the job")


def _list(parser: Parser) -> None:
    _json(parser, "print as JSON")


def _show(parser: Parser) -> None:
    _sweep(parser)
    _json(parser, "print as JSON, every trial")
    parser.add_argument(
        "--state",
        choices=["running", "complete", "pruned", "failed"],
        help="only the trials in this state",
    )
    _flag(parser, "--all", "every trial, not the unfinished ones and the best, 50 in all")


def _compare(parser: Parser) -> None:
    purpose = "names or files, several as one; published folders: ./theirs; a table: results.csv"
    _value(parser, "sweeps", "SWEEP", purpose, nargs="*", type=_sweep_name)
    form = parser.add_mutually_exclusive_group()
    _json(form, "print as JSON")
    _flag(form, "--csv", "print as CSV, fractions")
    _flag(form, "--markdown", "print as Markdown")
    _flag(form, "--latex", "print as a LaTeX table (booktabs)")
    _flag(form, "--power", "print which differences these seeds and test images find")
    _value(parser, "--columns", "NAME,...", "headers or metrics, in this order")
    _flag(parser, "--all", "every setting, not the best 50 trials and baselines only")
    _flag(parser, "--all-alphas", "every point of every merge")
    purpose = "only count the test images that setting B wins and loses against A, by split"
    _value(parser, "--flips", ("A", "B"), purpose, nargs=2)
    _selection(parser)
    purpose = "read from this MLflow server or database; without names, list its sweeps"
    _value(parser, "--tracking-uri", "URI", purpose)
    _value(parser, "--experiment", "NAME", "of that server (carft-sweep)")


def _report(parser: Parser) -> None:
    purpose = "names or files, several as one; or a table: results.csv"
    _value(parser, "sweeps", "SWEEP", purpose, nargs="+", type=_sweep_name)
    purpose = "the page, else in the home; or of one sweep a folder to publish, with its numbers"
    _value(parser, "--out", "FILE", purpose)
    _value(parser, "--figures", "FOLDER", "write each chart there too, as PNG and SVG")
    _json(parser, "print where the files are as JSON")
    _selection(parser)


def _export(parser: Parser) -> None:
    _sweep(parser)
    which = parser.add_mutually_exclusive_group()
    _value(which, "--run", "DIGEST", "this run, by the beginning of its digest")
    _value(which, "--setting", "LABEL", "this setting, not the selected one")
    _value(parser, "--seed", "N", "the run with this seed (the median)", type=_zero_or_more)
    _value(parser, "--merge", "LABEL", "a merged model of the run: wise_ft@0.5; or unmerged")
    _value(parser, "--out", "FOLDER", "where to (SWEEP-model)")
    _flag(parser, "--mlflow", "keep it in MLflow too, where it can be served")
    _flag(parser, "--force", "replace another exported model; nothing else is ever replaced")
    _json(parser)


def _predict(parser: Parser) -> None:
    purpose = "an exported folder, or a sweep's name or file"
    _value(parser, "model", "MODEL", purpose, type=_sweep_name)
    _value(parser, "images", "IMAGE", "files, or folders of them", nargs="+")
    _value(parser, "--top", "N", "most likely classes (5)", type=_count)
    _value(parser, "--contexts", "N", "contexts (3); 0 for none", type=_zero_or_more)
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps")
    _json(parser, "print as JSON")


def _sync(parser: Parser) -> None:
    purpose = "names or files; left out, every sweep"
    _value(parser, "sweeps", "SWEEP", purpose, nargs="*", type=_sweep_name)


def _ui(parser: Parser) -> None:
    purpose = f"the port to listen on; 0 for any ({UI_PORT})"
    _value(parser, "--port", "N", purpose, type=_port, default=UI_PORT)


def _doctor(parser: Parser) -> None:
    _value(parser, "only", "SUBJECT", "home, mlflow, gpu, home.disk, ...; all", nargs="*")
    _json(parser, "print as JSON")


def _schema(parser: Parser) -> None:
    _flag(parser, "--family", "of family files instead of sweep files")


def _clean(parser: Parser) -> None:
    _flag(parser, "--yes", "remove; without it only list")
    _json(parser, "print as JSON")


def _remove(parser: Parser) -> None:
    _sweep(parser)
    _flag(parser, "--yes", "do not ask for confirmation")
    _json(parser, "print as JSON")


Command = tuple[str, Callable[[Parser], None]]
COMMANDS: Mapping[str, Command] = {
    "init": ("look at a folder of images, and write a family file and a sweep file for it", _init),
    "data": ("the data sets: what is expected where, what is there, and what is wrong", _data),
    "run": ("run a sweep, or resume it", _run),
    "check": ("validate a sweep file and plan: runs, time, disk, whether it can be done", _check),
    "resume": ("resume a sweep by its name, as it was run", _resume),
    "stop": ("stop a running sweep, on whatever host", _stop),
    "set": ("change how many runs of a running sweep go at once", _set),
    "pause": ("let no run of a running sweep begin until `resume`", _sweep),
    "submit": ("send a sweep to a Ray cluster from outside, and follow it", _submit),
    "watch": ("show the state of a sweep, from another terminal", _sweep),
    "list": ("the sweeps of this home", _list),
    "show": ("trials and runs of one sweep", _show),
    "compare": ("the comparison and the verdict of sweeps", _compare),
    "report": ("the comparison as one HTML page, with charts", _report),
    "export": ("a model of a sweep as a folder that plain open_clip loads", _export),
    "predict": ("classify images with an exported model", _predict),
    "sync": ("send runs that the tracking server has missed", _sync),
    "ui": ("start MLflow's server on this home", _ui),
    "doctor": ("check what sweeps need, and say what to do where it is missing", _doctor),
    "schema": ("the JSON schema of sweep files or family files, for an editor", _schema),
    "remove": (
        "remove a sweep: its folder, runs of no other sweep, study, runs in MLflow",
        _remove,
    ),
    "clean": ("remove what no sweep needs any more", _clean),
}
"""What each command is for, and what adds its options."""
GROUPS: Mapping[str, Sequence[str]] = {
    "start": ("init", "data", "check"),
    "run": ("run", "resume", "stop", "set", "pause", "submit"),
    "look": ("watch", "list", "show", "compare", "report", "ui"),
    "use a model": ("export", "predict"),
    "upkeep": ("sync", "remove", "clean", "doctor", "schema"),
}
"""The commands as the help shows them."""
EXAMPLES: Mapping[str, str] = {
    "carft-sweep run kl_weight": "train a shipped sweep, and compare",
    "carft-sweep check kl_weight --set seeds=3": "only plan it, changed",
    "carft-sweep report kl_weight": "its result as a page",
}
DATA_ACTIONS: Mapping[str, Command] = {
    "list": ("what each family reads, where to get it, and whether it is there", _data_list),
    "check": ("images, classes and digests of a family, and all that is wrong", _data_check),
}


# Values of options.


def _sweep_name(text: str) -> str:
    """Return the name of the sweep that a sweep file `text` describes; other texts are returned
    unchanged, folders too. Raises ArgumentTypeError for a file that is missing or unreadable."""
    if not text.endswith((".yaml", ".yml")) or Path(text).expanduser().is_dir():
        return text
    from carft_sweep.sweeps.spec.spec import name_in_file  # imports pydantic: not for --help

    try:
        return name_in_file(Path(text).expanduser())
    except RequestError as error:
        reason = f"{error} For a sweep's name see `{program()} list`."
        raise argparse.ArgumentTypeError(reason) from None


def _seconds(text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _whole(allowed: str, least: int, most: int = 10**10 - 1) -> Callable[[str], int]:
    """Return a converter of texts such as `3` to integers from `least` to `most`, a range that
    errors call `allowed`."""

    def convert(text: str) -> int:
        if not re.fullmatch("[0-9]{1,10}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a {allowed}, got {text!r}")
        return int(text)

    return convert


_count = _whole("whole number from 1 on", 1)
_zero_or_more = _whole("whole number", 0)
_port = _whole("number from 0 to 65535", 0, 65535)


def _count_or_auto(text: str) -> int | str:
    """Convert a text such as `3` to an integer from 1 on, unless it is `auto`."""
    return text if text == "auto" else _count(text)


def _fraction(text: str) -> float:
    """Convert a text such as `0.005` to a fraction in [0, 1)."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to below 1, got {text!r}")
    return value


def _absolute(text: str) -> str:
    """Return a folder's absolute path as YAML, since a sweep may be resumed from another folder."""
    return json.dumps(str(Path(text).expanduser().absolute()), ensure_ascii=False)
