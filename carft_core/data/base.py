"""What a family of data sets is: one in-distribution set and its named shifts, declared as data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from carft_core.data.augmentation import Augmentation

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig


@dataclass(frozen=True)
class Transform:
    """What an image tower wants to see; it comes from the opened CLIP.

    `size` is the side of the square input in pixels; `mean` and `std` are per RGB channel, for
    pixels in [0, 1].
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    """How an evaluation view becomes square: `shortest` side resized and cropped, `squash`ed, or
    the `longest` side resized and filled up."""
    augmentation: Augmentation = field(default=Augmentation(), repr=False)
    """What training views draw, in a family that follows `data.augmentation`."""

    def normalise(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, S, S] in [0, 1] to what the tower was trained on."""
        mean = torch.tensor(self.mean, dtype=pixels.dtype, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, dtype=pixels.dtype, device=pixels.device).view(1, 3, 1, 1)
        return (pixels - mean) / std


class Split(ABC):
    """The images of one split, in a fixed order."""

    ids: tuple[str, ...]
    """One unique name per item."""
    units: tuple[str, ...]
    """What the bootstrap over images draws: the image, or in IconShift the drawing."""
    labels: Tensor
    """[N] int64, each an index into `FamilyData.class_names`."""
    classes: tuple[int, ...] | None = None
    """The classes that can occur here, when they are a subset; logits are restricted to them."""
    alike: Mapping[int, tuple[int, ...]] = MappingProxyType({})
    """One of `classes` -> all classes of the family that count as it here, itself among them; its
    logit is the greatest of theirs."""
    groups: tuple[str, ...] | None = None
    """What each item belongs to, such as its domain or region, where accuracy is also told by
    group: empty for an item of none; None where there are no groups."""

    def __len__(self) -> int:
        return len(self.ids)

    @abstractmethod
    def views(
        self, indices: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Normalised float32 images [B, 3, S, S] of the items at `indices`.

        With `seed` None the fixed evaluation view; otherwise the training view, a pure function
        of (seed, epoch, index) that depends neither on the batch nor on global random state.
        """


@dataclass(frozen=True)
class FamilyData:
    """An opened family."""

    class_names: tuple[str, ...]
    train: Split
    val: Split | None
    """None: carved from `train` (design: `data.val_fraction`, `data.split_seed`)."""
    test: Split | None
    """None: nothing in distribution is kept for the end, as in DomainBed; no `id/test` then."""
    shifts: Mapping[str, Split]
    digest: str
    """sha256 of the data's content, independent of where it lies."""
    training_digest: str | None = None
    """That of what decides the weights, where the family tells it from what is only measured;
    then another test set or shift trains nothing again."""
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Classes whose images of `test` are measured once more by themselves, among these classes
    alone: as `id/test_<name>`, which is in no mean."""
    extras: Mapping[str, Split] = field(default_factory=dict)
    """Splits that are measured as `ood/<name>` and are in no mean. `val` is one that was made for
    choosing, of other images than the shifts': selecting on `ood/val/...` looks at no test."""
    unions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Shifts and extras that are measured once more taken together, as `ood/<name>` by the new
    name; in no mean either."""
    uneven: str = ""
    """Why some classes of `train` may have no image in `val` or `test`, where the official splits
    are so; empty: each has some everywhere."""
    notes: tuple[str, ...] = ()
    """What people should know of the data as found, such as counts that are not the published."""
    skipped: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By split (`train`, `val`, `test`, `shifts/<name>`, `extras/<name>`): the ids that
    `data.bad_files: skip` left out, and what is wrong with each."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """By split, named as in `splits`: sha256 of that split alone, where the family tells it."""

    @property
    def digest_of_training(self) -> str:
        """What of the data a run's identity holds."""
        return self.training_digest or self.digest

    @property
    def splits(self) -> Mapping[str, Split]:
        """Those that there are: `train`, `val`, `test`, `shifts/<name>`, `extras/<name>`."""
        shifts = {f"shifts/{name}": split for name, split in self.shifts.items()}
        extras = {f"extras/{name}": split for name, split in self.extras.items()}
        named = {"train": self.train, "val": self.val, "test": self.test, **shifts, **extras}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def id_test(self) -> Split:
        """The in-distribution test. Raises ValueError where there is none."""
        if self.test is None:
            raise ValueError("nothing in distribution is kept for a test here")
        return self.test

    def measured(self) -> Mapping[str, Split]:
        """By metric name what a finished run is measured on: `id/test`, then `ood/<name>`."""
        test = {} if self.test is None else {"id/test": self.test}
        return test | {f"ood/{name}": it for name, it in {**self.shifts, **self.extras}.items()}


@dataclass(frozen=True)
class DataFolder:
    """A folder that a family reads below the data root, as its makers publish it."""

    names: tuple[str, ...]
    """Its paths below the root, of which one is there; the usual one first."""
    layout: str
    """What lies in it, such as `<wnid>/<image>`."""
    origin: str
    """Where to get it."""
    images: int
    """How many images of it the whole data set has."""


@dataclass(frozen=True)
class FoundSplit:
    """What lies there of one split, whether or not a run could use it."""

    folder: Path | None = None
    """Where; None where it is missing, or lies in no folder of its own."""
    is_there: bool = True
    images: int | None = None
    """None: nobody could look."""
    published: int | None = None
    """How many images its makers published."""
    classes: int | None = None
    """How many of its classes have an image."""
    expected_classes: int | None = None
    digest: str | None = None
    """sha256 of what is there, independent of where it lies."""
    problems: tuple[str, ...] = ()
    """Why a run refuses it."""

    @property
    def status(self) -> str:
        """`missing`, `wrong`, `unseen`, `differs` (in number from the published) or `ok`."""
        if not self.is_there:
            return "missing"
        if self.problems:
            return "wrong"
        if self.images is None:
            return "unseen"
        return "ok" if self.published in (None, self.images) else "differs"


@dataclass(frozen=True)
class Family:
    """The declaration of a family, as registered in `carft_core.data.FAMILIES`."""

    name: str
    summary: str
    open: Callable[[DataConfig], FamilyData]
    """Raises RequestError with one clear message when the data cannot be used as asked."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Trial config fields (dotted) that take these values when a sweep file leaves them out."""
    domains: tuple[str, ...] = ()
    """Words for the family's domains; contexts that name one of them are marked."""
    folders: Mapping[str, DataFolder] = field(default_factory=dict)
    """What it reads below the data root, by split: `train`, `test`, or a shift. Where there is
    any, `data.root` left out is CARFT_DATA."""
    shared_names: tuple[str, ...] = ()
    """Names that several of its classes have, as published: their prompts are the same."""
    metrics: tuple[str, ...] = ()
    """What its splits are measured by besides, of `carft_core.evaluate.FURTHER_METRICS`."""
    validated_by: str = "top1"
    """The metric of `id/val` by which the best epoch is known, where that is the result."""
    ranked_by: str = "top1"
    """The accuracy by which its benchmark ranks methods: what verdicts go by, `top1` or one of
    `metrics`."""
    look: Callable[[DataConfig], Mapping[str, FoundSplit]] | None = None
    """What is there of each split that is asked for, named as in `FamilyData.splits`, wrong or not.

    Raises RequestError where there is nothing to look at. None: only `open` knows."""
