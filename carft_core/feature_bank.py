"""The feature bank: what the teacher says of the batches that train, kept for other runs."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from carft_core.errors import RequestError
from carft_core.files import user_cache
from carft_core.optim import Schedule

VARIABLE = "CARFT_FEATURE_BANK_GB"
"""Sets another bound than `GIGABYTES`; at 0 nothing is kept or read."""
GIGABYTES = 20
"""So much (of 1e9 bytes) all files together take at most, and half of what their disk has free."""
RECENT = 24 * 3600.0
"""Seconds after its last use in which a file makes no room for another. In a sweep that needs more
than the bound the oldest file is the one that is needed next: without this none would be there."""
CHECKSUM = 4
"""Bytes of a CRC-32."""
FLOAT = 4
"""Bytes of a float32."""


def most_bytes() -> int:
    """How large the bank may become. Raises RequestError for a wrong `VARIABLE`."""
    text = os.environ.get(VARIABLE) or str(GIGABYTES)
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", text):
        raise RequestError(
            f"{VARIABLE} must be a number of gigabytes, such as 20 or 0.5, or 0 for none, "
            f"got {text[:80]!r}"
        )
    return int(float(text) * 1e9)


class FeatureBank:
    """The teacher's features of a run's batches, in files of the user's cache.

    A file is of one epoch and has a place for each step: features [B, d] in float32, then a CRC-32
    of the batch's rows and these. Runs that show the teacher the same batches share it, also while
    several of them write. A place that is empty, half written or damaged is a missing one.

    A file is opened for each batch, so that a node on shared storage sees what others have written.
    It is not mapped into memory, since a full disk, or a node that deletes a mapped file, ends the
    process; and the disk is not waited for, since what a loss of power takes is computed again.
    What cannot be read or written costs time, nothing else.
    """

    def __init__(self, views: str, schedule: Schedule, shape: tuple[int, int]) -> None:
        """`views` names all that decides the features of the batch of a step; `shape` is that of
        the largest batch. Raises RequestError for a wrong `VARIABLE`.
        """
        self._views, self._schedule, self._width = views, schedule, shape[1]
        self._place = FLOAT * shape[0] * shape[1] + CHECKSUM
        self._most = most_bytes()
        self._steps, self._file = range(0), Path()
        self._writes = True

    def read(self, step: int, rows: Tensor) -> Tensor | None:
        """The features [B, d], on the CPU, of the batch of a step; None where they are not there.

        `rows` [B] int64, on the CPU, are those of the batch.
        """
        if not self._most:
            return None
        file, offset = self._at(step)
        size = FLOAT * len(rows) * self._width
        with contextlib.suppress(OSError), _opened(file, os.O_RDONLY) as descriptor:
            place = bytearray(os.pread(descriptor, size + CHECKSUM, offset))
            features = memoryview(place)[:size]
            if place[size:] == _checksum(rows, features):
                # A copy, since the speed of sums, and their last bits, may depend on alignment.
                return torch.frombuffer(features, dtype=torch.float32).view(len(rows), -1).clone()
        return None

    def write(self, step: int, rows: Tensor, features: Tensor) -> None:
        """Keep the features [B, d] of the batch of a step, if there is room."""
        file, offset = self._at(step)
        if not self._most or not self._writes:
            return
        content = features.cpu().numpy().tobytes()
        try:
            self._writes = file.exists() or self._make(file)
            if self._writes:
                with _opened(file, os.O_WRONLY) as descriptor:
                    os.pwrite(descriptor, content + _checksum(rows, content), offset)
        except OSError:
            self._writes = False

    def _at(self, step: int) -> tuple[Path, int]:
        """The file of a step's epoch, which counts as used then, and where the step's place is."""
        if step not in self._steps:
            self._steps = self._schedule.of_epoch(step // self._schedule.per_epoch + 1)
            key = json.dumps([self._views, self._steps.start, self._steps.stop, self._place])
            self._file = _folder() / hashlib.sha256(key.encode()).hexdigest()
            self._writes = True
            with contextlib.suppress(OSError):
                os.utime(self._file)
        return self._file, (step - self._steps.start) * self._place

    def _make(self, file: Path) -> bool:
        """Make an empty file, whose blocks the disk gives as they are written; False where there is
        no room for it. Raises OSError."""
        size = len(self._steps) * self._place
        file.parent.mkdir(parents=True, exist_ok=True)
        if not _make_room(size, self._most):
            return False
        with _opened(file, os.O_WRONLY | os.O_CREAT) as descriptor:
            os.ftruncate(descriptor, size)
        return True


def _folder() -> Path:
    return user_cache() / "view_features"


def _make_room(size: int, most: int) -> bool:
    """Delete what nobody has used for longest until `size` bytes more are within the bounds.

    False where that would take what was used lately. Raises OSError.
    """
    files = []
    for file in _folder().iterdir():
        with contextlib.suppress(FileNotFoundError):
            stat = file.stat()
            files.append((stat.st_mtime, stat.st_size, file))
    used = sum(of for _, of, _ in files)
    room = min(most, used + shutil.disk_usage(_folder()).free // 2) - used
    old = [it for it in sorted(files) if time.time() - it[0] > RECENT]
    if size > room + sum(of for _, of, _ in old):
        return False
    for _, of, file in old:
        if size <= room:
            break
        file.unlink(missing_ok=True)
        room += of
    return True


@contextlib.contextmanager
def _opened(file: Path, flags: int) -> Iterator[int]:
    """A file's descriptor; a pipe in its place is not waited for."""
    descriptor = os.open(file, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _checksum(rows: Tensor, features: bytes | memoryview) -> bytes:
    return zlib.crc32(features, zlib.crc32(rows.numpy().tobytes())).to_bytes(CHECKSUM, "little")
