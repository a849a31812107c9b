"""`carft-sweep doctor`: check what sweeps need, and say what to do where it is missing."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict

from carft_sweep.sweeps.cli import Emit
from carft_sweep.sweeps.doctor.checks import FAULTS, SUBJECTS, run_checks, select_checks
from carft_sweep.sweeps.home import find_home


def doctor_command(arguments: argparse.Namespace, emit: Emit) -> int:
    """Run `doctor`; return 2 for a failed check, else 4 for an unreachable service, else 0."""
    home = find_home(arguments.home, trust=arguments.trust_home)
    findings = []
    subject = None
    for check, finding in run_checks(select_checks(arguments.only), home):
        findings.append((check, finding))
        if arguments.json:
            continue
        if check.subject != subject:
            subject = check.subject
            emit(SUBJECTS[subject])
        emit(f"  {finding.level:<11}  {finding.message}")
        if finding.advice:
            emit(f"  {'':<11}  -> {finding.advice}")
    levels = [finding.level for _, finding in findings]
    if arguments.json:
        checks = [{"check": check.name, **asdict(finding)} for check, finding in findings]
        emit(json.dumps({"checks": checks}, indent=1))
    else:
        emit(_summary(levels))
    return next((code for level, code in FAULTS.items() if level in levels), 0)


def _summary(levels: Sequence[str]) -> str:
    parts = []
    for level, singular, plural in (
        ("wrong", "thing is wrong", "things are wrong"),
        ("unreachable", "service does not answer", "services do not answer"),
        ("warning", "warning", "warnings"),
    ):
        if count := levels.count(level):
            parts.append(f"{count} {singular if count == 1 else plural}")
    return f"{', '.join(parts)}." if parts else "All is well."
