"""A few steps of a run, really trained and timed, in a folder that goes away again."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from carft_core.config import TrialConfig, trial_config
from carft_core.errors import RequestError
from carft_core.evaluate import predict
from carft_core.predictions import write_predictions
from carft_core.prepare import Prepared, prepared
from carft_core.train import epochs
from sweeps.engines.training import failure_class, one_line
from sweeps.pace import Experience, Pace, Sample, kept_bytes
from sweeps.plan import merge_labels

STEPS = 10
_WARM_UP = 2
"""Steps that are not timed: the first ones wait for what later ones find ready."""


def measure(config: TrialConfig, seed: int, *, threads: int | None) -> Sample:
    """Train `STEPS` steps and evaluate `id/val`; larger splits are taken to go as fast.

    Raises RequestError when the run cannot be trained at all, with the reason.
    """
    import torch

    if threads is not None:
        torch.set_num_threads(threads)
    try:
        _timed(config, seed, _WARM_UP)
        reports, kept, weights = _timed(config, seed, STEPS)
        stand = prepared(config)
        per_image = _bytes_per_image(config, stand) if config.keep.predictions else 0.0
    except RequestError:
        raise
    except Exception as error:  # whatever a run raises, it would raise in the sweep
        raise RequestError(
            f"the first run cannot be trained ({failure_class(error)}): {one_line(error)}"
        ) from error
    training = sum(report["seconds"] for report in reports)
    span = (reports[-1]["timestamp"] - reports[0]["timestamp"]) / 1000
    validation = max(0.0, span - training) / max(1, len(reports) - 1)
    images = sum(map(len, stand.measured().values()))
    pace = Pace(
        step=training / max(1, reports[-1]["step"]),
        epoch=validation,
        model=validation * images / max(1, len(stand.data.id_val)),
    )
    kept += round(per_image * images * (1 + len(merge_labels(config))))
    return Sample(config.as_dict(), stand.device.type, pace, kept, weights)


def measured(sample: Sample) -> Experience:
    """What one measurement says of every run."""
    return Experience([sample], f"{STEPS} steps and an evaluation of id/val, measured now")


def _timed(config: TrialConfig, seed: int, steps: int) -> tuple[list[dict[str, Any]], int, int]:
    """The reports of so many steps, and the bytes that were kept: of the weights, after others."""
    plain = config.as_dict()
    per_run = {"steps": min(steps, plain["optim"]["steps"] or steps), "epochs": None}
    plain["optim"] = {**plain["optim"], **per_run}
    short = trial_config(plain)
    with tempfile.TemporaryDirectory(prefix="carft-measure-") as scratch:
        workdir = Path(scratch)
        reports = [report.as_dict() for report in epochs(short, seed, workdir=workdir)]
        return reports, *kept_bytes(workdir)


def _bytes_per_image(config: TrialConfig, stand: Prepared) -> float:
    """Of the predictions of one model on disk; those of `id/val` stand for every split."""
    predicted = predict(stand.teacher.classifier, "id/val", stand.teacher)
    with tempfile.TemporaryDirectory(prefix="carft-measure-") as scratch:
        file = Path(scratch) / "predictions.parquet"
        write_predictions(file, [predicted], config.eval.logits)
        return file.stat().st_size / len(stand.data.id_val)
