"""Files that hold secrets: nobody else may read them."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

from sweeps.doctor.base import Asked, Check, Finding, ok, warning
from sweeps.secret_files import read_from

_GIVEN = ("/run/secrets", "/var/run/secrets")
"""Docker and Kubernetes mount secrets there, for one container."""


def _files(asked: Asked) -> Iterator[Finding]:
    known = {**read_from(), **_of_ui(asked.home.path)}
    for name, path in known.items():
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077 and not str(path).startswith(_GIVEN):
            yield warning(
                f"{path} ({name}) can be read by others (mode {mode:o})", f"chmod 600 {path}"
            )
        else:
            yield ok(f"{path} ({name}) is its owner's alone")


def _of_ui(home: Path) -> dict[str, Path]:
    """What `ui --auth` keeps."""
    return {
        f"ui --auth, {path.name}": path
        for path in sorted((home / "ui").glob("*"))
        if path.is_file()
    }


CHECKS = (
    Check(
        "secrets.files",
        "who may read the files that NAME_FILE variables name, and those of ui --auth",
        "chmod 600 the file",
        _files,
    ),
)
