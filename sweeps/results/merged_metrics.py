"""The metrics of merged models under the names that a tracking store has.

A store shows the newest value of a name, so each merged model has names of its own: those of alpha
0.5 begin with `wise_ft_0.5/`. Alpha 0 and 1 have none: they are the zero-shot model, which is a run
of its own, and the run's own model. The curve over alpha is a series besides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from carft_sweep.tracking.comparison.metrics import has_series
from carft_sweep.tracking.comparison.runs import UNMERGED, split_merge
from carft_sweep.tracking.comparison.wise_ft_curve import PAPER_ALPHA
from carft_sweep.tracking.store.base import Metric

CURVE = "curve/"


def model_prefix(label: str) -> str:
    """Return the beginning of the names of a model's metrics; empty for the run's own model."""
    return "" if label == UNMERGED or split_merge(label)[1] == 1 else f"{label.replace('@', '_')}/"


def merged_metrics(
    label: str, evaluation: Mapping[str, Any], *, epoch: int, timestamp: int
) -> Iterator[Metric]:
    """Yield the metrics of a merged model, and a point of the curve for a merge with an alpha.

    `epoch` is the run's last, `timestamp` when the model was measured. At WiSE-FT's recommended
    alpha every split has a name; at others only the splits for selection and for the curve, since
    ten alphas and ten splits would be a hundred names for each run. The selected alpha is unknown
    when a run ends: all splits of the selected model are recorded with the arms.
    """
    merge, alpha = split_merge(label)
    shown: Literal["merge", "alpha"] = "merge" if alpha in (None, PAPER_ALPHA) else "alpha"
    for name, value in evaluation["metrics"].items():
        if alpha is not None and has_series(name, of="alpha"):
            curve = f"{CURVE}{merge}/{name}"
            yield Metric(curve, float(value), int(evaluation["step"]), timestamp)
        if alpha not in (0, 1) and has_series(name, of=shown):
            yield Metric(f"{model_prefix(label)}{name}", float(value), epoch, timestamp)
