"""Sweep files, and the code that executes one. `from sweeps import run_sweep` runs one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.api import SweepFailed, run_sweep


__all__ = ["SweepFailed", "run_sweep"]


def __getattr__(name: str) -> Any:
    # Not at import: every command imports this package, and most need nothing of it.
    if name in __all__:
        from sweeps import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
