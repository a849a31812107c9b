"""The ten downstream data sets in their official layouts, with a few tiny pictures of each class.

`TRAIN` of a class train and one tests, but of Caltech-101, whose train has a fixed size.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat
from torchvision import datasets

from carft_sweep.carft_core.data.class_names import class_list
from carft_sweep.carft_core.data.families.downstream_tasks import TASKS
from tests.imagenet_tree import pictures

TRAIN = 3
KINDS = pictures()


def names(family: str) -> list[str]:
    lines = class_list(f"downstream/{family}")
    return [line.split("\t")[0] for line in lines]


def make(root: Path, family: str, patch: pytest.MonkeyPatch) -> Path:
    """Lay out one of them below `root`. torchvision takes its checksums, as long as `patch` does.

    Gives its folder.
    """
    folder = root / TASKS[family].folder
    folder.mkdir(parents=True)
    if family in ("cifar10", "cifar100"):
        _cifar(folder, family, patch)
    elif family == "flowers102":
        _flowers(folder, patch)
    else:
        _MAKERS[family](folder)
    return folder


def _fill(folder: Path, files: Iterable[str]) -> None:
    for number, file in enumerate(files):
        path = folder / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(KINDS[number % len(KINDS)])


def _write(file: Path, lines: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{line}\n" for line in lines))


def _cifar(folder: Path, family: str, patch: pytest.MonkeyPatch) -> None:
    dataset = datasets.CIFAR10 if family == "cifar10" else datasets.CIFAR100
    classes = names(family)
    key = "labels" if family == "cifar10" else "fine_labels"
    noise = np.random.default_rng(0)

    def batch(name: str, labels: list[int]) -> list[str]:
        pixels = noise.integers(0, 256, (len(labels), 3072), dtype=np.uint8)
        return [name, _pickled(folder / name, {"data": pixels, key: labels})]

    train = [label for label in range(len(classes)) for _ in range(TRAIN)]
    files = [name for name, _ in dataset.train_list]
    lists = [batch(name, train[place :: len(files)]) for place, name in enumerate(files)]
    patch.setattr(dataset, "train_list", lists)
    (test,) = [name for name, _ in dataset.test_list]
    patch.setattr(dataset, "test_list", [batch(test, [*range(len(classes))])])
    meta = dataset.meta
    md5 = _pickled(folder / meta["filename"], {meta["key"]: classes})
    patch.setattr(dataset, "meta", {**meta, "md5": md5})


def _pickled(file: Path, content: Mapping[str, object]) -> str:
    file.write_bytes(pickle.dumps(content))
    return _md5(file)


def _md5(file: Path) -> str:
    return hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest()


def _caltech(folder: Path) -> None:
    objects = folder / "101_ObjectCategories"
    _fill(objects, ["BACKGROUND_Google/image_0001.jpg"])
    _fill(objects, (f"{c}/image_{n:04d}.jpg" for c in names("caltech101") for n in range(1, 33)))


def _flowers(folder: Path, patch: pytest.MonkeyPatch) -> None:
    labels = [label for label in range(1, 103) for _ in range(TRAIN + 1)]
    numbers = np.arange(1, len(labels) + 1)
    _fill(folder, (f"jpg/image_{number:05d}.jpg" for number in numbers))
    savemat(folder / "imagelabels.mat", {"labels": np.array([labels], np.uint8)})
    place = (numbers - 1) % (TRAIN + 1)
    kinds = {"trnid": (place == 0) | (place == 1), "valid": place == 2, "tstid": place == 3}
    savemat(folder / "setid.mat", {name: [numbers[which]] for name, which in kinds.items()})
    known = datasets.Flowers102._file_dict
    ours = {
        key: (name, _md5(folder / name) if key != "image" else md5)
        for key, (name, md5) in known.items()
    }
    patch.setattr(datasets.Flowers102, "_file_dict", ours)


def _food(folder: Path) -> None:
    for split, numbers in (("train", range(TRAIN)), ("test", range(9, 10))):
        listed = {name: [f"{name}/{number}" for number in numbers] for name in names("food101")}
        (folder / "meta").mkdir(exist_ok=True)
        (folder / "meta" / f"{split}.json").write_text(json.dumps(listed))
        _fill(folder / "images", (f"{path}.jpg" for paths in listed.values() for path in paths))


def _cars(folder: Path) -> None:
    (folder / "devkit").mkdir()
    classes = names("stanford_cars")
    savemat(folder / "devkit/cars_meta.mat", {"class_names": np.array([classes], object)})
    for split, each, file in (
        ("train", TRAIN, "devkit/cars_train_annos.mat"),
        ("test", 1, "cars_test_annos_withlabels.mat"),
    ):
        rows = [(number, place + 1) for place in range(len(classes)) for number in range(each)]
        files = [f"{label:03d}_{number}.jpg" for number, label in rows]
        annotations = np.array(
            [(label, image) for (_, label), image in zip(rows, files, strict=True)],
            dtype=[("class", np.uint8), ("fname", object)],
        )
        savemat(folder / file, {"annotations": annotations[None]})
        _fill(folder / f"cars_{split}", files)


def _sun(folder: Path) -> None:
    classes = names("sun397")
    classes[206:208] = classes[207], classes[206]
    folders = [f"{name[0]}/{name}" for name in classes]
    _write(folder / "ClassName.txt", (f"/{name}" for name in folders))
    kinds = ("a", "b", "c", "z")
    files = {kind: [f"{name}/sun_{kind}.jpg" for name in folders] for kind in kinds}
    train = [file for kind in kinds[:TRAIN] for file in files[kind]]
    _write(folder / "Training_01.txt", (f"/{file}" for file in train))
    _write(folder / "Testing_01.txt", (f"/{file}" for file in files["z"]))
    _fill(folder, [*train, *files["z"], f"{folders[0]}/sun_in_no_list.jpg"])


def _dtd(folder: Path) -> None:
    for split, numbers in (("train", (0, 1)), ("val", (2,)), ("test", (9,))):
        files = [f"{name}/{name}_{number}.jpg" for name in names("dtd") for number in numbers]
        _write(folder / "dtd/labels" / f"{split}1.txt", files)
        _fill(folder / "dtd/images", files)


def _pets(folder: Path) -> None:
    lines = class_list("downstream/oxford_pets")
    stems = sorted((line.split("\t")[-1].replace(" ", "_") for line in lines), key=str.lower)
    for split, numbers in (("trainval", range(TRAIN)), ("test", range(9, 10))):
        rows = [
            (f"{stem}_{number}", f"{stem}_{number} {place} {1 + stem.islower()} 1")
            for place, stem in enumerate(stems, 1)
            for number in numbers
        ]
        _write(folder / "annotations" / f"{split}.txt", (line for _, line in rows))
        _fill(folder / "images", (f"{image}.jpg" for image, _ in rows))


def _aircraft(folder: Path) -> None:
    classes = names("fgvc_aircraft")
    _write(folder / "data/variants.txt", classes)
    for split, first, each in (("trainval", 0, TRAIN), ("test", 9, 1)):
        rows = [
            (f"{place:06d}{first + number}", name)
            for place, name in enumerate(classes)
            for number in range(each)
        ]
        _write(folder / f"data/images_variant_{split}.txt", (f"{i} {name}" for i, name in rows))
        _fill(folder / "data/images", (f"{image}.jpg" for image, _ in rows))


_MAKERS: Mapping[str, Callable[[Path], None]] = {
    "caltech101": _caltech,
    "food101": _food,
    "stanford_cars": _cars,
    "sun397": _sun,
    "dtd": _dtd,
    "oxford_pets": _pets,
    "fgvc_aircraft": _aircraft,
}
