"""A job's runtime environment: variables that may be sent, secrets by reference, packages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from carft_core.errors import RequestError, unknown
from sweeps.secret_files import NAMES, SUFFIX
from sweeps.submission.sensitive import has_password, is_secret, secret_values
from tracking.where import HOME_VARIABLE

STOP_SECONDS = 600
"""What a job that is asked to stop has until it is killed: an epoch ends within it, or is lost."""
_PREFIXES = ("MLFLOW_", "CARFT_")
_OURS = frozenset({"RAY_AUTH_TOKEN", f"RAY_AUTH_TOKEN{SUFFIX}"})  # for asking the head, here
_HERE = ("localhost", "127.0.0.1", "::1")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LOCAL = re.compile(r"(-e|--editable|\.{0,2}/|~|file:|[a-z]:\\)", re.IGNORECASE)


@dataclass(frozen=True)
class Variables:
    """The variables of a job."""

    sent: Mapping[str, str]
    kept: tuple[str, ...]
    """Names of secrets that are set here and not sent."""
    notes: tuple[str, ...]


def variables(
    environ: Mapping[str, str], given: Sequence[str] = (), secrets: Sequence[str] = ()
) -> Variables:
    """MLFLOW_* and CARFT_* of `environ` without secrets, then `NAME=VALUE` of `given`.

    `secrets` are `NAME=/path/on/the/cluster`, and become NAME_FILE. Raises RequestError for a
    secret's value among what is given, and for what has another form.
    """
    values = secret_values(environ)

    def is_one(name: str, value: str) -> bool:
        return is_secret(name, value) or any(one in value for one in values)

    sent = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS)}
    kept = []
    for name, value in sorted(environ.items()):
        if not value or name in _OURS or name == HOME_VARIABLE:
            continue
        if is_one(name, value) and (name.startswith(_PREFIXES) or _plain(name) in NAMES):
            kept.append(_plain(name))
        elif name.startswith(_PREFIXES):
            sent[name] = value
    for item in given:
        name, value = _pair("--env", item, "VALUE")
        if is_one(name, value):
            raise RequestError(
                f"--env {name}: this is a secret, and what a job is given can be read by all who "
                f"see the cluster: put it into a file there and give --secret {name}=/path"
            )
        sent[name] = value
    for item in secrets:
        name, path = _pair("--secret", item, "/path/on/the/cluster")
        if name not in NAMES:
            raise RequestError(f"--secret: {unknown('secret', name, NAMES)}")
        if not path.startswith("/"):
            raise RequestError(f"--secret {name}: {path!r} must be an absolute path on the cluster")
        sent[f"{name}{SUFFIX}"] = path
        kept = [other for other in kept if other != name]
    return Variables(sent, tuple(dict.fromkeys(kept)), tuple(_doubts(sent)))


def requirements(given: Iterable[str]) -> list[str]:
    """What pip installs for a job: packages, and the lines of files. Raises RequestError for a
    missing file, for paths of this machine, for passwords, and for another Ray.
    """
    found: list[str] = []
    for item in given:
        is_file = item.endswith(".txt") or Path(item).is_file()
        found += _lines(Path(item)) if is_file else [item]
    for line in found:
        if has_password(line):
            raise RequestError(
                "--pip: a line has an address with a password, which everybody who sees the "
                "cluster could read: let pip's own configuration on the nodes have it"
            )
        if _LOCAL.match(line):
            raise RequestError(
                f"--pip {line}: a path of this machine means nothing on the cluster; put what is "
                "yours into the repository, which is sent"
            )
        if re.match(r"ray\b(?![-_.])", line, re.IGNORECASE):
            raise RequestError(f"--pip {line}: a job has the Ray of its cluster and no other")
    return found


def runtime_env(
    variables: Variables, working_dir: str | None, pip: Sequence[str]
) -> dict[str, Any]:
    """As Ray's job API and KubeRay's `runtimeEnvYAML` take it."""
    made: dict[str, Any] = {"env_vars": dict(variables.sent)}
    if working_dir is not None:
        made["working_dir"] = working_dir
    if pip:
        made["pip"] = list(pip)
    return made


def _lines(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"--pip {file}: cannot be read: {error}") from None
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def _pair(option: str, item: str, what: str) -> tuple[str, str]:
    name, equals, value = item.partition("=")
    if not equals or not _VARIABLE.fullmatch(name):
        # Without a name the whole may be a secret.
        shown = name if _VARIABLE.fullmatch(name) else "..."
        raise RequestError(f"{option} {shown}: must be NAME={what}")
    if name == "PYTHONPATH":
        raise RequestError(f"{option} PYTHONPATH: the driver sets it for its runs; use --pip")
    return name, value


def _plain(name: str) -> str:
    return name.removesuffix(SUFFIX)


def _doubts(sent: Mapping[str, str]) -> Iterator[str]:
    uri = sent.get("MLFLOW_TRACKING_URI", "")
    try:
        host = urlsplit(uri).hostname
    except ValueError:
        host = None
    if host in _HERE:
        yield f"MLFLOW_TRACKING_URI names {host}: for the job that is the head, not this machine"
    data = sent.get("CARFT_DATA")
    if data and not data.startswith("/"):
        yield f"CARFT_DATA is {data}, relative to what is sent; on the cluster give a whole path"
