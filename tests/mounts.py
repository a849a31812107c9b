"""Lets a folder of a test be taken for one on another kind of file system."""

from __future__ import annotations

from pathlib import Path

import pytest


def mount(monkeypatch: pytest.MonkeyPatch, folder: Path, kind: str) -> None:
    """Say that `folder` is mounted from a server; everything else is on a local disk."""
    mounts = folder.with_name(f"{folder.name}.mounts")
    mounts.write_text(f"/dev/a / ext4 rw 0 0\nserver:/x {folder.resolve()} {kind} rw 0 0\n")
    monkeypatch.setattr("carft_sweep.tracking.location.MOUNTS", mounts)
