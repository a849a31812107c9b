"""Evaluation: read each split once for all models of a run, and compute their metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import Split
from carft_sweep.carft_core.data.base import Derived
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
"""What `Family.metrics` may name; those of OF_GROUPS are measured on splits that have groups."""
MEMORY_FOR_MODELS = 2**31
"""Bytes of models, with their features of a split, that are measured together; at least one is."""


def measure(
    models: Mapping[str, Callable[[], Classifier]],
    setup: RunSetup,
    config: TrialConfig,
    files: Mapping[str, Path],
) -> dict[str, dict[str, float]]:
    """Return the metrics of each model on every measured split; see docs/metrics.md.

    `models` has, by label, a function that returns the classifier, on any device; `files` the path
    for its predictions, if they are to be written. Each image is read once for as many models as
    fit into memory. Raises RequestError when an image cannot be used, NonFinite when a logit is NaN
    or +inf.
    """
    metrics: dict[str, dict[str, float]] = {}
    waiting = dict(models)
    features = max(map(len, setup.measured().values())) * setup.teacher.w_cls[0].nbytes
    while waiting:
        # No name for the models of the pass before, which would lie beside the next ones.
        metrics |= _measure_together(
            _load_some(waiting, features, setup.teacher.device), setup, config, files
        )
    return metrics


def _load_some(
    waiting: dict[str, Callable[[], Classifier]], features: int, device: torch.device
) -> dict[str, Classifier]:
    """Load one or more of the waiting models onto the device: as many as fit, with `features` bytes
    each, into MEMORY_FOR_MODELS, on CUDA into a quarter of the free memory."""
    is_cuda = device.type == "cuda"
    room = 1 + torch.cuda.mem_get_info(device)[0] // 4 if is_cuda else MEMORY_FOR_MODELS
    models: dict[str, Classifier] = {}
    parts: set[Classifier] = set()
    while waiting and room > 0:
        label = next(iter(waiting))
        models[label] = on_device(waiting.pop(label)(), device)
        added = {*models[label].parts} - parts
        room -= len(added) * features
        room -= sum(tensor.nbytes for part in added for tensor in part.state_dict().values())
        parts |= added
    return models


def _measure_together(
    classifiers: Mapping[str, Classifier],
    setup: RunSetup,
    config: TrialConfig,
    files: Mapping[str, Path],
) -> dict[str, dict[str, float]]:
    """Return the metrics of models on the device, in one pass over the splits."""
    teacher, data, splits = setup.teacher, setup.data, setup.measured()
    models = {label: _Model(classifier) for label, classifier in classifiers.items()}
    zero_shot = _Model(teacher.classifier)  # what gains are measured against
    with contextlib.ExitStack() as stack:
        for label, model in models.items():
            model.probes = config.eval.context_probe and model.classifier.clip_features
            if label in files:
                names = [*splits, *data.derived]
                file = predictions_file(files[label], names, config.eval.logits, data.class_names)
                model.write = stack.enter_context(file)
        if any(classifier is not teacher.classifier for classifier in classifiers.values()):
            teacher.loader.expect(map(teacher.part, splits))
        for name in splits:
            _measure_split(name, [zero_shot, *models.values()], setup)
    return {
        label: summary(
            model.values, zero_shot.values, outside=data.outside_mean, own_means=data.own_means
        )
        for label, model in models.items()
    }


@dataclass(eq=False)
class _Model:
    """A model that is measured, and what was measured of it so far."""

    classifier: Classifier
    probes: bool = False
    """Whether it is measured how far its context distributions moved."""
    write: Callable[[Predictions], None] | None = None
    values: dict[str, Mapping[str, float]] = field(default_factory=dict)
    """Metrics by the name of a split or derived set; those of contexts under `context/<name>`."""
    waiting: dict[str, Predictions] = field(default_factory=dict)
    """By split the predictions that derived sets of several splits still need."""

    def completed(self, derived: Mapping[str, Derived]) -> Iterator[Predictions]:
        """Yield the joined predictions of each derived set without a value whose splits are
        predicted."""
        for name, part in derived.items():
            if name not in self.values and self.waiting.keys() >= {*part.of}:
                yield joined(name, [self.waiting[split] for split in part.of], part.classes)

    def forget(self, derived: Mapping[str, Derived]) -> None:
        """Drop the predictions that no derived set without a value needs."""
        needed = {
            part for name, item in derived.items() if name not in self.values for part in item.of
        }
        self.waiting = {name: self.waiting[name] for name in self.waiting if name in needed}


def _measure_split(name: str, models: Sequence[_Model], setup: RunSetup) -> None:
    """Measure models, the first of which is the zero-shot one, on a split, and on each derived set
    all of whose splits are then predicted."""
    teacher, head = setup.teacher, setup.other_heads.get(name)
    if head is not None:
        models = [model for model in models if model.classifier.clip_features]
    classifiers = [model.classifier for model in models]
    frozen: dict[str, Tensor] = {}
    for model, predictions in zip(models, predict(classifiers, name, teacher, head), strict=True):
        model.waiting[name] = predictions
        for item in [predictions, *model.completed(setup.data.derived)]:
            values = split_metrics(item, setup.family.metrics)
            model.values[item.split] = values if head is None else {"top1": values["top1"]}
            before = frozen.setdefault(item.split, item.features)  # the first model's
            if model.probes and head is None:
                probe = context_probe(before, item.features, teacher.w_ctx, teacher.scale)
                model.values[f"context/{item.split}"] = probe
            if model.write is not None:
                model.write(item)
        model.forget(setup.data.derived)


def predict(
    classifiers: Sequence[Classifier], name: str, teacher: Teacher, head: nn.Module | None = None
) -> Iterator[Predictions]:
    """Yield each classifier's predictions of the fixed views of one of the teacher's splits, after
    one pass over its images.

    The image towers run in the run's precision, the heads in float32; `head`, if given, replaces
    the classifiers' own heads. A part of several classifiers, such as the tuned one of a logit
    ensemble at every alpha, encodes the images once. Raises RequestError for an unusable image,
    ValueError for an empty split or a label outside `split.classes`.
    """
    split = teacher.splits[name]
    _check_labels(split, name)
    parts = [*dict.fromkeys(part for classifier in classifiers for part in classifier.parts)]
    features_of = dict(zip(parts, teacher.encode(parts, name), strict=True))
    for classifier in classifiers:
        own = [features_of[part] for part in classifier.parts]
        features = torch.cat(own, dim=1) if len(own) > 1 else own[0]
        with torch.no_grad():
            logits = classifier.logits(features) if head is None else head(features)
        yield Predictions(
            split=name,
            ids=split.ids,
            units=split.units,
            labels=split.labels.to(features.device),
            logits=mask_logits(logits, split.classes, split.alike),
            features=features,
            groups=split.groups,
        )


def joined(name: str, parts: Sequence[Predictions], classes: Sequence[int] | None) -> Predictions:
    """Return predictions of several splits as those of one, `name`: of the items of `classes`,
    among these alone (None: of all items)."""
    if classes is not None:
        wanted = torch.tensor(classes, device=parts[0].labels.device)
        parts = [part.take(torch.isin(part.labels, wanted).nonzero()[:, 0]) for part in parts]
    groups = [part.groups for part in parts if part.groups is not None]
    return Predictions(
        split=name,
        ids=[item for part in parts for item in part.ids],
        units=[item for part in parts for item in part.units],
        labels=torch.cat([part.labels for part in parts]),
        logits=mask_logits(torch.cat([part.logits for part in parts]), classes),
        features=torch.cat([part.features for part in parts]),
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
    """Return metrics by `<split>/<metric>`, and means and differences over several splits.

    `ood/mean/<metric>` is the mean over shifts, each counting the same; `gap/top1` is ID test minus
    OOD mean, `hmean/top1` their harmonic mean; `gain/ood/top1` the OOD mean minus that of
    `zero_shot`, which is given like `per_split`. `retention/mean/top1` is the mean over
    `retention/` tasks, and `retention/gain/top1` that mean minus the zero-shot model's: below 0 is
    forgetting. A metric is absent where one of its splits was not measured. Splits named in
    `outside` are not in `ood/mean`; `own_means` has the splits of further means, by the mean's
    name.
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
    others = [name for name in per_split if name.startswith(RETENTION)]
    if others:
        flat["retention/mean/top1"] = _means(per_split, others)["top1"]
        before = _means(zero_shot or {}, others)["top1"]
        flat["retention/gain/top1"] = flat["retention/mean/top1"] - before
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


def _means(per_split: Mapping[str, Mapping[str, float]], splits: Sequence[str]) -> dict[str, float]:
    """Return the mean of each metric over those of `splits` that have the metric."""
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
