"""Sweeps of robust CLIP fine-tuning: run one, read its comparison, add a method, a merge, a family.

What this module names is public, and read when it is first used. The subpackages `carft_core`,
`sweeps` and `tracking` are links to the folders of these names at the top of the repository, so
that none of them takes a name that a user's own package may have.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm, Batch, Loss, Soup, Wrapper
    from carft_sweep.carft_core.algorithms.fine_tune import FineTune
    from carft_sweep.carft_core.config.trial import trial_config
    from carft_sweep.carft_core.data import FAMILIES, Family, FamilyData, Source, Split, Transform
    from carft_sweep.carft_core.data.base import Arrays, DataConfig, Files
    from carft_sweep.carft_core.errors import RequestError
    from carft_sweep.carft_core.export.predictor import Predictor
    from carft_sweep.carft_core.merges import MERGES, Merge, MergePoint
    from carft_sweep.carft_core.models.classifier import Classifier, ImageClassifier
    from carft_sweep.carft_core.models.prompts import register_templates
    from carft_sweep.carft_core.models.teacher import Teacher
    from carft_sweep.carft_core.testing import check_algorithm, check_family, check_merge
    from carft_sweep.carft_core.training.loop import train
    from carft_sweep.carft_core.training.optim import (
        OPTIMISERS,
        Group,
        OptimConfig,
        Optimiser,
        decay_groups,
    )
    from carft_sweep.sweeps.api import SweepFailed, run_sweep
    from carft_sweep.sweeps.results.loading import load_comparison, predictions
    from carft_sweep.tracking.report.formats import rows_frame, runs_frame
    from carft_sweep.tracking.report.html import chart

# Nothing is sent home unless the user asks for it; the hub's client reads this when imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

# Threads of OpenMP spin while they wait for each other. Beside another busy process they wait for
# threads that have no core, and a step takes many times as long. The variable is read when torch
# is loaded, and inherited by every process that is started from here.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"}:
    os.environ["OMP_WAIT_POLICY"] = "passive"

# PyTorch computes attention's input projection as one matrix product, or as one for each image, by
# whether its weights need a gradient. Where the two round differently, as on AMD's CPUs, the
# teacher and a student of equal weights differ, and CAR-FT's KL is not 0 at step 0.
os.environ.setdefault("TORCH_LINEAR_FLATTEN_3D", "1")

# cuBLAS reads this once, at the first product of a process, and a worker that is kept warm serves
# runs with `deterministic` and runs without.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

__all__ = [
    "ALGORITHMS",
    "FAMILIES",
    "MERGES",
    "OPTIMISERS",
    "Algorithm",
    "Arrays",
    "Batch",
    "Classifier",
    "DataConfig",
    "Family",
    "FamilyData",
    "Files",
    "FineTune",
    "Group",
    "ImageClassifier",
    "Loss",
    "Merge",
    "MergePoint",
    "OptimConfig",
    "Optimiser",
    "Predictor",
    "RequestError",
    "Soup",
    "Source",
    "Split",
    "SweepFailed",
    "Teacher",
    "Transform",
    "Wrapper",
    "chart",
    "check_algorithm",
    "check_family",
    "check_merge",
    "decay_groups",
    "load_comparison",
    "predictions",
    "register_templates",
    "rows_frame",
    "run_sweep",
    "runs_frame",
    "train",
    "trial_config",
]

_NAMES = {
    "carft_core.algorithms": ("ALGORITHMS", "Algorithm", "Batch", "Loss", "Soup", "Wrapper"),
    "carft_core.algorithms.fine_tune": ("FineTune",),
    "carft_core.models.classifier": ("Classifier", "ImageClassifier"),
    "carft_core.config.trial": ("trial_config",),
    "carft_core.data": ("FAMILIES", "Family", "FamilyData", "Source", "Split", "Transform"),
    "carft_core.data.base": ("Arrays", "DataConfig", "Files"),
    "carft_core.errors": ("RequestError",),
    "carft_core.merges": ("MERGES", "Merge", "MergePoint"),
    "carft_core.training.optim": (
        "OPTIMISERS",
        "Group",
        "OptimConfig",
        "Optimiser",
        "decay_groups",
    ),
    "carft_core.export.predictor": ("Predictor",),
    "carft_core.models.prompts": ("register_templates",),
    "carft_core.models.teacher": ("Teacher",),
    "carft_core.testing": ("check_algorithm", "check_family", "check_merge"),
    "carft_core.training.loop": ("train",),
    "sweeps.api": ("SweepFailed", "run_sweep"),
    "sweeps.results.loading": ("load_comparison", "predictions"),
    "tracking.report.formats": ("rows_frame", "runs_frame"),
    "tracking.report.html": ("chart",),
}
_MODULES = {name: module for module, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # Not at import: every command imports this package, and most need nothing of it.
    if name == "__version__":
        from importlib.metadata import version

        return version("carft-sweep")
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    # What a notebook completes: nothing of it is imported yet.
    return __all__
