"""`carft-sweep completion SHELL`: the script with which a shell completes our words.

The script asks this command anew each time, so it stays right when options or sweeps are added.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.cli.parser import Parser, parsers
from carft_sweep.sweeps.home import find_home
from carft_sweep.sweeps.ledger.trials import sweep_names

SCRIPTS = {
    "bash": r"""_carft_sweep() {
  local IFS=$'\t\n'
  local line="${COMP_WORDS[*]:0:COMP_CWORD+1}"
  COMPREPLY=($(carft-sweep completion --line "$line" 2>/dev/null))
}
complete -o default -F _carft_sweep carft-sweep
""",
    "zsh": r"""#compdef carft-sweep
_carft_sweep() {
  local -a found
  found=(${(f)"$(carft-sweep completion --line "${(pj:\t:)words[1,CURRENT]}" 2>/dev/null)"})
  if (( $#found )); then compadd -a found; else _files; fi
}
compdef _carft_sweep carft-sweep
""",
    "fish": r"""function __carft_sweep
  set -l last (commandline -ct)
  carft-sweep completion --line (string join \t -- (commandline -opc) "$last") 2>/dev/null
end
complete -c carft-sweep -n 'count (__carft_sweep) >/dev/null' -f -a '(__carft_sweep)'
""",
}
SWEEPS = ("SWEEP", "MODEL")
"""What an argument is called that may be a sweep's name."""


def completion_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run the command. Raises RequestError where no shell is named."""
    if arguments.line is not None:
        _, *words = arguments.line.split("\t")
        for word in completions(words or [""]):
            emit(word)
        return 0
    if arguments.shell is None:
        raise RequestError(f"which shell? {', '.join(SCRIPTS)}; such as: completion bash")
    emit(SCRIPTS[arguments.shell].rstrip())
    return 0


def completions(words: Sequence[str]) -> list[str]:
    """List what the last word may become, given those before it; none: a file, or anything."""
    *before, last = words
    parser, commands = parsers()
    home, command, places, waiting = None, parser, 0, None
    for word in before:
        if waiting is not None:
            home, waiting = (word if "--home" in waiting.option_strings else home), None
        elif word.startswith("-"):
            action = next((one for one in command.actions() if word in one.option_strings), None)
            waiting = action if action is not None and action.nargs != 0 else None
        else:
            of = f"{command.prog} {word}".removeprefix(f"{parser.prog} ")
            places, command = (0, commands[of]) if of in commands else (places + 1, command)
    if waiting is not None:
        candidates: Iterable[str] = map(str, waiting.choices or ())
    elif last.startswith("-"):
        candidates = command.options()
    else:
        candidates = _values(command, places, home)
    return sorted(word for word in candidates if word.startswith(last))


def _values(command: Parser, place: int, home: str | None) -> Iterable[str]:
    """List the values of the argument in a place behind a command's name."""
    arguments = [one for one in command.actions() if not one.option_strings]
    if not arguments:
        return ()
    argument = arguments[min(place, len(arguments) - 1)]
    if place >= len(arguments) and argument.nargs not in ("*", "+"):
        return ()
    if argument.choices is not None:
        return map(str, argument.choices)
    if argument.metavar in SWEEPS:
        try:
            names = sweep_names(find_home(home))
        except RequestError:  # a home of somebody else
            return ()
        return (name for name in names if re.fullmatch(r"[\w.-]+", name))  # nothing for a shell
    is_sweep_file = any(one.dest == "overrides" for one in command.actions())
    recipes = Path(__file__).parents[1].glob("*.yaml")
    return (file.stem for file in recipes) if is_sweep_file and argument.dest == "file" else ()
