"""The one evaluation: each split is read once for all models of a run, then metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import Split
from carft_sweep.carft_core.evaluation.metrics import (
    brier,
    ece,
    entropy,
    kl_divergence,
    macro_f1,
    mean_group_top1,
    mean_per_class_top1,
    nll,
    on_float64_device,
    top1,
    worst_group_top1,
)
from carft_sweep.carft_core.evaluation.predictions import Predictions, predictions_file
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher, on_device
from carft_sweep.carft_core.training.setup import RETENTION, RunSetup

METRICS = {"top1": top1, "nll": nll, "ece": ece, "brier": brier}
OF_CLASSES = {"macro_f1": macro_f1, "mean_per_class_top1": mean_per_class_top1}
OF_GROUPS = {"mean_group_top1": mean_group_top1, "worst_group_top1": worst_group_top1}
FURTHER_METRICS = (*OF_CLASSES, *OF_GROUPS)
"""What a family may ask for besides; those of groups are of the splits that have groups."""


MEMORY_FOR_MODELS = 2**31
"""Bytes of weights that are on the device at once, and at least one model's."""


def predict(classifier: Classifier, name: str, teacher: Teacher) -> Predictions:
    """Return the predictions of the evaluation view of every item of one of the teacher's splits.
    The image tower runs in the run's precision, the head in float32. Raises RequestError for an
    unusable image, ValueError for an empty split or a label outside `split.classes`."""
    split = teacher.splits[name]
    _check_labels(split, name)
    if classifier is teacher.classifier:
        features = teacher.features(name).to(teacher.device)
    else:
        (features,) = teacher.encode([classifier], name)
    return _predictions(classifier, features, split, name)


def measure(
    models: Mapping[str, Callable[[], Classifier]],
    setup: RunSetup,
    config: TrialConfig,
    files: Mapping[str, Path],
) -> dict[str, dict[str, float]]:
    """Return the metrics of each model on every measured split; see docs/metrics.md.

    `models` make classifiers on any device, or return the teacher's own; `files` has paths for
    predictions by a model's label. Each image is read once for as many models as fit into
    MEMORY_FOR_MODELS. Raises RequestError when an image cannot be used, NonFinite when a logit is
    NaN or +inf.
    """
    metrics: dict[str, dict[str, float]] = {}
    waiting = dict(models)
    while waiting:
        classifiers: dict[str, Classifier] = {}
        room, parts = _room(setup.device), set[Classifier]()
        for label in list(waiting):
            classifiers[label] = on_device(waiting[label](), setup.device)
            for part in {*classifiers[label].parts} - parts:
                parts.add(part)
                room -= sum(tensor.nbytes for tensor in part.state_dict().values())
            del waiting[label]
            if room <= 0:
                break
        metrics |= _measure_together(classifiers, setup, config, files)
    return {label: metrics[label] for label in models}


def _room(device: torch.device) -> int:
    """Return how many bytes models may take together: on CUDA a quarter of the free memory."""
    if device.type != "cuda":
        return MEMORY_FOR_MODELS
    return max(MEMORY_FOR_MODELS, torch.cuda.mem_get_info(device)[0] // 4)


def _measure_together(
    classifiers: Mapping[str, Classifier],
    setup: RunSetup,
    config: TrialConfig,
    files: Mapping[str, Path],
) -> dict[str, dict[str, float]]:
    teacher = setup.teacher
    probes = config.eval.context_probe
    reports = {
        label: _ModelMeasurements(classifier, setup, probes)
        for label, classifier in classifiers.items()
    }
    # What gains are measured against; how far its contexts moved is asked of the others alone.
    zero_shot = _ModelMeasurements(teacher.classifier, setup, False)
    with contextlib.ExitStack() as stack:
        for label, report in reports.items():
            if label in files:
                names = [*setup.measured(), *setup.data.derived]
                file = predictions_file(
                    files[label], names, config.eval.logits, setup.data.class_names
                )
                report.write = stack.enter_context(file)
        splits = setup.measured()
        if any(classifier is not teacher.classifier for classifier in classifiers.values()):
            teacher.loader.expect(map(teacher.part, splits))
        for name, split in splits.items():
            _check_labels(split, name)
            frozen, features = _features(classifiers, name, teacher)
            zero_shot.add(name, frozen, frozen)
            for label, report in reports.items():
                report.add(name, features[label], frozen)
    return {label: report.metrics(zero_shot) for label, report in reports.items()}


def _features(
    classifiers: Mapping[str, Classifier], name: str, teacher: Teacher
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the teacher's features of a split and those of each classifier, all in one pass over
    the images. A part of several classifiers, as the tuned one of a logit ensemble at every alpha,
    passes once."""
    frozen = teacher.cached_features(name)
    features: dict[Classifier, Tensor] = {}
    if frozen is not None:
        features[teacher.classifier] = frozen.to(teacher.device)
    parts = (part for classifier in classifiers.values() for part in classifier.parts)
    each = dict.fromkeys((teacher.classifier, *parts))
    if passing := [classifier for classifier in each if classifier not in features]:
        features |= zip(passing, teacher.encode(passing, name), strict=True)
    if frozen is None:
        teacher.cache_features(name, features[teacher.classifier].cpu())
    joined_parts = {
        label: torch.cat([features[part] for part in classifier.parts], dim=1)
        if len(classifier.parts) > 1
        else features[classifier.parts[0]]
        for label, classifier in classifiers.items()
    }
    return features[teacher.classifier], joined_parts


def _predictions(classifier: Classifier, features: Tensor, split: Split, name: str) -> Predictions:
    with torch.no_grad():
        logits = mask_logits(classifier.logits(features), split.classes, split.alike)
    return Predictions(
        split=name,
        ids=split.ids,
        units=split.units,
        labels=split.labels.to(features.device),
        logits=logits,
        groups=split.groups,
    )


class _Split(NamedTuple):
    """What a model says of a split, and how the teacher sees it."""

    predictions: Predictions
    features: Tensor
    """[N, d] by the model."""
    frozen: Tensor
    """[N, d] by the teacher."""


class _ModelMeasurements:
    """What is measured of one model, split by split."""

    def __init__(self, classifier: Classifier, setup: RunSetup, probes_contexts: bool) -> None:
        self.classifier, self.setup = classifier, setup
        self.probes_contexts = probes_contexts and classifier.clip_features
        self.write: Callable[[Predictions], None] | None = None
        self.values: dict[str, Mapping[str, float]] = {}
        self.contexts: dict[str, Mapping[str, float]] = {}
        self.retained: dict[str, float] = {}
        self.waiting: dict[str, _Split] = {}
        """What sets derived from several splits still need."""

    def add(self, name: str, features: Tensor, frozen: Tensor) -> None:
        """Count the predictions of a split, with its features [N, d] by the model and by the
        teacher."""
        split = self.setup.teacher.splits[name]
        if name.startswith(RETENTION):
            if self.classifier.clip_features:
                self._add_other_task(name, features)
            return
        predictions = _predictions(self.classifier, features, split, name)
        self.waiting[name] = _Split(predictions, features, frozen)
        self._count(self.waiting[name])
        self._count_derived()

    def _add_other_task(self, name: str, features: Tensor) -> None:
        split, head = self.setup.teacher.splits[name], self.setup.other_heads[name]
        labels = split.labels.to(features.device)
        with torch.inference_mode():
            logits = head(features)
        self.retained[name] = top1(*on_float64_device(logits, labels))
        if self.write is not None:
            self.write(Predictions(name, split.ids, split.units, labels, logits, split.groups))

    def _count_derived(self) -> None:
        """Measure derived sets whose splits were all measured, then forget splits that no other
        derived set needs."""
        derived = self.setup.data.derived
        for name, part in derived.items():
            if name not in self.values and self.waiting.keys() >= {*part.of}:
                self._count(joined(name, [self.waiting[of] for of in part.of], part.classes))
        needed = {of for name, part in derived.items() if name not in self.values for of in part.of}
        self.waiting = {name: split for name, split in self.waiting.items() if name in needed}

    def _count(self, split: _Split) -> None:
        name, teacher = split.predictions.split, self.setup.teacher
        self.values[name] = split_metrics(split.predictions, self.setup.family.metrics)
        if self.probes_contexts:
            self.contexts[name] = context_probe(
                split.frozen, split.features, teacher.w_ctx, teacher.scale
            )
        if self.write is not None:
            self.write(split.predictions)

    def metrics(self, zero_shot: _ModelMeasurements) -> dict[str, float]:
        """Return all metrics under flat names, with the gains over the zero-shot model."""
        data = self.setup.data
        flat = summary(
            self.values, zero_shot.values, outside=data.outside_mean, own_means=data.own_means
        )
        for name, values in self.contexts.items():
            flat |= {f"context/{name}/{key}": value for key, value in values.items()}
        return flat | retention_metrics(self.retained, zero_shot.retained)


def rows_of(labels: Tensor, classes: Sequence[int] | None) -> Tensor:
    """Return the rows of labels [N] that are among `classes`; all rows for None."""
    if classes is None:
        return torch.arange(len(labels), device=labels.device)
    return torch.isin(labels, torch.tensor(classes, device=labels.device)).nonzero()[:, 0]


def joined(name: str, splits: Sequence[_Split], classes: Sequence[int] | None) -> _Split:
    """Return the items of some classes of several splits, one after another, predicted among these
    classes alone. Raises ValueError without an item."""
    rows = [rows_of(split.predictions.labels, classes) for split in splits]
    if not sum(map(len, rows)):
        raise ValueError(f"{name} has no items")
    return _Split(
        _among_rows(name, [split.predictions for split in splits], rows, classes),
        torch.cat([split.features[row] for split, row in zip(splits, rows, strict=True)]),
        torch.cat([split.frozen[row] for split, row in zip(splits, rows, strict=True)]),
    )


def _among_rows(
    name: str,
    predictions: Sequence[Predictions],
    rows: Sequence[Tensor],
    classes: Sequence[int] | None,
) -> Predictions:
    parts = [part.take(row) for part, row in zip(predictions, rows, strict=True)]
    groups = [part.groups for part in parts if part.groups is not None]
    return Predictions(
        split=name,
        ids=[item for part in parts for item in part.ids],
        units=[item for part in parts for item in part.units],
        labels=torch.cat([part.labels for part in parts]),
        logits=mask_logits(torch.cat([part.logits for part in parts]), classes),
        groups=[group for of in groups for group in of] if len(groups) == len(parts) else None,
    )


def mask_logits(
    logits: Tensor,
    classes: Sequence[int] | None,
    alike: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> Tensor:
    """Return logits [N, C] for a choice among `classes`: -inf for the others; None keeps all.

    A class gets the greatest logit of the classes `alike`, listed under that class. Source:
    wise-ft's `project_logits`, which masks, and of ObjectNet takes the maximum.
    """
    if classes is None:
        return logits
    masked = torch.full_like(logits, -torch.inf)
    possible = list(classes)
    masked[:, possible] = logits[:, possible]
    for number, same in alike.items():
        masked[:, number] = logits[:, list(same)].amax(dim=1)
    return masked


def split_metrics(predictions: Predictions, further: Collection[str] = ()) -> dict[str, float]:
    """Return `top1`, `nll`, `ece` and `brier` of one split; definitions in docs/metrics.md.
    `further` names some of FURTHER_METRICS besides; metrics of groups are absent where no item has
    a group. Raises NonFinite when a logit is NaN or +inf."""
    logits, labels = on_float64_device(predictions.logits, predictions.labels)
    groups = predictions.groups
    of_classes = {name: OF_CLASSES[name] for name in further if name in OF_CLASSES}
    values = {name: metric(logits, labels) for name, metric in (METRICS | of_classes).items()}
    if groups is not None and any(groups):
        of_groups = {name: OF_GROUPS[name] for name in further if name in OF_GROUPS}
        values |= {name: metric(logits, labels, groups) for name, metric in of_groups.items()}
    return values


def summary(
    per_split: Mapping[str, Mapping[str, float]],
    zero_shot: Mapping[str, Mapping[str, float]] | None = None,
    *,
    outside: Collection[str] = (),
    own_means: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> dict[str, float]:
    """Return flat metrics `<split>/<metric>`, and means and differences over several splits.

    `ood/mean/<metric>` is the mean over shifts, each counting the same; `gap/top1` is ID test minus
    OOD mean, `hmean/top1` their harmonic mean; `gain/ood/top1` the OOD mean minus that of
    `zero_shot`, which is given like `per_split`. A metric is absent where one of its splits was not
    measured. Splits `outside` are not in the mean; `own_means` are means of some of these, by their
    names.
    """
    flat = {
        f"{split}/{metric}": value
        for split, metrics in per_split.items()
        for metric, value in metrics.items()
    }
    for name, splits in own_means.items():
        flat |= {f"{name}/{metric}": value for metric, value in _means(per_split, splits).items()}
    shifts = [name for name in per_split if name.startswith("ood/") and name not in outside]
    means = _means(per_split, shifts)
    flat |= {f"ood/mean/{metric}": mean for metric, mean in means.items()}
    test, ood = flat.get("id/test/top1"), means.get("top1")
    if test is not None and ood is not None:
        flat["gap/top1"] = test - ood
        flat["hmean/top1"] = 2 * test * ood / (test + ood) if test + ood > 0 else 0.0
    reference = _means(zero_shot or {}, shifts).get("top1")
    if ood is not None and reference is not None:
        flat["gain/ood/top1"] = ood - reference
    return flat


def context_probe(
    teacher_features: Tensor, student_features: Tensor, w_ctx: Tensor, scale: float
) -> dict[str, float]:
    """Return how far the context distribution has moved on one split.

    Features [N, d] of the same items and `w_ctx` [K, d] have unit-norm rows, `scale` is CLIP's
    logit scale. `kl` is the mean of KL(p_ctx(teacher) || p_ctx(student)), `entropy` the mean
    entropy of the student's p_ctx, both in nats.
    """
    contexts, *both = on_float64_device(w_ctx, teacher_features, student_features)
    teacher, student = (
        F.log_softmax(scale * features.double() @ contexts.double().T, dim=1) for features in both
    )
    return {"kl": kl_divergence(teacher, student), "entropy": entropy(student)}


def retention_metrics(
    retained: Mapping[str, float], zero_shot: Mapping[str, float]
) -> dict[str, float]:
    """Return `retention/<family>/top1`, their mean, and the mean's gain over the zero-shot model's.
    Both arguments have the top-1 of each other task by metric name; without a task the result is
    empty. A negative gain means forgetting."""
    if not retained:
        return {}
    mean = sum(retained.values()) / len(retained)
    before = sum(zero_shot.values()) / len(zero_shot)
    metrics = {f"{name}/top1": value for name, value in retained.items()}
    return {**metrics, "retention/mean/top1": mean, "retention/gain/top1": mean - before}


def _means(per_split: Mapping[str, Mapping[str, float]], splits: Sequence[str]) -> dict[str, float]:
    """Return the mean of each metric over those of the splits that were measured by it."""
    values: dict[str, list[float]] = {}
    for split in splits:
        for metric, value in per_split.get(split, {}).items():
            values.setdefault(metric, []).append(value)
    return {metric: sum(of) / len(of) for metric, of in values.items()}


def _check_labels(split: Split, name: str) -> None:
    if len(split) == 0:
        raise ValueError(f"{name} has no items")
    if split.classes is None:
        return
    if not bool(torch.isin(split.labels, torch.tensor(split.classes)).all()):
        raise ValueError(f"{name} has labels outside the classes that it declares")
