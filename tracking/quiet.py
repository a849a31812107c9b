"""A library made quiet for a while: its logger's level and what its environment says."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


@contextmanager
def quieted(name: str, level: int, environ: Mapping[str, str]) -> Iterator[None]:
    """Set the level of the logger `name` and variables of this process; afterwards as before."""
    logger = logging.getLogger(name)
    old, before = logger.level, {variable: os.environ.get(variable) for variable in environ}
    logger.setLevel(level)
    os.environ.update(environ)
    try:
        yield
    finally:
        logger.setLevel(old)
        for variable, value in before.items():
            if value is None:
                del os.environ[variable]
            else:
                os.environ[variable] = value
