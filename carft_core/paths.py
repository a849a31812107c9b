"""What lies at a path that a user wrote, if it is one and something lies there."""

from __future__ import annotations

from pathlib import Path


def found(text: str) -> Path | None:
    """The file or folder that `text` names, `~` expanded; None for nothing, or for no path."""
    if not text:
        return None
    try:
        path = Path(text).expanduser()
        path.stat()
    except (OSError, ValueError, RuntimeError):
        # Nothing there, a name too long, a null byte, a user that is none.
        return None
    return path
