"""What a family of data sets is: one in-distribution set and its named shifts."""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from PIL import Image
from pydantic import AfterValidator, Field, model_validator
from torch import Tensor

from carft_sweep.carft_core.config.fields import (
    Fraction,
    OpenFraction,
    PositiveInt,
    Section,
    ShiftName,
    each_once,
)
from carft_sweep.carft_core.data.images import state_of
from carft_sweep.carft_core.data.transforms import (
    AUGMENTATIONS,
    Transform,
    evaluation_view,
    training_view,
)
from carft_sweep.carft_core.errors import RequestError, unknown

T = TypeVar("T")
_CACHES: list[functools._lru_cache_wrapper[Any]] = []


def cache_open(most: int) -> Callable[[Callable[..., T]], functools._lru_cache_wrapper[T]]:
    """Return a decorator that caches a function's `most` recent results, until `forget_data`."""

    def keep(opener: Callable[..., T]) -> functools._lru_cache_wrapper[T]:
        cached = functools.lru_cache(most)(opener)
        _CACHES.append(cached)
        return cached

    return keep


def forget_data() -> None:
    """Forget all opened data, so that the next call reads files that may have changed."""
    for cached in _CACHES:
        cached.cache_clear()


def _augmentation(value: str) -> str:
    if value not in AUGMENTATIONS:
        raise ValueError(unknown("augmentation", value, AUGMENTATIONS))
    return value


AugmentationName = Annotated[
    str, AfterValidator(_augmentation), Field(json_schema_extra={"enum": list(AUGMENTATIONS)})
]


class DataConfig(Section):
    """Which family of data sets, where it lies, how much of it trains, and in which views."""

    family: str = "icon_shift"
    """A family's name, or a family file, relative to the sweep file."""
    root: str | None = None
    """Where the data are; left out, the family file's folder, or `CARFT_DATA`."""
    train_fraction: Fraction = 1.0
    """The fraction of train that is trained on."""
    shots: PositiveInt | None = None
    """So many images of each class train, instead of a fraction."""
    val_fraction: OpenFraction = 0.1
    """The part of train that is carved off where the family has no `val`."""
    split_seed: Annotated[int, Field(ge=0)] | Literal["seed"] = 0
    """The seed by which splits are drawn; `seed`: each run's own, as DomainBed's trial seed."""
    test_domain: str | None = None
    """The domain that is held out of training and measured; required in families of domains."""
    balanced: bool = False
    """Whether a batch has `optim.batch_size` images of each training domain; DomainBed's sets say
    true."""
    shifts: Annotated[tuple[ShiftName, ...] | None, AfterValidator(each_once)] = None
    """The shifts that are measured, maybe none; left out, the family's choice. `c-fog` stands for
    every shift that begins with `c-fog-`."""

    augmentation: AugmentationName | None = None
    """How training images are augmented, by name; left out, the family's default. Some families
    make training views of their own, and take none."""
    bad_files: Literal["refuse", "skip"] = "refuse"
    """What happens to images that cannot be read; `skip` looks for them before anything begins."""

    @model_validator(mode="after")
    def _shots_or_a_fraction(self) -> Self:
        if self.shots is not None and self.train_fraction != 1:
            raise ValueError("give shots or train_fraction, not both")
        return self

    @property
    def split_number(self) -> int:
        """The seed of the split. Raises ValueError before `for_seed` has replaced it."""
        if self.split_seed == "seed":
            raise ValueError("data.split_seed: seed stands for that of a run; see for_seed")
        return self.split_seed


class Source:
    """Where the images of a split come from, by row; it goes to worker processes by fork or pickle,
    so what it holds of a million images is one array.

    Implement `read`, whose images are then transformed as photographs are, or `views` itself.
    """

    decodes: ClassVar[bool] = False
    """Whether `read` decodes a file, which takes so long that views are worth keeping."""

    @functools.cached_property
    def state(self) -> str:
        """Text that changes when a file that images are read from is replaced, so that views stored
        of the old files are not used. Empty for a source without files."""
        return ""

    def read(self, row: int) -> Image.Image:
        """Return the RGB image of a row. Raises RequestError that names a broken image."""
        raise NotImplementedError

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Return the images that `Split.views` returns, for rows of the whole split."""
        views = torch.empty(len(rows), 3, transform.size, transform.size, dtype=torch.uint8)
        for view, row in zip(views, rows, strict=True):
            image = self.read(row)
            if seed is None:
                view.copy_(evaluation_view(image, transform))
            else:
                view.copy_(training_view(image, transform, seed=seed, epoch=epoch, index=row))
        return views


@dataclass(frozen=True, eq=False)
class Files(Source):
    """A source of image files below a folder."""

    decodes: ClassVar[bool] = True

    root: Path
    paths: pa.Array
    """Paths below `root`, by row; in Arrow, so that forked workers share the memory."""
    decode: Callable[[Path], Image.Image]
    """Reads a file: a module's function, such as `read_rgb`. Raises RequestError naming the
    file."""

    @functools.cached_property
    def state(self) -> str:
        """Digest of the sizes and times of all files, taken when first read."""
        return state_of([self.root / path for path in self.paths.to_pylist()])

    def read(self, row: int) -> Image.Image:
        """Return the decoded image of a row."""
        return self.decode(self.root / self.paths[row].as_py())


@dataclass(frozen=True, eq=False)
class Arrays(Source):
    """A source of images in memory: one array [N, H, W, 3] uint8 RGB."""

    pixels: NDArray[np.uint8]

    def read(self, row: int) -> Image.Image:
        """Return the image of a row."""
        return Image.fromarray(self.pixels[row])


@dataclass(frozen=True, eq=False)
class Split:
    """The images of one split, in a fixed order: what they are, and where their views come from."""

    ids: tuple[str, ...]
    """One unique name per item."""
    labels: Tensor
    """[N] int64, each an index into `FamilyData.class_names`."""
    source: Source
    units: tuple[str, ...] = ()
    """[N] the name of each item's unit; intervals over images count the items of a unit as one.
    Left out, each item is a unit; in IconShift a drawing is."""
    classes: tuple[int, ...] | None = None
    """The classes that can occur in the split, to which logits are restricted; None: all."""
    alike: Mapping[int, tuple[int, ...]] = field(default_factory=dict)
    """Class -> all classes of the family that count as this class in the split, itself among them;
    the logit of the class is the greatest of theirs."""
    groups: tuple[str, ...] | None = None
    """[N] names of the items' groups (such as domain or region), by which accuracy is measured too:
    empty for an item without a group; None where the split has no groups."""
    whole: Split | None = field(default=None, repr=False)
    """The split of which this is a part; None where it is whole."""
    rows: NDArray[np.int64] | None = field(default=None, repr=False)
    """[N] row of each item in `whole`, which decides its view; None where the split is whole."""

    def __post_init__(self) -> None:
        if not self.units:
            object.__setattr__(self, "units", self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def domains(self) -> Tensor | None:
        """[N] int64: the number of each item's group, in the order in which groups occur; None
        without groups."""
        if self.groups is None:
            return None
        numbers = {name: number for number, name in enumerate(dict.fromkeys(self.groups))}
        return torch.tensor([numbers[name] for name in self.groups], dtype=torch.int64)

    @functools.cached_property
    def digest_of_ids(self) -> str:
        """The sha256 of the ids in their order."""
        return hashlib.sha256("\0".join(self.ids).encode()).hexdigest()

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Return images [B, 3, S, S] uint8 of the items at `rows`, which `Transform.normalise`
        makes a tower's input.

        With `seed` None the fixed evaluation view; otherwise the training view, a pure function of
        (seed, epoch, row) that depends neither on the batch nor on global random state. Raises
        RequestError that names a broken image.
        """
        if self.rows is not None:
            rows = self.rows[np.asarray(rows, dtype=np.int64)].tolist()
        return self.source.views(rows, transform=transform, seed=seed, epoch=epoch)

    def subset(self, rows: Sequence[int] | NDArray[np.int64]) -> Split:
        """Return the items at `rows`, in that order. An item keeps the view that it has in the
        whole split, so an image looks the same whatever part of the data trains."""
        places = np.asarray(rows, dtype=np.int64)
        chosen = places.tolist()
        return replace(
            self,
            ids=tuple(self.ids[row] for row in chosen),
            units=tuple(self.units[row] for row in chosen),
            labels=self.labels[torch.from_numpy(places)],
            groups=None if self.groups is None else tuple(self.groups[row] for row in chosen),
            whole=self.whole or self,
            rows=places if self.rows is None else self.rows[places],
        )


@dataclass(frozen=True)
class Derived:
    """A set measured from existing predictions: some classes of a split, or splits joined."""

    of: tuple[str, ...]
    """Metric names of splits, whose items follow one another in this order."""
    classes: tuple[int, ...] | None = None
    """Only items of these classes count, and predictions among these classes; None: all."""


@dataclass(frozen=True)
class FamilyData:
    """The data of an opened family: its classes, splits and digests."""

    class_names: tuple[str, ...]
    train: Split
    val: Split | None
    """None: to be carved from `train`, by `data.val_fraction` and `data.split_seed`."""
    test: Split | None
    """None: nothing in distribution is kept for the end, as in DomainBed; no `id/test` then."""
    shifts: Mapping[str, Split]
    digest: str
    """sha256 of the data's content, independent of where it lies."""
    training_digest: str | None = None
    """sha256 of the data that decide the weights, where the family tells them from data that are
    only measured; then another test set or shift makes no run train again."""
    has_fixed_splits: bool = False
    """Whether `data.split_seed` has drawn none of the splits, so that another one makes no other
    run."""
    extras: Mapping[str, Split] = field(default_factory=dict)
    """Splits that are measured as `ood/<name>` whatever `data.shifts` says, and are in no mean. The
    extra `val` is an OOD validation set, of other images than the shifts': selecting on
    `ood/val/...` looks at no test."""
    derived: Mapping[str, Derived] = field(default_factory=dict)
    """Derived sets by metric name, `id/test_<name>` or `ood/<name>`; they are in no mean."""
    own_means: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Metric name `ood/<name>` -> metric names of the shifts of which it is the unweighted mean,
    such as a set of corruptions. These shifts are not in `ood/mean`."""
    uneven: str = ""
    """Why some classes of `train` may have no image in `val` or `test`, where the official splits
    are so; empty: each has some everywhere."""
    notes: tuple[str, ...] = ()
    """What readers should know of the data, such as other numbers of images than published."""
    skipped: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By split (`train`, `val`, `test`, `shifts/<name>`, `extras/<name>`): the ids that
    `data.bad_files: skip` left out, and what is wrong with each."""
    digests: Mapping[str, str] = field(default_factory=dict)
    """By split, named as in `splits`: sha256 of that split alone, where the family tells it."""

    @property
    def digest_of_training(self) -> str:
        """The digest of the data that enters a run's identity."""
        return self.training_digest or self.digest

    @property
    def splits(self) -> Mapping[str, Split]:
        """The existing splits: `train`, `val`, `test`, `shifts/<name>`, `extras/<name>`."""
        shifts = {f"shifts/{name}": split for name, split in self.shifts.items()}
        extras = {f"extras/{name}": split for name, split in self.extras.items()}
        named = {"train": self.train, "val": self.val, "test": self.test, **shifts, **extras}
        return {name: split for name, split in named.items() if split is not None}

    @property
    def id_val(self) -> Split:
        """Return the in-distribution validation split, on which settings are chosen. Raises
        ValueError where the data was opened without carving one."""
        if self.val is None:
            raise ValueError("the data was opened without carving its validation split")
        return self.val

    @property
    def id_test(self) -> Split:
        """Return the in-distribution test split. Raises ValueError for data without one."""
        if self.test is None:
            raise ValueError("nothing in distribution is kept for a test here")
        return self.test

    @property
    def outside_mean(self) -> frozenset[str]:
        """The metric names out of distribution that do not count in `ood/mean`."""
        extras = {f"ood/{name}" for name in self.extras}
        derived = {name for name in self.derived if name.startswith("ood/")}
        return frozenset(extras | derived).union(self.own_means, *self.own_means.values())

    def measured(self) -> Mapping[str, Split]:
        """Return the splits that a finished run predicts, by name: `id/test`, `ood/<name>`."""
        test = {} if self.test is None else {"id/test": self.test}
        return test | {
            f"ood/{name}": split for name, split in {**self.shifts, **self.extras}.items()
        }


@dataclass(frozen=True)
class DataFolder:
    """A folder that a family reads below the data root, as its makers publish it."""

    names: tuple[str, ...]
    """The paths below the root at which it may lie, the usual one first."""
    layout: str
    """What lies in it, such as `<wnid>/<image>`."""
    origin: str
    """The address from which to get it."""
    images: int
    """How many images it holds as published."""
    classes: tuple[str, ...] = ()
    """The class folders that it must have; empty: its images do not lie in class folders."""
    has_others: bool = False
    """Whether other folders may lie beside the class folders; they are left out."""
    advice: str = ""
    """What to do about images that lie outside of class folders."""


@dataclass(frozen=True)
class Family:
    """The declaration of a family, as registered in `carft_core.data.FAMILIES`."""

    name: str
    summary: str
    open: Callable[[DataConfig], FamilyData]
    """Returns the data. Raises RequestError, with one message, when they cannot be used as
    asked."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Trial config fields (dotted) that take these values when a sweep file leaves them out."""
    domains: tuple[str, ...] = ()
    """Words for the family's domains; contexts that name one of them are marked."""
    folders: Mapping[str, DataFolder] = field(default_factory=dict)
    """The folders that it reads below the data root, by split (`train`, `test`, or a shift) or by
    domain. Where there are any, a `data.root` left out is CARFT_DATA."""
    shared_names: tuple[str, ...] = ()
    """Names that several of its classes have, as published: their prompts are the same."""
    metrics: tuple[str, ...] = ()
    """Further metrics of its splits, of `evaluation.measure.FURTHER_METRICS`."""
    validated_by: str = "top1"
    """The metric on `id/val` that picks the best epoch, for `keep.result: best_val`."""
    ranked_by: str = "top1"
    """The accuracy that its benchmark ranks methods by, and verdicts too: `top1` or one of
    `metrics`."""
    version: int = 1
    """Raised by hand when its images, labels or splits change on purpose; a digest says whether
    they did."""


def check_held_out(config: DataConfig, domains: Collection[str]) -> str:
    """Return `data.test_domain`. Raises RequestError unless it is one of `domains`."""
    if config.test_domain is None:
        raise RequestError(
            f"data.test_domain: which domain is held out? {config.family} has {', '.join(domains)}"
        )
    if config.test_domain not in domains:
        raise RequestError(f"data.test_domain: {unknown('domain', config.test_domain, domains)}")
    return config.test_domain


def refuse_held_out(config: DataConfig, instead: str) -> None:
    """Raise RequestError where `data.test_domain` is set for a family that holds no domain out."""
    if config.test_domain is not None:
        raise RequestError(
            f"data.test_domain: {config.family} has no domains to hold out; {instead}"
        )


SHIFT_NAME = re.compile(r"[A-Za-z0-9_.-]+")
RESERVED = ("mean", "val")
"""Names that no shift has: `ood/mean` is the mean over shifts, `ood/val` a validation set."""


def named_shifts(names: Sequence[str], allowed: Collection[str]) -> tuple[str, ...]:
    """Return the requested shifts in that order, each once; `c-fog` also stands for all of
    `c-fog-...`. Raises RequestError for a name that neither is nor begins one of `allowed`."""
    shifts: dict[str, None] = {}
    for name in names:
        matching = [shift for shift in allowed if shift == name or shift.startswith(f"{name}-")]
        if not matching:
            if len(allowed) > 20:  # many that begin alike become one
                allowed = list(dict.fromkeys(shift.partition("-")[0] for shift in allowed))
            raise RequestError(f"data.shifts: {unknown('shift', name, allowed)}")
        shifts |= dict.fromkeys(matching)
    return tuple(shifts)
