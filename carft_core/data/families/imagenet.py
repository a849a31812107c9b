"""ImageNet and its shifts: V2, R, A, Sketch, ObjectNet and C."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import torch

from carft_sweep.carft_core.data.base import (
    DataConfig,
    DataFolder,
    Derived,
    Family,
    FamilyData,
    Files,
    Split,
    cache_open,
    named_shifts,
    refuse_held_out,
)
from carft_sweep.carft_core.data.class_names import class_list
from carft_sweep.carft_core.data.folders import (
    count_notes,
    data_root,
    find_folders,
    read_folders,
    readable,
)
from carft_sweep.carft_core.data.images import read_inside_border, read_plain
from carft_sweep.carft_core.data.listing import Manifest

CLASS_COUNT = 1000


def wnids() -> tuple[str, ...]:
    """Return the WordNet ids of the classes in the order of their indices."""
    return class_list("imagenet/wnids")


@functools.cache
def labels_of(split: str) -> Mapping[str, int]:
    """Return the class index by class folder of a `split`: `train`, `test` or a shift. A folder of
    ObjectNet has the class that stands for all its classes."""
    everything = {wnid: index for index, wnid in enumerate(wnids())}
    if split == "v2":
        return {str(index): index for index in range(CLASS_COUNT)}
    if split in ("r", "a"):
        return {wnid: everything[wnid] for wnid in class_list(f"imagenet/{split}")}
    if split == "objectnet":
        return {folder: indices[0] for folder, indices in _objectnet().items()}
    return everything


def alike_in(split: str) -> Mapping[int, tuple[int, ...]]:
    """Return the classes that count as one, by the class that stands for them; empty but for
    ObjectNet.

    Source: wise-ft's `src/datasets/objectnet.py`, where the logit of a folder is the greatest of
    its classes'.
    """
    if split != "objectnet":
        return {}
    return {indices[0]: indices for indices in _objectnet().values()}


@functools.cache
def _objectnet() -> Mapping[str, tuple[int, ...]]:
    """Return the classes of each folder of ObjectNet, in wise-ft's order."""
    lines = map(str.split, class_list("imagenet/objectnet"))
    return {folder: tuple(int(index) for index in indices) for folder, *indices in lines}


SHIFTS = ("v2", "r", "a", "sketch", "objectnet")
"""The shifts that CAR-FT's paper reports."""
CORRUPTIONS = (
    *("gaussian_noise", "shot_noise", "impulse_noise"),
    *("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness"),
    *("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
)
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = range(1, 6)
WNIDS = "<wnid>/<image>"
_ROOTS = ("imagenet", "ILSVRC2012", "ILSVRC/Data/CLS-LOC")


def _in_imagenet(part: str, images: int) -> DataFolder:
    names = tuple(f"{root}/{part}" for root in _ROOTS)
    return DataFolder(names, WNIDS, "https://www.image-net.org/download.php", images)


_PUBLISHED = {
    "train": _in_imagenet("train", 1_281_167),
    "test": _in_imagenet("val", 50_000),
    "v2": DataFolder(
        ("imagenetv2-matched-frequency-format-val", "ImageNetV2-matched-frequency"),
        "<0 to 999>/<image>",
        "https://github.com/modestyachts/ImageNetV2",
        10_000,
    ),
    "r": DataFolder(("imagenet-r",), WNIDS, "https://github.com/hendrycks/imagenet-r", 30_000),
    "a": DataFolder(
        ("imagenet-a",), WNIDS, "https://github.com/hendrycks/natural-adv-examples", 7_500
    ),
    "sketch": DataFolder(
        ("sketch", "imagenet-sketch"),
        WNIDS,
        "https://github.com/HaohanWang/ImageNet-Sketch",
        50_889,
    ),
    "objectnet": DataFolder(
        ("objectnet-1.0/images",),
        "<object>/<image>",
        "https://objectnet.dev",
        18_574,
        has_others=True,  # objects that are no classes of ImageNet
    ),
}
_ADVICE = (
    ": sort them into folders by their classes, as torchvision.datasets.ImageNet does with the "
    "archive of val and the development kit"
)
FOLDERS: Mapping[str, DataFolder] = MappingProxyType(
    {
        name: replace(folder, classes=tuple(labels_of(name)), advice=_ADVICE)
        for name, folder in _PUBLISHED.items()
    }
    | {
        "c": DataFolder(
            ("imagenet-c", "ImageNet-C"),
            "<corruption>/<1 to 5>/<wnid>/<image>",
            "https://github.com/hendrycks/robustness",
            50_000 * len(CORRUPTIONS) * len(SEVERITIES),
        )
    }
)
"""By split or shift. Sources of the counts: the ILSVRC 2012 development kit's readme; for the
shifts the sizes in datacomp's `tasklist.yml`, where ObjectNet's is that of the 113 classes."""


def corrupted() -> Mapping[str, str]:
    """Return the folder of each of ImageNet-C's shifts, below ImageNet-C's own: `c-fog-3` in
    `fog/3`. The four corruptions outside of the benchmark's mean are `c_extra-...`."""
    kinds = {"c": CORRUPTIONS, "c_extra": EXTRA_CORRUPTIONS}
    return {
        f"{kind}-{corruption}-{severity}": f"{corruption}/{severity}"
        for kind, corruptions in kinds.items()
        for corruption in corruptions
        for severity in SEVERITIES
    }


def folder_of(shift: str) -> DataFolder:
    """Return the folder of a shift; ImageNet-C has one for each corruption and severity."""
    below = corrupted().get(shift)
    if below is None:
        return FOLDERS[shift]
    whole = FOLDERS["c"]
    names = tuple(f"{name}/{below}" for name in whole.names)
    return replace(FOLDERS["test"], names=names, origin=whole.origin)


ID_FOLDERS = ("train", "test")
ADVICE = (
    f"The OOD mean is over the shifts in data.shifts, {', '.join(SHIFTS)} where it is left out: "
    "name those that you have, or [] for none."
)


def open_imagenet(config: DataConfig) -> FamilyData:
    """Return the data below `data.root`: train, the official val as test, and `data.shifts`. Raises
    RequestError naming every missing folder, or every mistake in the existing ones. Images are not
    decoded here: a broken one raises when it is read."""
    refuse_held_out(config, "data.shifts says what is measured out of distribution")
    root = data_root(config, {name: FOLDERS[name] for name in (*ID_FOLDERS, *SHIFTS)})
    allowed = (*SHIFTS, *corrupted())
    shifts = SHIFTS if config.shifts is None else named_shifts(config.shifts, allowed)
    folders = {name: folder_of(name) for name in (*ID_FOLDERS, *shifts)}
    places = find_folders(root, folders, advice=ADVICE)
    with readable():
        return _open_data(tuple(places.items()))


@cache_open(4)
def _open_data(places: tuple[tuple[str, Path], ...]) -> FamilyData:
    folders = {name: folder_of(name) for name, _ in places}
    manifests = read_folders("imagenet", dict(places), folders)
    splits = {name: _split(name, folder, manifests[name]) for name, folder in places}
    counts = {name: (len(split), folders[name].images) for name, split in splits.items()}
    train, test = splits.pop("train"), splits.pop("test")
    digests = {name: manifest.digest for name, manifest in manifests.items()}
    return FamilyData(
        class_names=_class_names(),
        train=train,
        val=None,
        test=test,
        shifts=splits,
        digest=_digest(digests),
        training_digest=_digest({"train": digests["train"]}),
        derived={
            f"id/test_{name}": Derived(("id/test",), tuple(sorted(labels_of(name).values())))
            for name in ("r", "a")
        },
        own_means=_means_of_corruptions(splits),
        notes=count_notes("imagenet", counts),
        digests={
            name if name in ID_FOLDERS else f"shifts/{name}": digest
            for name, digest in digests.items()
        },
    )


def _means_of_corruptions(shifts: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return the metric names of the shifts of which `ood/c` and `ood/c_extra` are means: 75
    corruptions are one benchmark, not as many shifts."""
    means: dict[str, tuple[str, ...]] = {}
    corruptions = corrupted()
    for name in shifts:
        if name in corruptions:
            mean = f"ood/{name.partition('-')[0]}"
            means[mean] = (*means.get(mean, ()), f"ood/{name}")
    return means


def _split(name: str, folder: Path, manifest: Manifest) -> Split:
    labels = labels_of(name)
    groups = [
        (labels[folder_name], paths)
        for folder_name, paths in manifest.groups()
        if folder_name in labels
    ]
    counts = torch.tensor([len(paths) for _, paths in groups])
    present = tuple(sorted(labels.values()))
    paths = [path for _, below in groups for path in below]
    decode = read_inside_border if name == "objectnet" else read_plain
    return Split(
        ids=tuple(f"{name}/{path}" for path in paths),
        labels=torch.repeat_interleave(torch.tensor([label for label, _ in groups]), counts),
        source=Files(folder, pa.array(paths, pa.string()), decode),
        classes=None if len(present) == CLASS_COUNT else present,
        alike=alike_in(name),
    )


def _class_names() -> tuple[str, ...]:
    # It takes a second to import, and every command that reads a config names this family.
    from open_clip import IMAGENET_CLASSNAMES

    return tuple(IMAGENET_CLASSNAMES)


def _digest(manifests: Mapping[str, str]) -> str:
    """Return a digest of class names, and each split's folders with classes and images."""
    digest = hashlib.sha256(b"imagenet/1\n")
    digest.update("\0".join(_class_names()).encode())
    for name, content in manifests.items():
        digest.update(f"\n{name}\0{sorted(labels_of(name).items())}\0{alike_in(name)}".encode())
        digest.update(f"\0{content}".encode())
    return digest.hexdigest()


IMAGENET = Family(
    name="imagenet",
    summary="ImageNet-1k under data.root, with V2, R, A, Sketch, ObjectNet, and C when asked for",
    open=open_imagenet,
    defaults={
        "data.augmentation": "wise_ft",
        "data.val_fraction": 0.02,
        "prompts.classes": "openai",
        "prompts.contexts": "openai",
    },
    folders=FOLDERS,
    shared_names=("missile", "sunglasses"),
)
