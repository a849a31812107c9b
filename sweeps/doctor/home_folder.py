"""The home: there or possible, written, locked, on what file system, with what room and clock."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from sweeps.doctor.base import Asked, Check, Finding, ok, warning, wrong
from sweeps.doctor.clock import agree
from tracking.file_systems import file_system, network_file_system
from tracking.locks import waiting

_MIB = 2**20
_LITTLE, _TOO_LITTLE = 5000.0, 200.0


def _folder(asked: Asked) -> Iterator[Finding]:
    path = asked.home.path
    if path.is_dir():
        try:
            with tempfile.TemporaryDirectory(prefix=".doctor-", dir=path) as scratch:
                first, second = Path(scratch, "first"), Path(scratch, "second")
                first.write_text("written\n")
                first.replace(second)
                with waiting(Path(scratch, "lock")):
                    pass
        except OSError as error:
            yield wrong(f"{path.absolute()} cannot be written: {error.strerror or error}")
            return
        yield ok(f"{path.absolute()} can be written and locked")
    elif path.exists():
        yield wrong(f"{path.absolute()} is no folder")
    elif os.access(_existing(path), os.W_OK | os.X_OK):
        yield ok(f"{path.absolute()} is not there yet; the first run makes it")
    else:
        yield wrong(f"{path.absolute()} is not there, and {_existing(path)} cannot be written")


def _kind(asked: Asked) -> Iterator[Finding]:
    asked.home.check_place()
    kind = file_system(asked.home.path)
    shared = network_file_system(asked.home.path)
    said = "shared by other machines" if shared else "of this machine alone"
    yield ok(f"on {kind or 'a file system that the system does not name'}, {said}")


def _disk(asked: Asked) -> Iterator[Finding]:
    place = _existing(asked.home.path)
    free = shutil.disk_usage(place).free / _MIB
    told = f"{free:.0f} MB free"
    if free < _TOO_LITTLE:
        yield wrong(told)
    elif free < _LITTLE:
        yield warning(told)
    else:
        yield ok(told)
    nodes = os.statvfs(place)
    if nodes.f_files and nodes.f_favail / nodes.f_files < 0.01:
        yield warning(f"only {nodes.f_favail} more files can be made there")


def _clock(asked: Asked) -> Iterator[Finding]:
    """What the file system writes as a file's time is its server's."""
    if not asked.home.path.is_dir():
        return
    try:
        with tempfile.NamedTemporaryFile(prefix=".doctor-", dir=asked.home.path) as file:
            before = time.time()
            file.write(b"now")
            file.flush()
            os.fsync(file.fileno())
            written, after = Path(file.name).stat().st_mtime, time.time()
    except OSError:
        return  # it cannot be written: told by another check
    yield agree("the home's file system", written, before, after)


def _private(asked: Asked) -> Iterator[Finding]:
    if not asked.home.path.is_dir():
        return
    mode = asked.home.path.stat().st_mode
    if mode & 0o002:
        yield warning(
            f"anybody on this machine may write into {asked.home.path} (mode {mode & 0o777:o})",
            f"chmod o-w {asked.home.path}",
        )


def _existing(path: Path) -> Path:
    whole = path.absolute()
    return next(place for place in (whole, *whole.parents) if place.exists())


CHECKS = (
    Check(
        "home.folder",
        "the home is there and can be written, renamed in and locked, or can be made",
        "name another folder with --home or CARFT_HOME, or mend its permissions; on a network file "
        "system locks must reach every host",
        _folder,
    ),
    Check(
        "home.file_system",
        "on which kind of file system it lies, and whether its databases are safe there",
        "put it on a local disk, or on a shared file system with databases elsewhere",
        _kind,
    ),
    Check(
        "home.disk",
        "free room: below 5 GB is little, below 200 MB too little",
        "carft-sweep clean tells what can go",
        _disk,
    ),
    Check(
        "home.clock",
        "the time of the file system against this machine's, which leases rely upon",
        "let both follow one time server (chronyd, systemd-timesyncd)",
        _clock,
    ),
    Check(
        "home.private",
        "that not everybody may write into it",
        "chmod o-w the home",
        _private,
    ),
)
