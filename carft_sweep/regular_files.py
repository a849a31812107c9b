"""Regular files, opened so that nothing else is read, written, or waited for."""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from pathlib import Path

MOST = 1 << 28
"""The most bytes of a file that are read, unless the caller sets another limit."""


class RefusedFile(OSError):
    """Refusal of a file; `strerror` says why, as `is a link, which is not followed`."""


def open_regular(path: Path | str, flags: int = os.O_RDONLY, *, follow: bool = False) -> int:
    """Open a regular file that exists, or that `flags` create; return its descriptor.

    A link at `path` is followed only with `follow`: what lies in a home, which may come from an
    archive, leads to no file elsewhere. A pipe that nobody writes to is not waited for. Raises
    RefusedFile, and OSError where the system does not open it.
    """
    flags |= os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            reason = "is a link in a circle" if follow else "is a link, which is not followed"
        elif error.errno in (errno.ENXIO, errno.EISDIR):
            reason = "is not a regular file"
        else:
            raise
        raise RefusedFile(error.errno, reason, str(path)) from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise RefusedFile(errno.EINVAL, "is not a regular file", str(path))
    return descriptor


def read_regular(path: Path | str, most: int = MOST, *, follow: bool = False) -> bytes:
    """Read a file of at most `most` bytes. Raises RefusedFile, also for a larger one, and OSError.

    Without a buffer, which would cost more than the rest: a large home has many small files.
    """
    with FileIO(open_regular(path, follow=follow)) as file:
        # `read` allocates as many bytes as it is given: the file's size, and one to see its end.
        size = min(most, os.fstat(file.fileno()).st_size)
        content = file.read(size + 1) or b""
        while len(content) < size and (more := file.read(size + 1 - len(content))):
            content += more  # some file systems give less than all at once
        if len(content) > size:  # somebody writes to it
            content += file.read(most - size) or b""
        if len(content) > most:
            size = os.fstat(file.fileno()).st_size
            reason = f"has {size} bytes; at most {most} are read"
            raise RefusedFile(errno.EFBIG, reason, str(path))
    return content
