"""A model's metrics and predictions, unit after unit, so that memory holds one unit at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from carft_core.bench import Bench
from carft_core.clip import ImageClassifier
from carft_core.config import TrialConfig
from carft_core.evaluate import Predictions, context_probe, split_metrics, summary
from carft_core.metrics import top1
from carft_core.predictions import predictions_file
from carft_core.retention import OtherTask, retention_metrics
from carft_core.units import Unit, names_of, units_of
from carft_core.zero_shot import ZERO_SHOT

_Values = Mapping[str, float]


def measure(
    classifier: ImageClassifier | None,
    bench: Bench,
    others: Sequence[OtherTask],
    config: TrialConfig,
    file: Path | None,
) -> dict[str, float]:
    """The metrics of one model on all that its bench and `others` have; see docs/metrics.md.

    `classifier` lies on the bench's device; None is the zero-shot model. Predictions are kept in
    `file`, if there is one, as `predictions_file` does, in the order of `names_of`.

    Raises RequestError when an image cannot be used, NonFinite when a logit is NaN or +inf.
    """
    units, names, found = units_of(bench, others), names_of(bench, others), _Found()
    with contextlib.ExitStack() as stack:
        keep: Callable[[Predictions], object] | None = None
        if file is not None:
            shapes: dict[str, tuple[int, int]] = {}
            for unit in units:
                shapes |= unit.shapes(len(bench.teacher.w_cls))
            ordered = {name: shapes[name] for name in names}
            keep = stack.enter_context(predictions_file(file, ordered, config.eval.logits))
        for unit in units:
            found.add(unit, classifier, bench, config, keep)
    return found.metrics(names, bench)


@dataclass
class _Found:
    """What is left of predictions that are gone; by the metric name of the split."""

    values: dict[str, _Values] = field(default_factory=dict)
    zero_shot: dict[str, _Values] = field(default_factory=dict)
    probes: dict[str, _Values] = field(default_factory=dict)
    retained: dict[str, float] = field(default_factory=dict)
    before: dict[str, float] = field(default_factory=dict)
    """The same of the zero-shot model."""

    def add(
        self,
        unit: Unit,
        classifier: ImageClassifier | None,
        bench: Bench,
        config: TrialConfig,
        keep: Callable[[Predictions], object] | None,
    ) -> None:
        """Predict and measure a unit; only this call holds its predictions."""
        how = {"batch_size": config.eval.batch_size, "workers": config.workers}
        if classifier is None:
            predicted = ZERO_SHOT.predictions(unit, bench, **how)
        else:
            predicted = unit.predict(classifier, bench, **how)
        if unit.head is not None:
            self.retained |= {name: top1(it.logits, it.labels) for name, it in predicted.items()}
            self.before |= ZERO_SHOT.top1(unit, bench, **how)
        else:
            self.values |= {
                name: split_metrics(item, bench.further_metrics) for name, item in predicted.items()
            }
            if config.eval.context_probe:
                unmoved = predicted
                if classifier is not None:
                    unmoved = ZERO_SHOT.predictions(unit, bench, **how)
                self.probes |= _probes(predicted, unmoved, bench)
            known = ZERO_SHOT.top1(unit, bench, **how)
            self.zero_shot |= {name: {"top1": value} for name, value in known.items()}
        if keep is not None:
            for item in predicted.values():
                keep(item)

    def metrics(self, names: Sequence[str], bench: Bench) -> dict[str, float]:
        """All of it under flat names, in the order of `names`: sums depend on it."""
        own = [name for name in names if name in self.values]
        metrics = summary(
            {name: self.values[name] for name in own},
            {name: self.zero_shot[name] for name in own},
            outside=bench.outside_means(),
        )
        metrics |= {
            f"context/{name}/{key}": value
            for name in own
            for key, value in self.probes.get(name, {}).items()
        }
        return metrics | retention_metrics(self.retained, self.before)


def _probes(
    predicted: Mapping[str, Predictions], zero_shot: Mapping[str, Predictions], bench: Bench
) -> dict[str, _Values]:
    w_ctx, scale = bench.teacher.w_ctx.cpu(), bench.teacher.scale
    return {
        name: context_probe(zero_shot[name].features, item.features, w_ctx, scale)
        for name, item in predicted.items()
    }
