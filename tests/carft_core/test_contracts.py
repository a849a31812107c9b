"""The laws that users call from their own tests find what breaks them, and say what must hold."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core import testing
from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm, Batch, Loss
from carft_sweep.carft_core.data import FAMILIES, Family, FamilyData, Source, Split
from carft_sweep.carft_core.data.base import DataConfig, Derived
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.merges import MERGES, Merge, MergePoint, State
from carft_sweep.carft_core.models.classifier import Classifier, ImageClassifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import BrokenContract, check_algorithm
from carft_sweep.carft_core.training.optim import Group, OptimConfig, decay_groups

pytestmark = pytest.mark.usefixtures("registries")


class Plain(Algorithm):
    name: ClassVar[str] = "plain"
    summary: ClassVar[str] = "Cross-entropy"

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        del teacher
        loss = batch.cross_entropy(model(batch.images))
        return loss, {"ce": loss}


class NeedsAField(Plain):
    weight: float


class NotFrozen(Plain):
    model_config = ConfigDict(frozen=False)
    weight: float = 1.0


class TakesAnything(Plain):
    model_config = ConfigDict(extra="ignore")


def broken(of: type[Algorithm | Merge], **own: Any) -> Any:
    return type("Broken", (of,), {"__module__": __name__, **own})


def by_loss(compute: Callable[[Any, Batch], Tensor], **own: Any) -> Any:
    def loss(_: Algorithm, model: nn.Module, batch: Batch, __: Teacher) -> Loss:
        loss = compute(model, batch)
        return loss, {"ce": loss}

    return broken(Plain, loss=loss, **own)


def entropy(model: Any, batch: Batch) -> Tensor:
    return batch.cross_entropy(model(batch.images))


def of_the_tower(_: Algorithm, model: Any, optim: OptimConfig) -> list[Group]:
    """The head is in no group."""
    return decay_groups(model.visual.named_parameters(), optim)


def moves_the_head(model: Any, batch: Batch) -> Tensor:
    with torch.no_grad():
        model.head.weight.mul_(1.01)
    return entropy(model, batch)


def trains_all(model: Any, batch: Batch) -> Tensor:
    return entropy(model.requires_grad_(True), batch)


def centred_in_parts(model: Any, batch: Batch) -> Tensor:
    """A contrast of the batch with itself, divided as it must not be."""

    def centred(images: Tensor) -> Tensor:
        logits: Tensor = model(images)
        return logits - logits.mean(dim=0)

    return batch.cross_entropy(batch.in_parts(centred, batch.images))


def on_two_devices(model: Any, batch: Batch) -> Tensor:
    losses = F.cross_entropy(model(batch.images), batch.labels, reduction="none")
    return (losses * torch.ones(len(losses))).mean()


class CountsOutsideItsState(Plain):
    """An average that is no buffer."""

    starts_at_zero_shot: ClassVar[bool] = False

    def build(self, teacher: Teacher) -> nn.Module:
        model = teacher.new_classifier()
        model.count = 0  # type: ignore[assignment]
        return model

    def after_step(self, model: Any, step: int, steps: int) -> None:
        del step, steps
        model.count += 1

    def classifier(self, model: Any, teacher: Teacher) -> Classifier:
        del teacher
        with torch.no_grad():
            model.head.weight.mul_(1 + model.count)
        return model


class Doubled(Classifier):
    """Features twice as long as CLIP's."""

    def __init__(self, inner: ImageClassifier) -> None:
        super().__init__()
        self.inner = inner

    def features(self, images: Tensor) -> Tensor:
        return 2 * self.inner.features(images)

    def logits(self, features: Tensor) -> Tensor:
        return self.inner.logits(features / 2)


def by_build(change: Callable[[ImageClassifier], object], **own: Any) -> Any:
    def build(_: Algorithm, teacher: Teacher) -> object:
        classifier = teacher.new_classifier()
        made = change(classifier)
        return made if isinstance(made, nn.Module) else classifier

    return broken(Plain, build=build, **own)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (NeedsAField, "every field must have a default.*weight"),
        (NotFrozen, "must be frozen, but weight"),
        (TakesAnything, "must refuse a field"),
        (broken(Plain, uses=frozenset({"depth"})), "uses may name .*not .'depth'"),
        (by_loss(lambda *of: entropy(*of) / 0), "loss must be finite"),
        (by_loss(lambda *of: 0 * entropy(*of)), "must reach some parameter of its groups"),
        (
            broken(Plain, build=lambda _, of: of.classifier.requires_grad_(True)),
            "teacher must stay",
        ),
        (by_loss(moves_the_head, groups=of_the_tower), "what is in no group must not move"),
        (by_loss(trains_all, groups=of_the_tower), "what is in no group must get no gradient"),
        (by_loss(on_two_devices), "aten.mul.* must be on one device"),
        (by_loss(lambda *of: entropy(*of) + random.random()), "same whenever"),
        (
            by_loss(lambda *of: len(of[1].labels) * entropy(*of)),
            "(loss|ce) must be a mean .*couples_items = True",
        ),
        (by_loss(centred_in_parts, couples_items=True), "in parts must have the whole one's loss"),
        (
            by_loss(lambda *of: entropy(*of) / (0 if torch.is_autocast_enabled("cpu") else 1)),
            "finite in bf16",
        ),
        (CountsOutsideItsState, "must be a parameter, buffer or submodule"),
        (
            by_build(lambda model: nn.init.zeros_(model.head.weight)),
            "must be the zero-shot one.*starts_at_zero_shot = False",
        ),
        (by_build(Doubled, keeps_shape=False), "must be of unit norm.*clip_features = False"),
        (
            by_build(lambda model: model.register_buffer("extra", torch.zeros(3))),
            "must have the teacher's tensors.*keeps_shape = False",
        ),
        (
            broken(Plain, classifier=lambda _, model, __: nn.Sequential(model)),
            "`classifier` gives a Classifier",
        ),
    ],
)
def test_an_algorithm_that_breaks_a_law_is_told_which(
    cls: type[Algorithm], words: str, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALGORITHMS, "plain", cls)
    monkeypatch.setitem(globals(), cls.__name__, cls)  # where pickle looks for it
    own = replace(teacher, classifier=copy.deepcopy(teacher.classifier))  # one of them spoils it
    with pytest.raises(BrokenContract, match=f"^plain: .*{words}"):
        check_algorithm(cls, own)


def test_what_keeps_all_laws_passes_once_it_is_registered(teacher: Teacher) -> None:
    candidates: list[tuple[Any, Any, Any]] = [
        (Plain, ALGORITHMS, partial(check_algorithm, teacher=teacher)),
        (Halfway, MERGES, testing.check_merge),
        (family(), FAMILIES, testing.check_family),
    ]
    for candidate, registry, check in candidates:
        with pytest.raises(BrokenContract, match=f"{candidate.name}: it must be registered"):
            check(candidate)
        registry.register(candidate)
        check(candidate)


class Halfway(Merge):
    name: ClassVar[str] = "halfway"
    summary: ClassVar[str] = "Half of both"

    def points(self) -> Sequence[MergePoint]:
        return (MergePoint("halfway@1", 1, {}),)

    def state(self, point: MergePoint, zero_shot: State, tuned: State) -> State:
        del point
        return {key: ((value + tuned[key]) / 2).to(value.dtype) for key, value in zero_shot.items()}


def other_classes(_: Merge, __: MergePoint, teacher: Teacher, ___: Classifier) -> Classifier:
    merged = teacher.new_classifier()
    merged.head = nn.Linear(merged.head.in_features, 7, bias=False)
    return merged


def in_place(_: Merge, __: MergePoint, ___: State, tuned: State) -> State:
    return {name: value.add_(1) for name, value in tuned.items()}


def labelled(*labels: str) -> Any:
    points = tuple(MergePoint(label, 1, {}) for label in labels)
    return broken(Halfway, points=lambda _: points)


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (labelled(), "must yield some model"),
        (labelled("halfway@1", "halfway@2"), "each step must be unique"),
        (labelled("soup@1"), "'soup@1' must begin"),
        (broken(Halfway, state=in_place), "leave the weights"),
        (broken(Halfway, model=other_classes), "a finite logit for each image and class"),
        (broken(Halfway, point_fields=frozenset({"alphas"})), "point_fields must be of its fields"),
    ],
)
def test_a_merge_that_breaks_a_law_is_told_which(
    cls: type[Merge], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MERGES, "halfway", cls)
    monkeypatch.setitem(globals(), cls.__name__, cls)
    with pytest.raises(BrokenContract, match=words):
        testing.check_merge(cls)


@dataclass(frozen=True)
class Squares(Source):
    """Grey squares, one brightness an item."""

    size: int = 32
    noise: bool = False
    evaluated_with: int = 0
    dtype: torch.dtype = torch.uint8

    def views(self, rows: Sequence[int], *, seed: int | None, epoch: int, **_: Any) -> Tensor:
        bright = torch.tensor(rows)
        if seed is None:
            bright += epoch * self.evaluated_with
        if self.noise:
            bright += torch.randint(200, ())
        return bright.to(self.dtype).view(-1, 1, 1, 1).expand(-1, 3, self.size, self.size)


def grey(name: str, count: int, **broken: Any) -> Split:
    views = {key: broken.pop(key) for key in Squares.__dataclass_fields__ if key in broken}
    split = Split(
        ids=tuple(f"{name}/{index}" for index in range(count)),
        labels=torch.arange(count) % 2,
        source=Squares(**views),
    )
    return replace(split, **({"units": broken["ids"]} if "ids" in broken else {}) | broken)


def family(
    names: Sequence[str] = ("a", "b"), *, claims: Mapping[str, Any] | None = None, **fields: Any
) -> Family:
    digest = fields.pop("digest", "a" * 64)
    train, val, test, shift = (
        fields.pop(name, grey(name, 4)) for name in ("train", "val", "test", "shift")
    )

    def open_grey(config: DataConfig) -> FamilyData:
        del config
        return FamilyData(tuple(names), train, val, test, {"x": shift}, digest, **fields)

    return Family("grey", "Grey squares", open_grey, **(claims or {}))


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (family(digest="abc"), "digest must be a sha256"),
        (family(names=("a", "a")), "each named once"),
        (family(test=grey("test", 4, units=("x",))), "test: as many ids as units"),
        (family(test=grey("test", 2, ids=("x", "x"))), "test: each id must be unique"),
        (family(shift=grey("s", 4, labels=torch.zeros(4))), "x: labels must be int64"),
        (family(shift=grey("s", 4, classes=(1,))), "x: labels must be indices"),
        (family(shift=grey("s", 4, alike={2: (0, 2)})), "x: alike must be of its classes"),
        (family(shift=grey("s", 4, alike={0: (1,)})), "x: a group of alike must hold"),
        (family(shift=grey("s", 4, alike={0: (0, 1), 1: (1,)})), "x: a group of alike"),
        (
            family(derived={"id/test_few": Derived(("id/test",), (2,))}),
            "id/test_few must be of some classes of id/test, each once",
        ),
        (family(extras={"x": grey("e", 4)}), "need different names"),
        (family(derived={"ood/x": Derived(("ood/x",))}), "need different names"),
        (family(derived={"ood/a": Derived(("ood/x", "ood/y"))}), "ood/a must be of splits that"),
        (family(derived={"ood/val": Derived(("ood/x",))}), "is called mean or val"),
        (family(own_means={"ood/c": ("ood/c-1",)}), "ood/c must be a mean of shifts"),
        (family(extras={"mean": grey("e", 4)}), "and no extra mean"),
        (family(uneven="rare", train=grey("t", 1)), r"train: no image of the classes \[1\]"),
        (family(test=grey("test", 4, groups=("sea",))), "test: a group for each item"),
        (family(claims={"metrics": ("f1",)}), "metrics must be of macro_f1, "),
        (family(claims={"validated_by": "macro_f1"}), "validated_by must be a metric"),
        (family(claims={"ranked_by": "nll"}), "ranked_by must be top1 or one of its metrics"),
        (family(test=grey("train", 4)), "test: units of another split"),
        (family(test=grey("test", 1)), r"test: no image of the classes \[1\]"),
        (family(train=grey("train", 4, size=16)), r"must be uint8 \[B, 3, 32, 32\]"),
        (family(train=grey("train", 4, noise=True)), "seed, epoch and index alone"),
        (family(test=grey("test", 4, evaluated_with=1)), "test: the evaluation view must be fixed"),
    ],
)
def test_a_family_that_breaks_a_law_is_told_which(broken: Family, words: str) -> None:
    FAMILIES.register(broken)
    # A process opens the data of one name once.
    config = DataConfig(family="grey", root=words)
    # What is cheap to see, opening the data says already.
    with pytest.raises((BrokenContract, RequestError), match=words):
        testing.check_family(broken, config)


@pytest.mark.parametrize(
    "allowed",
    [
        family(("a", "a"), claims={"shared_names": ("a",)}),
        family(uneven="rare animals", test=grey("test", 1), val=grey("val", 1)),
        family(extras={"val": grey("e", 4)}),
    ],
    ids=["a name that classes share", "classes that splits lack", "an extra validation set"],
)
def test_what_a_family_declares_is_allowed(allowed: Family, request: pytest.FixtureRequest) -> None:
    FAMILIES.register(allowed)
    testing.check_family(allowed, DataConfig(family="grey", root=request.node.name))
