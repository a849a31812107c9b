"""Every check, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Mapping

from sweeps.doctor import (
    cluster,
    data,
    gpu,
    home_folder,
    machine,
    runs,
    secret_permissions,
    spool,
    trials,
    versions,
    webhook,
)
from sweeps.doctor.base import Check

CHECKS: tuple[Check, ...] = (
    *versions.CHECKS,
    *machine.CHECKS,
    *gpu.CHECKS,
    *home_folder.CHECKS,
    *trials.CHECKS,
    *runs.CHECKS,
    *spool.CHECKS,
    *cluster.CHECKS,
    *data.CHECKS,
    *secret_permissions.CHECKS,
    *webhook.CHECKS,
)
SUBJECTS: Mapping[str, str] = {
    "versions": "Versions",
    "machine": "This machine",
    "gpu": "GPU",
    "home": "Home",
    "trials": "Trials (Optuna)",
    "mlflow": "Runs (MLflow)",
    "spool": "Spool",
    "ray": "Ray",
    "data": "Data",
    "secrets": "Secrets",
    "webhook": "Webhook",
}
"""What the subject of a check is called."""
