"""What is kept of every run, and how it is compared and shown.

`from tracking import load_comparison` reads a comparison from MLflow; `rows_frame`, `runs_frame`
and `chart` show it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracking.mlflow_reader import load_comparison
    from tracking.report.formats import rows_frame, runs_frame
    from tracking.report.html import chart

__all__ = ["chart", "load_comparison", "rows_frame", "runs_frame"]
_MODULES = {
    "chart": "tracking.report.html",
    "load_comparison": "tracking.mlflow_reader",
    "rows_frame": "tracking.report.formats",
    "runs_frame": "tracking.report.formats",
}


def __getattr__(name: str) -> Any:
    # Not at import: every command imports this package, and most need nothing of it.
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
