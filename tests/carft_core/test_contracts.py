"""The laws that users call from their own tests find what breaks them, and say what must hold."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from pydantic import ConfigDict
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm, Batch, Loss
from carft_sweep.carft_core.data import FAMILIES, Family, FamilyData, Source, Split, Transform
from carft_sweep.carft_core.data.base import DataConfig, Derived
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.merges import MERGES, Merge, MergePoint, State
from carft_sweep.carft_core.models.classifier import Classifier, ImageClassifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import (
    BrokenContract,
    built_in_teacher,
    check_algorithm,
    check_family,
    check_merge,
)
from carft_sweep.carft_core.training.optim import Group, OptimConfig, decay_groups

pytestmark = pytest.mark.usefixtures("registries")


class Plain(Algorithm):
    """Cross-entropy."""

    name: ClassVar[str] = "plain"
    summary: ClassVar[str] = "Cross-entropy"

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """The cross-entropy alone."""
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


class UsesTheUnknown(Plain):
    uses: ClassVar[frozenset[str]] = frozenset({"depth"})


class Infinite(Plain):
    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        loss, logs = super().loss(model, batch, teacher)
        return loss / 0, logs


class TrainsNothing(Plain):
    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        del teacher
        loss = model(batch.images).sum() * 0
        return loss, {"ce": loss}


class TrainsTheTeacher(Plain):
    def build(self, teacher: Teacher) -> nn.Module:
        return teacher.classifier.requires_grad_(True)


class MovesWhatIsFrozen(Plain):
    """The head is in no group, and moves all the same."""

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        assert isinstance(model, ImageClassifier)
        return decay_groups(model.visual.named_parameters(), optim)

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        assert isinstance(model, ImageClassifier)
        with torch.no_grad():
            model.head.weight.mul_(1.01)
        return super().loss(model, batch, teacher)


class Thaws(MovesWhatIsFrozen):
    """The head is in no group, and gets a gradient all the same."""

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        assert isinstance(model, ImageClassifier)
        model.head.weight.requires_grad_(True)
        return Plain.loss(self, model, batch, teacher)


class Random(Plain):
    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        loss, logs = super().loss(model, batch, teacher)
        return loss + random.random(), logs


class SumOverTheBatch(Plain):
    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        del teacher
        loss = F.cross_entropy(model(batch.images), batch.labels, reduction="sum")
        return loss, {"ce": loss}


class CoupledInParts(Plain):
    """A contrast of the batch with itself, divided as it must not be."""

    couples_items: ClassVar[bool] = True

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        del teacher

        def centred(images: Tensor) -> Tensor:
            logits: Tensor = model(images)
            return logits - logits.mean(dim=0)

        loss = batch.cross_entropy(batch.in_parts(centred, batch.images))
        return loss, {"ce": loss}


class InfiniteInHalfPrecision(Plain):
    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        loss, logs = super().loss(model, batch, teacher)
        return loss / (0 if torch.is_autocast_enabled("cpu") else 1), logs


class CountsOutsideItsState(Plain):
    """An average that is no buffer."""

    starts_at_zero_shot: ClassVar[bool] = False

    def build(self, teacher: Teacher) -> nn.Module:
        model = teacher.new_classifier()
        model.count = 0  # type: ignore[assignment]
        return model

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        del step, steps
        model.count += 1  # type: ignore[operator, assignment]

    def classifier(self, model: nn.Module, teacher: Teacher) -> Classifier:
        del teacher
        assert isinstance(model, ImageClassifier)
        with torch.no_grad():
            model.head.weight.mul_(1 + int(model.count))  # type: ignore[arg-type]
        return model


class ForgetsTheDevice(Plain):
    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        del teacher
        losses = F.cross_entropy(model(batch.images), batch.labels, reduction="none")
        return (losses * torch.ones(len(losses))).mean(), {}


class StartsElsewhere(Plain):
    def build(self, teacher: Teacher) -> nn.Module:
        model = teacher.new_classifier()
        nn.init.zeros_(model.head.weight)
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


class OtherFeatures(Plain):
    keeps_shape: ClassVar[bool] = False

    def build(self, teacher: Teacher) -> nn.Module:
        return Doubled(teacher.new_classifier())


class OtherShape(Plain):
    def build(self, teacher: Teacher) -> nn.Module:
        model = teacher.new_classifier()
        model.register_buffer("extra", torch.zeros(3))
        return model


class NoClassifier(Plain):
    def classifier(self, model: nn.Module, teacher: Teacher) -> Classifier:
        del teacher
        return nn.Sequential(model)  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (NeedsAField, "every field must have a default.*weight"),
        (NotFrozen, "must be frozen, but weight"),
        (TakesAnything, "must refuse a field"),
        (UsesTheUnknown, "uses may name .*not .'depth'"),
        (Infinite, "loss must be finite"),
        (TrainsNothing, "must reach some parameter of its groups"),
        (TrainsTheTeacher, "teacher must stay"),
        (MovesWhatIsFrozen, "what is in no group must not move"),
        (Thaws, "what is in no group must get no gradient"),
        (ForgetsTheDevice, "aten.mul.* must be on one device"),
        (Random, "same whenever"),
        (SumOverTheBatch, "(loss|ce) must be a mean .*couples_items = True"),
        (CoupledInParts, "in parts must have the whole one's loss"),
        (InfiniteInHalfPrecision, "finite in bf16"),
        (CountsOutsideItsState, "must be a parameter, buffer or submodule"),
        (StartsElsewhere, "must be the zero-shot one.*starts_at_zero_shot = False"),
        (OtherFeatures, "must be of unit norm.*clip_features = False"),
        (OtherShape, "must have the teacher's tensors.*keeps_shape = False"),
        (NoClassifier, "`classifier` gives a Classifier"),
    ],
)
def test_an_algorithm_that_breaks_a_law_is_told_which(
    cls: type[Algorithm], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(ALGORITHMS, "plain", cls)
    with pytest.raises(BrokenContract, match=f"^plain: .*{words}"):
        check_algorithm(cls)
    if cls is TrainsTheTeacher:  # it spoils the teacher
        built_in_teacher.cache_clear()


def test_an_algorithm_keeps_all_laws_once_it_is_registered() -> None:
    with pytest.raises(BrokenContract, match="plain: it must be registered"):
        check_algorithm(Plain)
    ALGORITHMS.register(Plain)
    check_algorithm(Plain)


class Halfway(Merge):
    """Half of both."""

    name: ClassVar[str] = "halfway"
    summary: ClassVar[str] = "Half of both"

    def points(self) -> Sequence[MergePoint]:
        return (MergePoint("halfway@1", 1, {}),)

    def state(self, point: MergePoint, zero_shot: State, tuned: State) -> State:
        del point
        return {
            name: ((value + tuned[name]) / 2).to(value.dtype) for name, value in zero_shot.items()
        }


class Nothing(Halfway):
    def points(self) -> Sequence[MergePoint]:
        return ()


class TwoAlike(Halfway):
    def points(self) -> Sequence[MergePoint]:
        return (*super().points(), MergePoint("halfway@2", 1, {}))


class OtherLabels(Halfway):
    def points(self) -> Sequence[MergePoint]:
        return (MergePoint("soup@1", 1, {}),)


class OtherClasses(Halfway):
    """Logits of other classes than the task's."""

    def model(self, point: MergePoint, teacher: Teacher, tuned: Classifier) -> Classifier:
        del point, tuned
        merged = teacher.new_classifier()
        merged.head = nn.Linear(merged.head.in_features, 7, bias=False)
        return merged


class LabelledLikeAFolder(Halfway):
    def points(self) -> Sequence[MergePoint]:
        return (MergePoint("halfway@a/b", 1, {}),)


class StrangePointFields(Halfway):
    point_fields: ClassVar[frozenset[str]] = frozenset({"alphas"})


class InPlace(Halfway):
    def state(self, point: MergePoint, zero_shot: State, tuned: State) -> State:
        del point, zero_shot
        return {name: value.add_(1) for name, value in tuned.items()}


def test_a_label_that_is_no_name_of_a_folder_is_refused_where_it_is_made() -> None:
    with pytest.raises(RequestError, match="'halfway@a/b' is no label of a merged model"):
        LabelledLikeAFolder().points()


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (Nothing, "must yield some model"),
        (TwoAlike, "each step must be unique"),
        (OtherLabels, "'soup@1' must begin"),
        (InPlace, "leave the weights"),
        (OtherClasses, "a finite logit for each image and class"),
        (StrangePointFields, "point_fields must be of its fields"),
    ],
)
def test_a_merge_that_breaks_a_law_is_told_which(
    cls: type[Merge], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MERGES, "halfway", cls)
    with pytest.raises(BrokenContract, match=words):
        check_merge(cls)


def test_a_merge_keeps_all_laws_once_it_is_registered() -> None:
    with pytest.raises(BrokenContract, match="halfway: it must be registered"):
        check_merge(Halfway)
    MERGES.register(Halfway)
    check_merge(Halfway)


@dataclass(frozen=True)
class Squares(Source):
    """Grey squares, one brightness an item."""

    size: int = 32
    noise: bool = False
    evaluated_with: int = 0
    dtype: torch.dtype = torch.uint8

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        del transform
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
    digest: str = "a" * 64,
    names: Sequence[str] = ("a", "b"),
    shared_names: tuple[str, ...] = (),
    measured: Mapping[str, Any] | None = None,
    told: Mapping[str, Any] | None = None,
    **splits: Split,
) -> Family:
    """A family of grey squares, some of whose splits are others."""

    def opened(config: DataConfig) -> FamilyData:
        del config
        kept = {name: grey(name, 4) for name in ("train", "val", "test", "shift")} | splits
        return FamilyData(
            tuple(names),
            kept["train"],
            kept["val"],
            kept["test"],
            {"x": kept["shift"]},
            digest,
            **(measured or {}),
        )

    return Family("grey", "Grey squares", opened, shared_names=shared_names, **(told or {}))


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
            family(measured={"derived": {"id/test_few": Derived(("id/test",), (2,))}}),
            "id/test_few must be of some classes of id/test, each once",
        ),
        (family(measured={"extras": {"x": grey("e", 4)}}), "need different names"),
        (family(measured={"derived": {"ood/x": Derived(("ood/x",))}}), "need different names"),
        (
            family(measured={"derived": {"ood/all": Derived(("ood/x", "ood/y"))}}),
            "ood/all must be of splits that are measured",
        ),
        (family(measured={"derived": {"ood/val": Derived(("ood/x",))}}), "is called mean or val"),
        (family(measured={"own_means": {"ood/c": ("ood/c-1",)}}), "ood/c must be a mean of shifts"),
        (family(measured={"extras": {"mean": grey("e", 4)}}), "and no extra mean"),
        (
            family(measured={"uneven": "rare"}, train=grey("t", 1)),
            r"train: no image of the classes \[1\]",
        ),
        (family(test=grey("test", 4, groups=("sea",))), "test: a group for each item"),
        (family(told={"metrics": ("f1",)}), "metrics must be of macro_f1, "),
        (family(told={"validated_by": "macro_f1"}), "validated_by must be a metric"),
        (family(told={"ranked_by": "nll"}), "ranked_by must be top1 or one of its metrics"),
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
        check_family(broken, config)


def test_a_family_keeps_all_laws_once_it_is_registered() -> None:
    good = family()
    with pytest.raises(BrokenContract, match="grey: it must be registered"):
        check_family(good)
    FAMILIES.register(good)
    check_family(good)


def test_classes_may_share_a_name_that_the_family_declares() -> None:
    shared = family(names=("a", "a"), shared_names=("a",))
    FAMILIES.register(shared)
    check_family(shared, DataConfig(family="grey", root="shared"))


def test_official_splits_may_lack_classes_where_the_family_says_why() -> None:
    uneven = family(measured={"uneven": "rare animals"}, test=grey("test", 1), val=grey("val", 1))
    FAMILIES.register(uneven)
    check_family(uneven, DataConfig(family="grey", root="uneven"))


def test_an_extra_may_be_a_validation_set() -> None:
    extra = family(measured={"extras": {"val": grey("e", 4)}})
    FAMILIES.register(extra)
    check_family(extra, DataConfig(family="grey", root="extra"))
