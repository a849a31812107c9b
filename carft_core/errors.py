"""Errors that the user's request causes, and the wording of their messages."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import NamedTuple

MOST_LISTED = 20
"""Names that a message lists one by one."""
Route = tuple[str | int, ...]
"""Where a value stands in nested data: `("trial", "merges", 0, "alphas")`."""


class RequestError(ValueError):
    """The request is wrong: bad input, a missing file, a name nobody knows.

    The message alone must tell what is wrong, where, what is allowed, and the nearest name;
    the command line prints it without a traceback and exits with 2.
    """


class DownloadFailed(RequestError):
    """A download failed for a reason that may pass: no network, or a server that is overloaded.

    Unlike other wrong requests a run that meets it is tried again.
    """


class NonFinite(FloatingPointError):
    """A loss or a logit is NaN or infinite: going on would train and measure nothing."""


class Problem(NamedTuple):
    """One mistake: where it stands (`("optim", "lr")`) and what is wrong with it."""

    path: Route
    message: str

    def __str__(self) -> str:
        return f"{dotted(self.path)}: {self.message}" if self.path else self.message


class InvalidConfig(RequestError):
    """Every mistake of a configuration at once."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def dotted(path: Iterable[str | int]) -> str:
    """Return a path such as `("merges", 0, "alphas")` as text: `merges[0].alphas`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{step}" if text else str(step)
    return text


def unknown(kind: str, name: object, allowed: Iterable[str], others: str = "") -> str:
    """Return a message such as `unknown algorithm 'car_tf'; did you mean 'car_ft'?`; without a
    similar name it lists `allowed` (for a dotted name its section), then `others`."""
    names = sorted(allowed)
    field = re.fullmatch(r"(?:trial\.)?([a-z_.]+)\.(\w+)", str(name))
    section, last = field.groups() if field else ("", "")
    own = [n for n in names if section and n.startswith(f"{section}.")]
    lasts = {n.removeprefix(f"{section}."): n for n in own} or {n: n for n in names}
    near = misspelt(last if own else str(name), lasts)
    known = f"{section} has: {', '.join(lasts)}" if own else f"Known: {listed_in_groups(names)}"
    hint = f"did you mean {lasts[near]!r}?" if near else f"{known}.{others}"
    return f"unknown {kind} {name!r}; {hint}"


def misspelt(name: str, keys: Iterable[object]) -> str | None:
    """Return the key that is most like `name`, probably meant by it; None where none is alike."""
    return next(iter(difflib.get_close_matches(name, [*map(str, keys)], n=1, cutoff=0.6)), None)


def listed_in_groups(names: Iterable[str]) -> str:
    """Return names sorted, or if many their sections with counts: `data.* (13), optim.* (14)`."""
    names = sorted(names)
    if len(names) <= MOST_LISTED:
        return ", ".join(names) or "none"
    groups: dict[str, int] = {}
    for name in names:
        head = re.match(r"\w+[./]", name)
        group = f"{head[0]}*" if head else name
        groups[group] = groups.get(group, 0) + 1
    return ", ".join(f"{name} ({n})" if n > 1 else name for name, n in groups.items())
