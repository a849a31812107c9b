"""The bank: views and teacher features of batches, stored for other runs with the same batches."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import digest_of, user_cache

BANK_GB_ENV = "CARFT_BANK_GB"
"""Sets another bound than `GIGABYTES`; at 0 nothing is kept or read."""
GIGABYTES = 20
"""The most that all files take together (1e9 bytes); new files leave half of the free disk."""
FOR_VIEWS = 0.75
"""The share of the bank up to which views are added: they are seventy times as large as features,
and would leave these no room."""
RECENT = 24 * 3600.0
"""For so many seconds after its last use a file is not deleted for another. In a sweep that needs
more than the bound, the oldest file is needed next: without this rule it would always be gone."""
Kind = Literal["features", "views"]
"""What the tensors are: the teacher's features [B, d], or views [B, 3, S, S]."""
CHECKSUM = 4
"""Bytes of a CRC-32."""


def most_bytes() -> int:
    """Return the largest size of the bank. Raises RequestError for a wrong `BANK_GB_ENV`."""
    text = os.environ.get(BANK_GB_ENV) or str(GIGABYTES)
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,9})?", text):
        raise RequestError(
            f"{BANK_GB_ENV} must be a number of gigabytes, such as 20 or 0.5, or 0 for none, "
            f"got {text[:80]!r}"
        )
    return int(float(text) * 1e9)


class Bank:
    """A tensor for each batch of a run, in files of the user's cache.

    A file is of one epoch and has a place for each step: the tensor, then a CRC-32 of the batch's
    rows and the tensor. Runs with the same batches share it, also while several of them write. A
    place that is empty, half written or damaged is a missing one.

    A file is opened for each batch, so that a node on shared storage sees what others have written.
    It is not mapped into memory, since a full disk, or a node that deletes a mapped file, ends the
    process; and the disk is not waited for, since what a loss of power takes is computed again.
    What cannot be read or written costs time, nothing else.
    """

    def __init__(
        self, kind: Kind, key: Sequence[object], *, steps: int, per_epoch: int, like: Tensor
    ) -> None:
        """Prepare the bank of a run of `steps` steps, `per_epoch` in each file. `key`, plain data,
        is all that decides a step's tensor; `like` has the type and shape [B, ...] of the largest
        tensor. Raises RequestError for a wrong value of BANK_GB_ENV."""
        self._kind, self._key, self._count, self._per_epoch = kind, key, steps, per_epoch
        self._type, self._shape = like.dtype, like.shape[1:]
        self._place = like.nbytes + CHECKSUM
        self._most = most_bytes()
        self._steps, self._file = range(0), Path()
        self._writes = True

    def read(self, step: int, rows: Tensor) -> Tensor | None:
        """Return the stored views or teacher features [B, ...] of the batch at `step`, on the CPU.
        Return None where they are missing or damaged, were stored for other `rows` ([B] int64,
        CPU), or the bank is switched off."""
        if not self._most:
            return None
        file, offset = self._at(step)
        size = len(rows) * self._type.itemsize * self._shape.numel()
        with contextlib.suppress(OSError), _open_descriptor(file, os.O_RDONLY) as descriptor:
            place = bytearray(os.pread(descriptor, size + CHECKSUM, offset))
            content = memoryview(place)[:size]
            if place[size:] == _checksum(rows, content):
                # A copy, since the speed of sums, and their last bits, may depend on alignment.
                tensor = torch.frombuffer(content, dtype=self._type)
                return tensor.view(len(rows), *self._shape).clone()
        return None

    def write(self, step: int, rows: Tensor, tensor: Tensor) -> None:
        """Store the tensor [B, ...] of the batch at `step`, of the split's `rows` ([B] int64, CPU),
        if the bank's size permits."""
        file, offset = self._at(step)
        if not self._most or not self._writes:
            return
        content = tensor.cpu().numpy().tobytes()
        try:
            self._writes = file.exists() or self._make(file)
            if self._writes:
                with _open_descriptor(file, os.O_WRONLY) as descriptor:
                    os.pwrite(descriptor, content + _checksum(rows, content), offset)
        except OSError:
            self._writes = False

    def _at(self, step: int) -> tuple[Path, int]:
        """Return the file of a step's epoch (marked as used now), and the step's offset in it."""
        if step not in self._steps:
            first = step // self._per_epoch * self._per_epoch
            self._steps = range(first, min(first + self._per_epoch, self._count))
            key = [self._key, self._steps.start, self._steps.stop, self._place]
            self._file = _folder() / f"{self._kind}-{digest_of(key)}"
            self._writes = True
            with contextlib.suppress(OSError):
                os.utime(self._file)
        return self._file, (step - self._steps.start) * self._place

    def _make(self, file: Path) -> bool:
        """Make an empty file, to which the disk adds blocks as they are written; return False where
        the bank's size does not permit that. Raises OSError."""
        size = len(self._steps) * self._place
        file.parent.mkdir(parents=True, exist_ok=True)
        share = FOR_VIEWS if self._kind == "views" else 1.0
        if not _make_room(size, int(share * self._most)):
            return False
        with _open_descriptor(file, os.O_WRONLY | os.O_CREAT) as descriptor:
            os.ftruncate(descriptor, size)
        return True


def _folder() -> Path:
    return user_cache() / "bank"


def _make_room(size: int, most: int) -> bool:
    """Delete the least recently used files until `size` more bytes fit into `most`; return False,
    and delete nothing, where files used within RECENT would have to go. Raises OSError."""
    files = []
    for file in _folder().iterdir():
        with contextlib.suppress(FileNotFoundError):
            stat = file.stat()
            files.append((stat.st_mtime, stat.st_size, file))
    used = sum(of for _, of, _ in files)
    room = min(most, used + shutil.disk_usage(_folder()).free // 2) - used
    old = [file for file in sorted(files) if time.time() - file[0] > RECENT]
    if size > room + sum(of for _, of, _ in old):
        return False
    for _, of, file in old:
        if size <= room:
            break
        file.unlink(missing_ok=True)
        room += of
    return True


@contextlib.contextmanager
def _open_descriptor(file: Path, flags: int) -> Iterator[int]:
    """Yield an opened file's descriptor; a pipe in the file's place is not waited for."""
    descriptor = os.open(file, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _checksum(rows: Tensor, content: bytes | memoryview) -> bytes:
    return zlib.crc32(content, zlib.crc32(rows.numpy().tobytes())).to_bytes(CHECKSUM, "little")
