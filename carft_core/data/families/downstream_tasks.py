"""The ten downstream tasks: which torchvision data set each is, where it lies, how it is split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from carft_sweep.carft_core.data.base import DataFolder
from carft_sweep.carft_core.data.class_names import MOST_NAMES, class_list
from carft_sweep.carft_core.files import read_regular

Classes = Mapping[str, str]
"""The path below the data root of each image -> its class's name in the data set."""
PER_CLASS = 30
"""Images of a class of Caltech-101 that train, as in CLIP's paper; all others test."""
BATCH_SIZE = 128
"""Images of a batch. Source: LDIFS, `args.py`; 512 would be a quarter of Flowers102's train."""

Arguments = Mapping[str, object]


def by_number(folder: Path, classes: Classes) -> tuple[Classes, Classes]:
    """Split images of classes into (train, test): train has the 30 images of each class whose paths
    have the least hashes, without a seed."""
    del folder
    by_class: dict[str, list[str]] = {}
    for path in sorted(classes, key=lambda path: hashlib.sha256(path.encode()).digest()):
        by_class.setdefault(classes[path], []).append(path)
    drawn = {path for paths in by_class.values() for path in paths[:PER_CLASS]}
    return (
        {path: name for path, name in classes.items() if path in drawn},
        {path: name for path, name in classes.items() if path not in drawn},
    )


def by_lists(folder: Path, classes: Classes) -> tuple[Classes, Classes]:
    """Split SUN397's images of classes into (train, test) by the first of its ten official
    partitions. The lists name images as `/a/abbey/sun_aaa.jpg`. Missing images are found later, by
    their number. Raises OSError when a list cannot be read."""
    train, test = (
        [f"{folder.name}{line}" for line in _lines(folder / file)]
        for file in ("Training_01.txt", "Testing_01.txt")
    )
    return (
        {path: classes[path] for path in train if path in classes},
        {path: classes[path] for path in test if path in classes},
    )


def _lines(file: Path) -> list[str]:
    return read_regular(file, MOST_NAMES).decode(errors="replace").split()


@dataclass(frozen=True)
class Task:
    """A downstream task. Class names, their order and templates are CLIP's."""

    name: str
    """The name of the family, of its list of classes and of its template set."""
    title: str
    dataset: str
    """The name of the data set's class in `torchvision.datasets`."""
    folder: str
    """Where torchvision looks for it below the data root."""
    needs: tuple[str, ...]
    """Files and folders below `folder` that are looked for first, to name all that are missing."""
    origin: str
    train_images: int
    test_images: int
    train: tuple[Arguments, ...] = field(default=({"split": "train"},))
    """What the data set is opened with, once for each official split that is joined to train."""
    test: Arguments = field(default_factory=lambda: {"split": "test"})
    divide: Callable[[Path, Classes], tuple[Classes, Classes]] | None = None
    """Returns (train, test) of a folder and all its images, where torchvision knows no split."""
    contexts: str | None = None
    """The default contexts, where the task's own set is a single template: with one context all
    images have the same context distribution, and CAR-FT holds nothing."""
    per_class: bool = False
    """Whether papers report the mean over classes of their accuracies."""

    @property
    def folders(self) -> Mapping[str, DataFolder]:
        """The folders that the family reads below the data root, by split."""
        images = {"train": self.train_images, "test": self.test_images}
        layout = ", ".join(self.needs)
        return {
            split: DataFolder((self.folder,), layout, self.origin, count)
            for split, count in images.items()
        }

    def classes(self) -> Mapping[str, str]:
        """Return CLIP's name of each class, by its name in the data set, in CLIP's order."""
        lines = class_list(f"downstream/{self.name}")
        return {line.split("\t")[0]: line.split("\t")[-1] for line in lines}


def _cifar(name: str, title: str, dataset: str, folder: str, files: tuple[str, ...]) -> Task:
    return Task(
        name=name,
        title=title,
        dataset=dataset,
        folder=folder,
        needs=files,
        origin="https://www.cs.toronto.edu/~kriz/cifar.html",
        train=({"train": True},),
        test={"train": False},
        train_images=50_000,
        test_images=10_000,
    )


_ALL = (
    _cifar(
        "cifar10",
        "CIFAR-10",
        "CIFAR10",
        "cifar-10-batches-py",
        (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"),
    ),
    _cifar("cifar100", "CIFAR-100", "CIFAR100", "cifar-100-python", ("train", "test", "meta")),
    Task(
        name="caltech101",
        title="Caltech-101",
        dataset="Caltech101",
        folder="caltech101",
        needs=("101_ObjectCategories/BACKGROUND_Google",),
        origin="https://data.caltech.edu/records/mzrjq-6wc02",
        divide=by_number,
        train_images=3_030,
        test_images=5_647,
        per_class=True,
    ),
    Task(
        name="flowers102",
        title="Oxford Flowers-102",
        dataset="Flowers102",
        folder="flowers-102",
        needs=("jpg", "imagelabels.mat", "setid.mat"),
        origin="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        train=({"split": "train"}, {"split": "val"}),
        train_images=2_040,
        test_images=6_149,
        contexts="openai",
        per_class=True,
    ),
    Task(
        name="food101",
        title="Food-101",
        dataset="Food101",
        folder="food-101",
        needs=("images", "meta/train.json", "meta/test.json"),
        origin="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        train_images=75_750,
        test_images=25_250,
        contexts="openai",
    ),
    Task(
        name="stanford_cars",
        title="Stanford Cars",
        dataset="StanfordCars",
        folder="stanford_cars",
        needs=(
            *("cars_train", "cars_test", "devkit/cars_meta.mat", "devkit/cars_train_annos.mat"),
            "cars_test_annos_withlabels.mat",
        ),
        origin="copies, since its own page is gone (https://github.com/pytorch/vision/issues/7545)",
        train_images=8_144,
        test_images=8_041,
    ),
    Task(
        name="sun397",
        title="SUN397",
        dataset="SUN397",
        folder="SUN397",
        needs=("ClassName.txt", "Training_01.txt", "Testing_01.txt"),
        origin="https://vision.princeton.edu/projects/2010/SUN/, the two lists from the "
        "Partitions.zip there",
        divide=by_lists,
        train_images=19_850,
        test_images=19_850,
    ),
    Task(
        name="dtd",
        title="Describable Textures",
        dataset="DTD",
        folder="dtd",
        needs=("dtd/images", *(f"dtd/labels/{split}1.txt" for split in ("train", "val", "test"))),
        origin="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        train=({"split": "train"}, {"split": "val"}),
        train_images=3_760,
        test_images=1_880,
    ),
    Task(
        name="oxford_pets",
        title="Oxford-IIIT Pets",
        dataset="OxfordIIITPet",
        folder="oxford-iiit-pet",
        needs=("images", "annotations/trainval.txt", "annotations/test.txt"),
        origin="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        train=({"split": "trainval"},),
        train_images=3_680,
        test_images=3_669,
        contexts="openai",
        per_class=True,
    ),
    Task(
        name="fgvc_aircraft",
        title="FGVC Aircraft",
        dataset="FGVCAircraft",
        folder="fgvc-aircraft-2013b",
        needs=(
            *("data/images", "data/variants.txt"),
            *(f"data/images_variant_{split}.txt" for split in ("trainval", "test")),
        ),
        origin="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        train=({"split": "trainval"},),
        train_images=6_667,
        test_images=3_333,
        per_class=True,
    ),
)
TASKS: Mapping[str, Task] = MappingProxyType({task.name: task for task in _ALL})
"""Splits and counts: table 9 of CLIP's paper (Radford et al. 2021), whose Caltech-101 has one more
class, of images that are in no other class. Metrics: the same table, and datacomp's
`tasklist.yml`."""
