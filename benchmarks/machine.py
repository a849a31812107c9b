"""A machine that is not at rest."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"
"""Ends with its parent, also where that is killed."""


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """A Python process that computes without a pause as long as the block lasts."""
    process = subprocess.Popen([sys.executable, "-c", SPIN, str(os.getpid())])
    try:
        yield
    finally:
        process.kill()
        process.wait()
