"""The package's own sources: where they lie, and a digest that tells one state from another."""

from __future__ import annotations

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("carft_core", "sweeps", "tracking")


def source_digest() -> str:
    """Of every Python file of the packages: path and content."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted((ROOT / package).rglob("*.py")):
            digest.update(f"{file.relative_to(ROOT)}\n".encode() + file.read_bytes())
    return digest.hexdigest()
