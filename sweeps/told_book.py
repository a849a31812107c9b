"""The book of what a tracker was told of a sweep's runs: a line each, on disk before the next."""

from __future__ import annotations

import json
import os
from pathlib import Path


class Book:
    """Lines of what was told: which runs are open, and what was told of those that ended."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._open: dict[str, None] = {}
        self._content: dict[str, str] = {}
        for line in file.read_text().splitlines() if file.exists() else ():
            try:
                digest, content = json.loads(line)
            except ValueError:
                continue  # a line that a crash has torn: its run is told again
            self._take(digest, content)

    def left_open(self) -> list[str]:
        """Runs that were opened and not ended."""
        return list(self._open)

    def knows(self, digest: str, content: str) -> bool:
        """Whether exactly this was told of the run, to its end."""
        return digest not in self._open and self._content.get(digest) == content

    def has(self, digest: str) -> bool:
        """Whether anything was ever told of the run."""
        return digest in self._open or digest in self._content

    def opened(self, digest: str) -> None:
        """Before it is told."""
        if digest not in self._open:
            self._add(digest, None)

    def ended(self, digest: str, content: str) -> None:
        """After it was told."""
        self._add(digest, content)

    def _add(self, digest: str, content: str | None) -> None:
        self._take(digest, content)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a") as file:
            file.write(json.dumps([digest, content]) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def _take(self, digest: str, content: str | None) -> None:
        if content is None:
            self._open[digest] = None
            return
        self._open.pop(digest, None)
        self._content[digest] = content
