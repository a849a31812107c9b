"""`carft-sweep doctor`: whether everything that sweeps stand on is there, and what to do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from carft_core.errors import RequestError, unknown
from sweeps.doctor.base import Asked, Check, Finding
from sweeps.doctor.examine import examine
from sweeps.doctor.registry import CHECKS, SUBJECTS
from sweeps.engines.choose import address_of
from sweeps.home import find_home

Say = Callable[[str], None]
_CODES = {"wrong": 2, "unreachable": 4}
"""Of the exit; what is wrong goes before what is away."""


def run(arguments: argparse.Namespace, say: Say) -> int:
    """Run the command. 2 when anything is wrong, else 4 when a service is unreachable."""
    asked = Asked(find_home(arguments.home), address_of(arguments.address), arguments.nodes)
    found = []
    subject = None
    for check, finding in _findings(_chosen(arguments.only), asked):
        found.append((check, finding))
        if arguments.json:
            continue
        if check.subject != subject:
            subject = check.subject
            say(SUBJECTS[subject])
        for line in _lines(finding):
            say(line)
    levels = [finding.level for _, finding in found]
    say(json.dumps(_plain(found), indent=1) if arguments.json else _sum(levels))
    return next((code for level, code in _CODES.items() if level in levels), 0)


def _findings(checks: Sequence[Check], asked: Asked) -> Iterator[tuple[Check, Finding]]:
    """One after another: each imports what it needs, and they would only wait for each other."""
    shut = set()
    for check in checks:
        if check.subject in shut:
            continue
        for finding in examine(check, asked):
            yield check, finding
            if check.first and finding.level in _CODES:
                shut.add(check.subject)


def _chosen(only: Sequence[str]) -> list[Check]:
    """The checks of these subjects and names, or all. Raises RequestError for an unknown one."""
    known = [*SUBJECTS, *(check.name for check in CHECKS)]
    for name in only:
        if name not in known:
            raise RequestError(unknown("check", name, known))
    return [check for check in CHECKS if not only or {check.subject, check.name} & {*only}]


def _lines(finding: Finding) -> Iterator[str]:
    """`  warning  told`, and what to do below it."""
    yield f"  {finding.level:<11}  {finding.told}"
    if finding.todo:
        yield f"  {'':<11}  -> {finding.todo}"


def _sum(levels: Sequence[str]) -> str:
    parts = []
    for level, one, several in _WORDS:
        count = levels.count(level)
        if count:
            parts.append(f"{count} {one if count == 1 else several}")
    return f"{', '.join(parts)}." if parts else "All is well."


_WORDS = (
    ("wrong", "thing is wrong", "things are wrong"),
    ("unreachable", "service does not answer", "services do not answer"),
    ("warning", "warning", "warnings"),
)


def _plain(found: Sequence[tuple[Check, Finding]]) -> Mapping[str, Any]:
    return {
        "checks": [
            {"check": check.name, "level": one.level, "told": one.told, "todo": one.todo}
            for check, one in found
        ]
    }
