"""Downstream tasks as CLIP is judged on: other classes, few images."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from carft_sweep.carft_core.data.base import (
    Arrays,
    DataConfig,
    Family,
    FamilyData,
    Files,
    Split,
    cache_open,
    refuse_held_out,
)
from carft_sweep.carft_core.data.families.downstream_tasks import BATCH_SIZE, TASKS, Classes, Task
from carft_sweep.carft_core.data.folders import count_notes, data_root, find_folders
from carft_sweep.carft_core.data.images import read_plain
from carft_sweep.carft_core.data.listing import join_names, nearest, read_manifest, refusal
from carft_sweep.carft_core.errors import RequestError

Splits = dict[str, Split]
"""`train` and `test`."""


def load_torchvision(dataset: str, root: Path, arguments: Mapping[str, object]) -> Any:
    """Return a data set of `torchvision.datasets` below `root`; nothing is downloaded. Raises
    whatever torchvision does for files that are missing, damaged or in another layout."""
    from torchvision import datasets

    return getattr(datasets, dataset)(str(root), **arguments)


def file_classes(dataset: Any, root: Path) -> dict[str, str]:
    """Return the name of the class of each image in the data set, by the image's path below `root`.
    The names come from attributes that torchvision's classes have had since 0.12: `__getitem__`
    would decode every image to tell its class."""
    start = f"{root}/"
    # As text: SUN397 has a hundred thousand of them.
    return {os.fspath(file).removeprefix(start): name for file, name in _labelled(dataset)}


def _labelled(dataset: Any) -> Iterable[tuple[str | Path, str]]:
    """Yield each file with the name of its class in the data set; most of torchvision's classes
    have these lists under the same attributes."""
    match type(dataset).__name__:
        case "Caltech101":
            for number, label in zip(dataset.index, dataset.y, strict=True):
                name = dataset.categories[label]
                yield f"{dataset.root}/101_ObjectCategories/{name}/image_{number:04d}.jpg", name
        case "Flowers102":  # which has no names, so by the numbers in `imagelabels.mat`
            for file, label in zip(dataset._image_files, dataset._labels, strict=True):
                yield file, str(label + 1)
        case "StanfordCars":
            for file, label in dataset._samples:
                yield file, dataset.classes[label]
        case kind:
            files = dataset._images if kind == "OxfordIIITPet" else dataset._image_files
            for file, label in zip(files, dataset._labels, strict=True):
                yield file, dataset.classes[label]


def open_downstream(config: DataConfig) -> FamilyData:
    """Open the data of the downstream task `config.family`. A process reads the task's lists once.
    Raises RequestError naming files that are missing, damaged, or of no class of the task. Images
    are not decoded here: a broken one raises when it is read."""
    task = TASKS[config.family]
    refuse_held_out(config, "leave the field out")
    if config.shifts:
        raise RequestError(f"data.shifts: {task.name} has no shifts; leave the field out")
    folders = {"test": task.folders["test"]}
    root = data_root(config, folders)
    find_folders(root, folders)
    return _open_data(task.name, root)


@cache_open(len(TASKS))
def _open_data(name: str, root: Path) -> FamilyData:
    task = TASKS[name]
    folder = root / task.folder
    lacking = [need for need in task.needs if not (folder / need).exists()]
    if lacking:
        raise RequestError(f"data.root: {folder} lacks {', '.join(lacking)}; from {task.origin}")
    try:
        read = _pixels if task.dataset.startswith("CIFAR") else _files
        splits, content = read(task, root)
    except RequestError:
        raise
    # torchvision meets arbitrary bytes here and raises whatever those lead to: RuntimeError for a
    # checksum, OSError, KeyError, ValueError, scipy's own, ...
    except Exception as error:
        raise RequestError(
            f"data.root: {folder} is not {task.title} as published, or is damaged "
            f"({_one_line(error)}); fetch it again from {task.origin}"
        ) from error
    names = tuple(task.classes().values())
    return FamilyData(
        class_names=names,
        train=splits["train"],
        val=None,
        test=splits["test"],
        shifts={},
        digest=_digest(task, names, splits, content),
        notes=count_notes(
            task.name,
            {name: (len(split), task.folders[name].images) for name, split in splits.items()},
        ),
    )


def _one_line(error: Exception) -> str:
    if isinstance(error, RuntimeError):  # it advises to download, which is not done here
        return "torchvision finds files missing, or of another checksum"
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _pixels(task: Task, root: Path) -> tuple[Splits, str]:
    """Return the splits of a CIFAR task, and the checksums by which torchvision knows its files."""
    splits, checksums = {}, []
    for split, arguments in (("train", task.train[0]), ("test", task.test)):
        dataset = load_torchvision(task.dataset, root, arguments)
        pixels, classes = dataset.data, [dataset.classes[label] for label in dataset.targets]
        _check(task, root / task.folder, {split: classes})
        ids = [f"{task.folder}/{split}/{number:05d}" for number in range(len(pixels))]
        splits[split] = Split(tuple(ids), _labels(task, classes), Arrays(pixels))
        checksums = [*dataset.train_list, *dataset.test_list]
    return splits, str(checksums)


def _files(task: Task, root: Path) -> tuple[Splits, str]:
    """Return the splits of a task of image files, and the digest of their listing."""
    folder = root / task.folder
    parts = dict(zip(("train", "test"), _parts(task, root), strict=True))
    paths = [path for part in parts.values() for path in part]
    below = {str(PurePosixPath(path).parent.relative_to(task.folder)) for path in paths}
    manifest = read_manifest(folder, sorted(below))
    present, empty = (
        {f"{task.folder}/{path}" for path in own} for own in (manifest.paths, manifest.empty)
    )
    _check(
        task,
        folder,
        {name: [*part.values()] for name, part in parts.items()},
        missing=[path for path in paths if path not in present],
        empty=[path for path in paths if path in empty],
    )
    return {name: _split(task, root, part) for name, part in parts.items()}, manifest.digest


def _split(task: Task, root: Path, part: Classes) -> Split:
    paths = pa.array([*part], pa.string())
    return Split((*part,), _labels(task, [*part.values()]), Files(root, paths, read_plain))


def _parts(task: Task, root: Path) -> tuple[Classes, Classes]:
    if task.divide is not None:
        whole = file_classes(load_torchvision(task.dataset, root, {}), root)
        return task.divide(root / task.folder, whole)
    train: dict[str, str] = {}
    for arguments in task.train:
        train |= file_classes(load_torchvision(task.dataset, root, arguments), root)
    return train, file_classes(load_torchvision(task.dataset, root, task.test), root)


def _check(
    task: Task,
    folder: Path,
    classes: dict[str, list[str]],
    missing: Sequence[str] = (),
    empty: Sequence[str] = (),
) -> None:
    """Raise RequestError for unknown classes, classes without images, missing or empty files."""
    classes_of_task = task.classes()
    count = len(classes_of_task)
    problems = []
    for split, names in classes.items():
        lacking = [name for name in classes_of_task if name not in {*names}]
        strange = sorted({*names} - {*classes_of_task})
        if lacking:
            problems.append(
                f"{split} has no image of {len(lacking)} of {count} classes: {join_names(lacking)}"
            )
        if strange:
            near = nearest(strange[0], lacking)
            problems.append(f"{split} has classes that are none of it: {join_names(strange)}{near}")
    if missing:
        problems.append(f"lacks {len(missing)} of its images: {join_names(missing)}")
    if empty:
        problems.append(f"has files that are empty or links to nothing: {join_names(empty)}")
    if problems:
        title = f"data.root: {folder} cannot be used as {task.title} (from {task.origin}):"
        raise RequestError(refusal(title, problems))


def _labels(task: Task, classes: Sequence[str]) -> Tensor:
    """Return labels [N] int64, in CLIP's order of classes, for class names of the data set."""
    label = {name: index for index, name in enumerate(task.classes())}
    return torch.tensor([label[name] for name in classes], dtype=torch.int64)


def _digest(task: Task, names: Sequence[str], splits: Splits, content: str) -> str:
    """Return a digest of class names, each split's images and labels, and `content`."""
    digest = hashlib.sha256(f"{task.name}/1\n{content}\n".encode())
    digest.update("\0".join(names).encode())
    for split in splits.values():
        digest.update(f"\n{list(zip(split.ids, split.labels.tolist(), strict=True))}".encode())
    return digest.hexdigest()


def _family(task: Task) -> Family:
    return Family(
        name=task.name,
        summary=f"{task.title}, {len(task.classes())} classes, under data.root; no shifts",
        open=open_downstream,
        defaults={
            "data.augmentation": "wise_ft",
            "optim.batch_size": BATCH_SIZE,
            "prompts.classes": task.name,
            "prompts.contexts": task.contexts or task.name,
        },
        folders=task.folders,
        metrics=("mean_per_class_top1",) if task.per_class else (),
        ranked_by="mean_per_class_top1" if task.per_class else "top1",
    )


DOWNSTREAM = tuple(_family(task) for task in TASKS.values())
