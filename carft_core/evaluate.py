"""The one evaluation: predictions per split, then metrics."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_core.data.base import Split, Transform
from carft_core.data.loader import batches
from carft_core.device import Precision, autocast
from carft_core.metrics import (
    brier,
    ece,
    entropy,
    kl_divergence,
    macro_f1,
    mean_group_top1,
    mean_per_class_top1,
    nll,
    top1,
    worst_group_top1,
)

if TYPE_CHECKING:
    from carft_core.clip import ImageClassifier

METRICS = {"top1": top1, "nll": nll, "ece": ece, "brier": brier}
OF_CLASSES = {"macro_f1": macro_f1, "mean_per_class_top1": mean_per_class_top1}
OF_GROUPS = {"mean_group_top1": mean_group_top1, "worst_group_top1": worst_group_top1}
FURTHER_METRICS = (*OF_CLASSES, *OF_GROUPS)
"""What a family may ask for besides; those of groups are of the splits that have groups."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a classifier says of each item of a split, in the split's order, on the CPU."""

    split: str
    """The split's metric name: `id/val`, `id/test`, `id/test_<part>`, `ood/<name>`."""
    ids: tuple[str, ...]
    units: tuple[str, ...]
    labels: Tensor
    """[N] int64."""
    logits: Tensor
    """[N, C] float32; -inf for classes that cannot occur in the split."""
    features: Tensor
    """[N, d] float32 unit-norm image features; never written to disk."""
    groups: tuple[str, ...] | None = None
    """What each item belongs to, where the split has groups; not written either."""


def predict(
    classifier: ImageClassifier,
    split: Split,
    name: str,
    *,
    transform: Transform,
    device: torch.device,
    precision: Precision,
    batch_size: int,
    workers: int = 0,
) -> Predictions:
    """Classify the evaluation view of every item of a split.

    `classifier` lies on `device`; it is put into evaluation mode meanwhile. The image tower runs
    in `precision`, what comes behind it in float32.

    Raises RequestError when an image cannot be used, ValueError for an empty split or a label
    outside `split.classes`.
    """
    _check_labels(split, name)
    features, logits = [], []
    with torch.inference_mode(), _evaluating(classifier):
        for images, _, _ in batches(
            split,
            batch_size=batch_size,
            transform=transform,
            seed=None,
            epoch=0,
            workers=workers,
            pin_memory=device.type == "cuda",
        ):
            images = images.to(device, non_blocking=True)
            if device.type == "cuda":
                images = images.to(memory_format=torch.channels_last)
            with autocast(device, precision):
                unit = classifier.features(images)
            features.append(unit.cpu())
            logits.append(classifier.logits(unit).cpu())
    return Predictions(
        split=name,
        ids=split.ids,
        units=split.units,
        labels=split.labels,
        logits=among(torch.cat(logits), split.classes, split.alike),
        features=torch.cat(features),
        groups=split.groups,
    )


def among(
    logits: Tensor,
    classes: Sequence[int] | None,
    alike: Mapping[int, Sequence[int]] = MappingProxyType({}),
) -> Tensor:
    """Logits [N, C] of a choice among `classes`: -inf for the others; None is all of them.

    A class takes the greatest logit of those that are `alike`, which are looked up under it.
    Source: wise-ft's `project_logits`, which masks, and of ObjectNet takes the maximum.
    """
    if classes is None:
        return logits
    chosen = torch.full_like(logits, -torch.inf)
    possible = list(classes)
    chosen[:, possible] = logits[:, possible]
    for number, same in alike.items():
        chosen[:, number] = logits[:, list(same)].amax(dim=1)
    return chosen


def part(predictions: Predictions, name: str, classes: Sequence[int]) -> Predictions:
    """The items of some classes, predicted among these classes alone, as the split `name`.

    Raises ValueError when there is no such item.
    """
    inside, groups = torch.isin(predictions.labels, torch.tensor(classes)), predictions.groups
    kept = inside.nonzero()[:, 0].tolist()
    if not kept:
        raise ValueError(f"{name} has no items")
    return Predictions(
        split=name,
        ids=tuple(predictions.ids[index] for index in kept),
        units=tuple(predictions.units[index] for index in kept),
        labels=predictions.labels[inside],
        logits=among(predictions.logits[inside], classes),
        features=predictions.features[inside],
        groups=None if groups is None else tuple(groups[index] for index in kept),
    )


def together(parts: Sequence[Predictions], name: str) -> Predictions:
    """The items of several splits, one after another, as the split `name`."""
    groups = [item.groups for item in parts if item.groups is not None]
    return Predictions(
        split=name,
        ids=tuple(one for item in parts for one in item.ids),
        units=tuple(one for item in parts for one in item.units),
        labels=torch.cat([item.labels for item in parts]),
        logits=torch.cat([item.logits for item in parts]),
        features=torch.cat([item.features for item in parts]),
        groups=tuple(one for of in groups for one in of) if len(groups) == len(parts) else None,
    )


def split_metrics(predictions: Predictions, further: Collection[str] = ()) -> dict[str, float]:
    """`top1`, `nll`, `ece` and `brier` of one split; definitions in docs/metrics.md.

    `further` names some of FURTHER_METRICS besides; those of groups are absent where no item has
    one. Raises NonFinite when a logit is NaN or +inf.
    """
    logits, labels, groups = predictions.logits, predictions.labels, predictions.groups
    asked = METRICS | {name: OF_CLASSES[name] for name in further if name in OF_CLASSES}
    values = {name: metric(logits, labels) for name, metric in asked.items()}
    if groups is not None and any(groups):
        of_groups = {name: OF_GROUPS[name] for name in further if name in OF_GROUPS}
        values |= {name: metric(logits, labels, groups) for name, metric in of_groups.items()}
    return values


def summary(
    per_split: Mapping[str, Mapping[str, float]],
    zero_shot: Mapping[str, Mapping[str, float]] | None = None,
    *,
    outside: Collection[str] = (),
) -> dict[str, float]:
    """Flat metrics `<split>/<metric>`, and what follows from several splits.

    `ood/mean/<metric>` is the mean over shifts, each counting the same; `gap/top1` is ID test
    minus OOD mean, `hmean/top1` their harmonic mean; `gain/ood/top1` the OOD mean minus that of
    `zero_shot`, which is given like `per_split`. A name whose splits are not there is absent.
    Splits `outside` are in no mean.
    """
    flat = {
        f"{split}/{metric}": value
        for split, metrics in per_split.items()
        for metric, value in metrics.items()
    }
    shifts = {split: metrics for split, metrics in per_split.items() if split not in outside}
    known = dict.fromkeys(metric for metrics in shifts.values() for metric in metrics)
    means = {metric: _ood_mean(shifts, metric) for metric in known}
    flat |= {f"ood/mean/{metric}": mean for metric, mean in means.items() if mean is not None}
    test, ood = flat.get("id/test/top1"), means.get("top1")
    if test is not None and ood is not None:
        flat["gap/top1"] = test - ood
        flat["hmean/top1"] = 2 * test * ood / (test + ood) if test + ood > 0 else 0.0
    kept = {split: metrics for split, metrics in (zero_shot or {}).items() if split in shifts}
    reference = _ood_mean(kept, "top1")
    if ood is not None and reference is not None:
        flat["gain/ood/top1"] = ood - reference
    return flat


def context_probe(
    teacher_features: Tensor, student_features: Tensor, w_ctx: Tensor, scale: float
) -> dict[str, float]:
    """How far the context distribution has moved on one split.

    Features [N, d] of the same items and `w_ctx` [K, d] have unit-norm rows, `scale` is CLIP's
    logit scale. `kl` is the mean of KL(p_ctx(teacher) || p_ctx(student)), `entropy` the mean
    entropy of the student's p_ctx, both in nats.
    """
    teacher, student = (
        F.log_softmax(scale * features.double() @ w_ctx.double().T, dim=1)
        for features in (teacher_features, student_features)
    )
    return {"kl": kl_divergence(teacher, student), "entropy": entropy(student)}


def _ood_mean(per_split: Mapping[str, Mapping[str, float]], metric: str) -> float | None:
    values = [
        metrics[metric]
        for split, metrics in per_split.items()
        if split.startswith("ood/") and metric in metrics
    ]
    return sum(values) / len(values) if values else None


def _check_labels(split: Split, name: str) -> None:
    if len(split) == 0:
        raise ValueError(f"{name} has no items")
    if split.classes is None:
        return
    if not bool(torch.isin(split.labels, torch.tensor(split.classes)).all()):
        raise ValueError(f"{name} has labels outside the classes that it declares")


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards every submodule's own mode again (frozen batch norms)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
