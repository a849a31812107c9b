"""Every check of `doctor`, and running them."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from urllib.parse import unquote

from carft_core.errors import RequestError
from sweeps.doctor.base import Asked, Check, Finding, unreachable, wrong
from sweeps.doctor.machine import (
    DATA_CHECKS,
    GPU_CHECKS,
    HOME_CHECKS,
    MACHINE_CHECKS,
    SECRET_CHECKS,
    VERSION_CHECKS,
)
from sweeps.doctor.services import (
    MLFLOW_CHECKS,
    RAY_CHECKS,
    SPOOL_CHECKS,
    TRIAL_CHECKS,
)
from sweeps.secrets import NAMES
from tracking.errors import NotLetIn, ServiceUnreachable, TrackingError, UnknownHost

CHECKS: tuple[Check, ...] = (
    *VERSION_CHECKS,
    *MACHINE_CHECKS,
    *GPU_CHECKS,
    *HOME_CHECKS,
    *TRIAL_CHECKS,
    *MLFLOW_CHECKS,
    *SPOOL_CHECKS,
    *RAY_CHECKS,
    *DATA_CHECKS,
    *SECRET_CHECKS,
)
SUBJECTS: Mapping[str, str] = {
    "versions": "Versions",
    "machine": "This machine",
    "gpu": "GPU",
    "home": "Home",
    "trials": "Trials (Optuna)",
    "mlflow": "Runs (MLflow)",
    "spool": "Spool",
    "ray": "Ray",
    "data": "Data",
    "secrets": "Secrets",
}
"""What the subject of a check is called."""


HIDDEN = "***"
_URLS = ("CARFT_OPTUNA_STORAGE", "MLFLOW_TRACKING_URI")
"""Addresses that may be shown but for the password in them."""
_SHOWN = ("MLFLOW_TRACKING_USERNAME",)
_SHORTEST = 4
"""A shorter secret is not looked for: it would hide letters of ordinary words."""


def examine(check: Check, asked: Asked) -> list[Finding]:
    """What the check finds, each line with what to do unless it is well.

    It looks from a thread, which is left behind when it does not come back in time. Never raises.
    """
    found: list[Finding] = []
    thread = threading.Thread(
        target=_look, args=(check, asked, found), name=f"carft-{check.name}", daemon=True
    )
    thread.start()
    thread.join(check.seconds)
    told = list(found)
    if thread.is_alive():
        told.append(unreachable(f"no answer within {check.seconds:g} s"))
    return [_finished(finding, check) for finding in told]


def _look(check: Check, asked: Asked, found: list[Finding]) -> None:
    try:
        for finding in check.look(asked):
            found.append(finding)  # noqa: PERF402 - what came before an error is told too
    except (RequestError, TrackingError, NotLetIn, UnknownHost) as error:
        found.append(wrong(str(error)))
    except ServiceUnreachable as error:
        found.append(unreachable(str(error)))
    except Exception as error:  # whatever a driver or a library raises: the other checks go on
        found.append(wrong(f"{type(error).__name__}: {error}"))


def _finished(finding: Finding, check: Check) -> Finding:
    """On one line, without secrets, with what to do."""
    told = hidden(" ".join(finding.told.split()))
    if finding.level == "ok":
        return replace(finding, told=told, todo="")
    return replace(finding, told=told, todo=hidden(finding.todo or check.todo))


def hidden(text: str, environ: Mapping[str, str] | None = None) -> str:
    """The text without the secrets of the environment, and without users and passwords of URLs."""
    chosen = os.environ if environ is None else environ
    secrets = {chosen.get(name, "") for name in NAMES if name not in (*_URLS, *_SHOWN)}
    secrets |= {part for name in _URLS for part in _passwords(chosen.get(name, ""))}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST:
            text = text.replace(secret, HIDDEN)
    return re.sub(r"://[^/@\s]+@", "://", text)


def _passwords(url: str) -> tuple[str, str]:
    """Of a URL, as it is written there and as it is."""
    password = url.rpartition("@")[0].partition("://")[2].partition(":")[2]
    return password, unquote(password)
