"""Lets a file or folder of a test belong to another account, whoever runs the tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

OTHER = 54_321
"""A user and a group that no account has."""


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make another account the owner: on the disk where root runs the tests, else by running as
    somebody else, as far as the product can tell.
    """
    if os.geteuid() == 0:
        os.chown(path, OTHER, OTHER)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: OTHER)
