"""Nothing is sent home: usage reporting underneath stays off unless the user turns it on."""

from __future__ import annotations

import os
from collections.abc import MutableMapping

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # MLflow reads exactly this word
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def stay_private(environ: MutableMapping[str, str] | None = None) -> None:
    """Turn usage reporting off for this process and its children, where the user has not chosen.

    Call it before mlflow, ray or huggingface_hub are imported: they look once.
    """
    chosen = os.environ if environ is None else environ
    for name, value in QUIET.items():
        chosen.setdefault(name, value)
