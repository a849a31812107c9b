"""Secrets by file: `NAME_FILE=/path` in the environment stands for NAME, as Docker has it."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.tracking.location import TRACKING_VARIABLE, without_password

NAMES = (
    "MLFLOW_TRACKING_USERNAME",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "CARFT_OPTUNA_STORAGE",
    "PGPASSWORD",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "RAY_AUTH_TOKEN",
)
"""The variables that hold secrets, and so may be given by file."""
SUFFIX = "_FILE"
WORKERS = ("HF_TOKEN",)
"""The secrets that a run needs, to load weights; the others are the driver's alone."""
_READ: dict[str, Path] = {}


def read_from() -> Mapping[str, Path]:
    """Return the files from which this process has read secrets, by variable."""
    return dict(_READ)


def read_secret_files(
    environ: MutableMapping[str, str] | None = None, names: Sequence[str] = NAMES
) -> None:
    """Set NAME to the content of the file in each NAME_FILE, without the newline at its end.
    NAME_FILE is removed: child processes get NAME alone. Empty variables count as unset. Raises
    RequestError, which shows nothing of a file, when NAME is set too or the file cannot be used."""
    chosen = os.environ if environ is None else environ
    for name in names:
        path = chosen.get(f"{name}{SUFFIX}")
        if not path:
            continue
        if chosen.get(name):
            raise _wrong(name, f"{name} is set too; keep one of the two")
        chosen[name] = _read(name, path)
        _READ[name] = Path(path)
        del chosen[f"{name}{SUFFIX}"]


def of_workers(environ: Mapping[str, str]) -> dict[str, str]:
    """Return a run's environment: `environ` without the secrets that only the driver may have."""
    drivers = {*NAMES} - {*WORKERS}
    names = (name for name in environ if name.removesuffix(SUFFIX) not in drivers)
    environment = {name: environ[name] for name in names}
    if TRACKING_VARIABLE in environment:
        environment[TRACKING_VARIABLE] = without_password(environment[TRACKING_VARIABLE])
    return environment


def _read(name: str, path: str) -> str:
    try:
        text = Path(path).read_bytes().decode()
    except UnicodeDecodeError:
        raise _wrong(name, f"{path} is no text in UTF-8") from None
    except OSError as error:
        raise _wrong(name, f"{path} cannot be read: {error.strerror}") from None
    secret = text.removesuffix("\n").removesuffix("\r")
    if not secret:
        raise _wrong(name, f"{path} is empty")
    if not secret.isprintable():
        raise _wrong(name, f"{path} must hold one line of text and nothing else")
    return secret


def _wrong(name: str, what: str) -> Exception:
    return RequestError(f"{name}{SUFFIX}: {what}")
