"""What a check of `doctor` is, and running one."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal
from urllib.parse import unquote

from carft_sweep.carft_core.errors import RequestError, unknown
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.secrets import NAMES
from carft_sweep.tracking.errors import AccessDenied, ServiceUnreachable, TrackingError

logger = logging.getLogger(__name__)

Level = Literal["ok", "warning", "wrong", "unreachable"]
FAULTS: Mapping[Level, int] = {"wrong": 2, "unreachable": 4}
"""The exit code for each; what is wrong goes before what is away."""


@dataclass(frozen=True)
class Finding:
    """One line of a check's result."""

    level: Level
    message: str
    advice: str = ""
    """What to do; left out, the check's own."""


ok = partial(Finding, "ok")
warning = partial(Finding, "warning")
"""A finding on what works, and may not for long."""
wrong = partial(Finding, "wrong")
"""A finding on what cannot work as it is requested."""
unreachable = partial(Finding, "unreachable")
"""A finding on a service that does not answer."""
Run = Callable[[Home], Iterable[Finding]]


@dataclass(frozen=True)
class Check:
    """A check of one thing, with a time limit."""

    name: str
    """The subject, a point, and what of it is checked: `home.disk`."""
    purpose: str
    """What is checked."""
    advice: str
    """What to do in general when it is not well."""
    run: Run
    """Yields nothing where it does not apply. What it raises becomes a finding too."""
    seconds: float = 20.0
    """Its time limit."""
    is_gate: bool = False
    """Whether the further checks of its subject are skipped where this check finds a fault."""

    @property
    def subject(self) -> str:
        """The part of the name before the point: `home` of `home.disk`."""
        return self.name.partition(".")[0]


CHECKS: list[Check] = []
"""Every check, as the modules of this package declare them."""
SUBJECTS: Mapping[str, str] = {
    "versions": "Versions",
    "machine": "This machine",
    "gpu": "GPU",
    "home": "Home",
    "secrets": "Secrets",
    "mlflow": "Runs (MLflow)",
    "sent": "What MLflow and Optuna were sent",
    "ray": "Ray",
}
"""What the subject of a check is called."""


def check(
    name: str, purpose: str, advice: str, *, seconds: float = 20.0, is_gate: bool = False
) -> Callable[[Run], Run]:
    """Return a decorator that registers a function as `Check.run`, with the other fields."""

    def decorated(run: Run) -> Run:
        CHECKS.append(Check(name, purpose, advice, run, seconds, is_gate))
        return run

    return decorated


def select_checks(names: Sequence[str]) -> list[Check]:
    """Return the checks whose subject or name is in `names`; all if it is empty. Raises
    RequestError for an unknown name."""
    allowed = [*SUBJECTS, *(check.name for check in CHECKS)]
    for name in names:
        if name not in allowed:
            raise RequestError(unknown("check", name, allowed))
    return [check for check in CHECKS if not names or {check.subject, check.name} & {*names}]


def run_checks(checks: Iterable[Check], home: Home) -> Iterator[tuple[Check, Finding]]:
    """Run checks one after another, as imports block each other; yield each with each finding."""
    skipped = set()
    for check in checks:
        if check.subject in skipped:
            continue
        for finding in examine(check, home):
            yield check, finding
            if check.is_gate and finding.level in FAULTS:
                skipped.add(check.subject)


def examine(check: Check, home: Home) -> list[Finding]:
    """Run a check and return its findings, with advice for each problem. Never raises. The check
    runs in a thread, which is abandoned when it exceeds its time limit."""
    findings: list[Finding] = []
    began = time.monotonic()
    thread = threading.Thread(
        target=_run, args=(check, home, findings), name=f"carft-{check.name}", daemon=True
    )
    thread.start()
    thread.join(check.seconds)
    logger.info("%s took %.1f s", check.name, time.monotonic() - began)
    late = [unreachable(f"no answer within {check.seconds:g} s")] if thread.is_alive() else []
    return [_finished(finding, check) for finding in (*findings, *late)]


def _run(check: Check, home: Home, findings: list[Finding]) -> None:
    try:
        for finding in check.run(home):
            findings.append(finding)  # noqa: PERF402 - what came before an error counts too
    except (RequestError, TrackingError, AccessDenied) as error:
        findings.append(wrong(str(error)))
    except ServiceUnreachable as error:
        findings.append(unreachable(str(error)))
    except Exception as error:  # whatever a driver or a library raises: other checks still run
        logger.debug("%s raised", check.name, exc_info=True)
        findings.append(wrong(f"{type(error).__name__}: {error}"))


def _finished(finding: Finding, check: Check) -> Finding:
    """Return a finding on one line, without secrets, with advice."""
    message = hide_secrets(" ".join(finding.message.split()))
    advice = "" if finding.level == "ok" else hide_secrets(finding.advice or check.advice)
    return replace(finding, message=message, advice=advice)


HIDDEN = "***"
_URLS = ("CARFT_OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")
"""Addresses that may be shown but for the password in them."""
_SHOWN = ("MLFLOW_TRACKING_USERNAME",)
_SHORTEST = 4
"""A shorter secret is not looked for: it would hide letters of ordinary words."""


def hide_secrets(text: str) -> str:
    """Return a text without secrets of the environment, and without users and passwords of URLs."""
    secrets = {os.environ.get(name, "") for name in NAMES if name not in (*_URLS, *_SHOWN)}
    for name in _URLS:
        password = os.environ.get(name, "").rpartition("@")[0].partition("://")[2].partition(":")[2]
        secrets |= {password, unquote(password)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, HIDDEN)
    return re.sub(r"://[^/@\s]+@", "://", text)
