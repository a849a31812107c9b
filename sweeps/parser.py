"""A command-line parser that says what was meant."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from typing import NoReturn


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
