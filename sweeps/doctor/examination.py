"""Every check of `doctor`, and running them."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from urllib.parse import unquote

from carft_sweep.carft_core.errors import RequestError, unknown
from carft_sweep.sweeps.doctor import machine, services
from carft_sweep.sweeps.doctor.base import FAULTS, Check, Finding, Scope, unreachable, wrong
from carft_sweep.sweeps.secrets import NAMES
from carft_sweep.tracking.errors import (
    AccessDenied,
    HostNotFound,
    ServiceUnreachable,
    TrackingError,
)

logger = logging.getLogger(__name__)

CHECKS: tuple[Check, ...] = (*machine.CHECKS, *services.CHECKS)
SUBJECTS: Mapping[str, str] = {
    "versions": "Versions",
    "machine": "This machine",
    "gpu": "GPU",
    "home": "Home",
    "data": "Data",
    "secrets": "Secrets",
    "trials": "Trials (Optuna)",
    "mlflow": "Runs (MLflow)",
    "sent": "What MLflow was sent",
    "ray": "Ray",
}
"""What the subject of a check is called."""


def select_checks(names: Sequence[str]) -> list[Check]:
    """Return the checks of these subjects and names, or all. Raises RequestError."""
    allowed = [*SUBJECTS, *(check.name for check in CHECKS)]
    for name in names:
        if name not in allowed:
            raise RequestError(unknown("check", name, allowed))
    return [check for check in CHECKS if not names or {check.subject, check.name} & {*names}]


def run_checks(checks: Iterable[Check], scope: Scope) -> Iterator[tuple[Check, Finding]]:
    """Run them in turn: each imports what it needs, and they would only wait for each other."""
    skipped = set()
    for check in checks:
        if check.subject in skipped:
            continue
        for finding in examine(check, scope):
            yield check, finding
            if check.is_gate and finding.level in FAULTS:
                skipped.add(check.subject)


HIDDEN = "***"
_URLS = ("CARFT_OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")
"""Addresses that may be shown but for the password in them."""
_SHOWN = ("MLFLOW_TRACKING_USERNAME",)
_SHORTEST = 4
"""A shorter secret is not looked for: it would hide letters of ordinary words."""


def examine(check: Check, scope: Scope) -> list[Finding]:
    """Run a check; each finding has advice unless it is well. Never raises.

    The check runs in a thread, which is left behind when it takes longer than its time limit.
    """
    findings: list[Finding] = []
    began = time.monotonic()
    thread = threading.Thread(
        target=_run, args=(check, scope, findings), name=f"carft-{check.name}", daemon=True
    )
    thread.start()
    thread.join(check.seconds)
    logger.info("%s took %.1f s", check.name, time.monotonic() - began)
    results = list(findings)
    if thread.is_alive():
        results.append(unreachable(f"no answer within {check.seconds:g} s"))
    return [_finished(finding, check) for finding in results]


def _run(check: Check, scope: Scope, findings: list[Finding]) -> None:
    try:
        for finding in check.run(scope):
            findings.append(finding)  # noqa: PERF402 - what came before an error counts too
    except (RequestError, TrackingError, AccessDenied, HostNotFound) as error:
        findings.append(wrong(str(error)))
    except ServiceUnreachable as error:
        findings.append(unreachable(str(error)))
    except Exception as error:  # whatever a driver or a library raises: other checks still run
        logger.debug("%s raised", check.name, exc_info=True)
        findings.append(wrong(f"{type(error).__name__}: {error}"))


def _finished(finding: Finding, check: Check) -> Finding:
    """Put it on one line, without secrets, with advice."""
    message = hide_secrets(" ".join(finding.message.split()))
    advice = "" if finding.level == "ok" else hide_secrets(finding.advice or check.advice)
    return replace(finding, message=message, advice=advice)


def hide_secrets(text: str) -> str:
    """Hide secrets of the environment, and users and passwords of URLs, in a text."""
    secrets = {os.environ.get(name, "") for name in NAMES if name not in (*_URLS, *_SHOWN)}
    for name in _URLS:
        password = os.environ.get(name, "").rpartition("@")[0].partition("://")[2].partition(":")[2]
        secrets |= {password, unquote(password)}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, HIDDEN)
    return re.sub(r"://[^/@\s]+@", "://", text)
