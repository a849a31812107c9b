"""A check by its name, as the command carries it out."""

from __future__ import annotations

from pathlib import Path

from carft_sweep.sweeps.doctor.checks import CHECKS, Finding, Level, examine
from carft_sweep.sweeps.home import Home


def look(name: str, home: Path) -> list[Finding]:
    """What it finds."""
    (check,) = (check for check in CHECKS if check.name == name)
    return examine(check, Home(home))


def only(findings: list[Finding], level: Level) -> str:
    """What the one finding says; it is of this level."""
    (finding,) = findings
    assert finding.level == level, finding
    return f"{finding.message} -> {finding.advice}"
