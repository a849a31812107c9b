"""The one evaluation: predictions of every split, then metrics."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_core.clip import ImageClassifier, open_model
from carft_core.config import ModelConfig, PromptsConfig, TrialConfig
from carft_core.data import FAMILIES, Family, FamilyData, Split
from carft_core.data.base import DataConfig
from carft_core.data.loader import batches
from carft_core.data.transforms import Transform
from carft_core.device import Precision, autocast, resolve_workers
from carft_core.errors import RequestError
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
from carft_core.predictions import Predictions, predictions_file
from carft_core.prepare import Bench
from carft_core.prompts import TemplateSet, class_weights, template_set, text_features

METRICS = {"top1": top1, "nll": nll, "ece": ece, "brier": brier}
OF_CLASSES = {"macro_f1": macro_f1, "mean_per_class_top1": mean_per_class_top1}
OF_GROUPS = {"mean_group_top1": mean_group_top1, "worst_group_top1": worst_group_top1}
FURTHER_METRICS = (*OF_CLASSES, *OF_GROUPS)
"""What a family may ask for besides; those of groups are of the splits that have groups."""


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


START = "retention/"
"""How the metric names begin."""


@dataclass(frozen=True, eq=False)
class OtherTask:
    """A task that is only tested on."""

    name: str
    """Its metric name, `retention/<family>`."""
    test: Split
    head: nn.Linear
    """Rows `logit_scale * W_cls[c]` of its own classes and templates; never trained."""


def other_data(config: TrialConfig) -> dict[str, FamilyData]:
    """The families of `eval.retention` but the run's own, opened; a process opens each once.

    Raises RequestError for one that cannot be opened or has no test.
    """
    names = [name for name in config.eval.retention if name != config.data.family]
    if config.eval.retention and not names:
        raise RequestError(
            f"eval.retention: {config.data.family} is what the run is tuned on; name other families"
        )
    return {name: _data(FAMILIES[name], config) for name in names}


def templates_of(name: str) -> TemplateSet:
    """A family's own default for `prompts.classes`."""
    default = PromptsConfig().classes
    return template_set(str(FAMILIES[name].defaults.get("prompts.classes", default)))


def _data(family: Family, config: TrialConfig) -> FamilyData:
    root = config.eval.retention_root
    if root is None and FAMILIES[config.data.family].folders:
        root = config.data.root
    if family.folders and root is None:
        raise RequestError(
            f"eval.retention_root: which folder holds the data sets? {config.data.family} does not "
            f"say it, and {family.name} lies there"
        )
    place = str(Path(root).expanduser().absolute()) if root and family.folders else None
    try:
        data = _opened(DataConfig(family=family.name, root=place, shifts=()), family.open)
    except RequestError as error:
        raise RequestError(f"eval.retention: {family.name}: {error}") from None
    if data.test is None:
        raise RequestError(f"eval.retention: {family.name} has no test in distribution")
    return data


@functools.lru_cache(maxsize=32)
def _opened(config: DataConfig, opened: Callable[[DataConfig], FamilyData]) -> FamilyData:
    return opened(config)


def open_others(config: TrialConfig, bench: Bench) -> tuple[OtherTask, ...]:
    """What the models of a run are tested on besides. The last ones stay open.

    Raises RequestError as `other_data` does, and for a prompt that the model cannot read.
    """
    tests = tuple(
        (name, data.class_names, data.id_test) for name, data in other_data(config).items()
    )
    return _with_heads(config.model, tests, bench.device) if tests else ()


@functools.lru_cache(maxsize=2)
def _with_heads(
    model: ModelConfig,
    tests: Sequence[tuple[str, tuple[str, ...], Split]],
    device: torch.device,
) -> tuple[OtherTask, ...]:
    clip = open_model(model.name, model.pretrained)
    found = []
    for name, class_names, test in tests:
        try:
            w_raw = text_features(clip, templates_of(name), class_names, device=device)
        except RequestError as error:
            raise RequestError(f"eval.retention: {name}: {error}") from None
        w_cls = class_weights(w_raw)
        head = nn.Linear(w_cls.shape[1], len(w_cls), bias=False).requires_grad_(False)
        head.weight.copy_(clip.logit_scale * w_cls)
        found.append(OtherTask(f"{START}{name}", test, head.to(device)))
    return tuple(found)


def retention_metrics(
    retained: Mapping[str, float], zero_shot: Mapping[str, float]
) -> dict[str, float]:
    """`retention/<family>/top1`, their mean, and what that is above the zero-shot model's.

    Both are given as the top-1 of each other task by its metric name; nothing where there is none.
    A negative gain is what was forgotten.
    """
    if not retained:
        return {}
    mean = sum(retained.values()) / len(retained)
    before = sum(zero_shot.values()) / len(zero_shot)
    found = {f"{name}/top1": value for name, value in retained.items()}
    return {**found, "retention/mean/top1": mean, "retention/gain/top1": mean - before}


@dataclass(frozen=True, eq=False)
class Unit:
    """Splits of which something is measured over all of them; most stand alone."""

    splits: Mapping[str, Split]
    """By metric name, as all that follows."""
    head: nn.Linear | None = None
    """That of another task; None is the classifier's own."""
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The classes of each part of `id/test`."""
    unions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of which of the splits each union is made."""

    def shapes(self, classes: int) -> dict[str, tuple[int, int]]:
        """The shapes [N, C] of the logits, by name; the classifier's own head has `classes`."""
        width = classes if self.head is None else self.head.out_features
        sizes = {name: len(split) for name, split in self.splits.items()}
        for name, of in self.parts.items():
            inside = torch.isin(self.splits["id/test"].labels, torch.tensor(of))
            sizes[name] = int(inside.sum())
        sizes |= {name: sum(sizes[one] for one in of) for name, of in self.unions.items()}
        return {name: (size, width) for name, size in sizes.items()}

    def predict(
        self, classifier: ImageClassifier, bench: Bench, *, batch_size: int, workers: int
    ) -> dict[str, Predictions]:
        """What `classifier`, or its tower with the unit's own head, says of each split.

        Raises as `carft_core.evaluate.predict` does.
        """
        if self.head is not None:
            classifier = ImageClassifier(classifier.visual, self.head)
        predicted = {
            name: predict(
                classifier,
                split,
                name,
                transform=bench.transform,
                device=bench.device,
                precision=bench.precision,
                batch_size=batch_size,
                workers=workers,
            )
            for name, split in self.splits.items()
        }
        parts = {
            name: part(predicted["id/test"], name, classes) for name, classes in self.parts.items()
        }
        unions = {
            name: together([predicted[one] for one in of], name) for name, of in self.unions.items()
        }
        return predicted | parts | unions


def units_of(bench: Bench, others: Sequence[OtherTask]) -> list[Unit]:
    """All that a finished run is measured on; splits that share a union are in one unit."""
    splits, unions = bench.evaluated_splits(), bench.unions()
    groups = [{name} for name in splits]
    for of in unions.values():
        joined = [group for group in groups if group & {*of}]
        groups = [group for group in groups if not group & {*of}] + [set().union(*joined)]
    return [
        *(
            Unit(
                {name: split for name, split in splits.items() if name in group},
                parts=bench.test_parts() if "id/test" in group else {},
                unions={name: of for name, of in unions.items() if group & {*of}},
            )
            for group in groups
        ),
        *(Unit({other.name: other.test}, head=other.head) for other in others),
    ]


def names_of(bench: Bench, others: Sequence[OtherTask]) -> tuple[str, ...]:
    """The metric names of all that the units predict, in the order in which they are told."""
    return (
        *(*bench.evaluated_splits(), *bench.test_parts(), *bench.unions()),
        *(other.name for other in others),
    )


LIMIT = 2_000_000_000
"""Bytes of predictions that stay in memory between the runs of a process."""

_Key = tuple[frozenset[str], nn.Linear | None, int]


@dataclass
class _Known:
    top1: Mapping[str, float]
    predictions: Mapping[str, Predictions] | None = None

    @property
    def bytes(self) -> int:
        return _bytes(self.predictions or {})


class ZeroShotStore:
    """Predictions by bench and unit: made once while they fit, anew for each model beyond that.

    What is kept goes with its bench, or when another bench needs the room. Within a bench it
    stays: its units are asked for in a circle, where to drop the oldest would be to drop each
    before it is asked for again.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._known: WeakKeyDictionary[Bench, dict[_Key, _Known]] = WeakKeyDictionary()

    def top1(self, unit: Unit, bench: Bench, *, batch_size: int, workers: int) -> dict[str, float]:
        """By metric name; known from the first time on, whether or not predictions are kept."""
        known = self._of(bench).get(_key(unit, batch_size))
        if known is None:
            self.predictions(unit, bench, batch_size=batch_size, workers=workers)
            known = self._of(bench)[_key(unit, batch_size)]
        return dict(known.top1)

    def predictions(
        self, unit: Unit, bench: Bench, *, batch_size: int, workers: int
    ) -> Mapping[str, Predictions]:
        """By metric name, as `Unit.predict` gives them for the teacher's classifier."""
        key = _key(unit, batch_size)
        known = self._of(bench).get(key)
        if known is not None and known.predictions is not None:
            return known.predictions
        made = unit.predict(bench.teacher.classifier, bench, batch_size=batch_size, workers=workers)
        if known is None:
            known = _Known({name: top1(item.logits, item.labels) for name, item in made.items()})
            self._of(bench)[key] = known
        if self._makes_room(bench, _bytes(made)):
            known.predictions = made
        return made

    def _of(self, bench: Bench) -> dict[_Key, _Known]:
        return self._known.setdefault(bench, {})

    def _makes_room(self, bench: Bench, wanted: int) -> bool:
        """Whether so many bytes of `bench` fit, other benches' predictions aside."""
        own = sum(known.bytes for known in self._of(bench).values())
        if own + wanted > self.limit:
            return False
        others = [of for one, of in self._known.items() if one is not bench]
        held = sum(known.bytes for of in others for known in of.values())
        if own + held + wanted > self.limit:
            for of in others:
                for known in of.values():
                    known.predictions = None
        return True


def _key(unit: Unit, batch_size: int) -> _Key:
    return frozenset(unit.splits), unit.head, batch_size


def _bytes(predictions: Mapping[str, Predictions]) -> int:
    return sum(item.logits.nbytes + item.features.nbytes for item in predictions.values())


ZERO_SHOT = ZeroShotStore()
"""That of this process."""


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
        workers = resolve_workers(config.workers, bench.device)
        how = {"batch_size": config.eval.batch_size, "workers": workers}
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
