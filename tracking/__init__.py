"""What is kept of every run, and how it is compared and shown.

`from tracking import load_comparison` reads a comparison from MLflow.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracking.mlflow_reader import load_comparison


__all__ = ["load_comparison"]


def __getattr__(name: str) -> Any:
    # Not at import: every command imports this package, and most need nothing of it.
    if name in __all__:
        from tracking import mlflow_reader

        return getattr(mlflow_reader, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
