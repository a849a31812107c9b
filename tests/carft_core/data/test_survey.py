"""What is there of a family, split by split, and why a run would refuse it."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from carft_sweep.carft_core.data import FAMILIES, DataFolder, Family, FamilyData, open_data
from carft_sweep.carft_core.data.base import Arrays, DataConfig, Source, Split
from carft_sweep.carft_core.data.folders import data_root, find_folders
from carft_sweep.carft_core.data.survey import Survey, survey
from tests.carft_core.refusals import refused


def names_in(folder: Path) -> Split:
    """A split of a folder of empty files `<label>_<number>`."""
    ids = tuple(sorted(file.name for file in folder.iterdir()))
    return Split(ids=ids, labels=torch.tensor([int(name[0]) for name in ids]), source=Source())


FOLDERS = {
    name: DataFolder((f"mine/{name}",), "<label>_<number>", "https://example.org", 4)
    for name in ("train", "test", "fog-1", "fog-2", "snow")
}


def open_mine(config: DataConfig) -> FamilyData:
    wanted = {
        name: folder
        for name, folder in FOLDERS.items()
        if name in ("train", "test")
        or config.shifts is None
        or {name, name.partition("-")[0]} & {*config.shifts}
    }
    places = find_folders(data_root(config, FOLDERS), wanted)
    splits = {name: names_in(place) for name, place in places.items()}
    train, test = splits.pop("train"), splits.pop("test")
    return FamilyData(("zero", "one"), train, None, test, splits, "d" * 64)


def open_domains(config: DataConfig) -> FamilyData:
    """As in DomainBed: no test, and one domain is in no mean."""
    data = open_mine(config)
    shifts = dict(data.shifts)
    return replace(data, test=None, extras={"snow": shifts.pop("snow")}, shifts=shifts)


pytestmark = pytest.mark.usefixtures("registries")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root with a family that can only be opened, whole or not at all."""
    FAMILIES.register(Family("mine", "a user's own", open_mine, folders=FOLDERS))
    for name in FOLDERS:
        folder = tmp_path / "mine" / name
        folder.mkdir(parents=True)
        for item in ("0_0", "0_1", "1_0", "1_1"):
            (folder / item).touch()
    return tmp_path


def looked(root: Path, **data: object) -> Survey:
    return survey(DataConfig.model_validate({"family": "mine", "root": str(root), **data}))


def test_each_split_is_counted_beside_what_was_published(root: Path) -> None:
    report = looked(root)
    assert report.refusal is None
    assert report.data is not None
    assert len(report.data.val or ()) == 2
    train = report.splits["train"]
    assert (train.folder, train.images, train.published) == (root / "mine/train", 4, 4)
    assert (train.classes, train.expected_classes, train.status) == (2, 2, "ok")
    assert list(report.splits) == ["train", "test", "shifts/fog-1", "shifts/fog-2", "shifts/snow"]
    assert report.splits["test"].digest == train.digest
    (root / "mine/test/1_1").unlink()
    less = looked(root).splits["test"]
    assert (less.images, less.status) == (3, "differs")
    assert less.digest != train.digest
    assert list(looked(root, shifts=["snow"]).splits) == ["train", "test", "shifts/snow"]


def test_of_data_that_cannot_be_opened_every_mistake_is_told(root: Path) -> None:
    for split in ("train", "test"):
        (root / "mine" / split / "1_1").unlink()
    report = looked(root)
    assert "train has a single image of one" in str(report.refusal)
    assert (report.splits["train"].status, report.splits["shifts/snow"].status) == ("differs", "ok")
    shutil.rmtree(root / "mine/fog-2")
    report = looked(root)
    assert (report.data, report.splits) == (None, {})
    lacking = "mine/fog-2 with <label>_<number>, 4 images; from https://example.org"
    assert lacking in str(report.refusal)
    assert "which folder holds the data" in str(survey(DataConfig(family="mine")).refusal)
    assert "did you mean 'mine'" in str(survey(DataConfig(family="mime")).refusal)


def test_a_family_without_folders_or_test_is_counted_as_well(root: Path) -> None:
    FAMILIES.register(Family("plain", "without folders", open_domains))
    report = survey(DataConfig(family="plain", root=str(root)))
    assert list(report.splits) == ["train", "shifts/fog-1", "shifts/fog-2", "extras/snow"]
    assert report.splits["train"].folder is report.splits["train"].published is None


def in_memory(config: DataConfig) -> FamilyData:
    """As docs/add-a-family.md has it: arrays from `.npz` files."""
    splits = []
    for name in ("train", "val", "test"):
        with np.load(Path(str(config.root)) / f"{name}.npz") as arrays:
            pixels, labels = arrays["pixels"], torch.from_numpy(arrays["labels"])
        ids = tuple(f"{name}/{row}" for row in range(len(labels)))
        splits.append(Split(ids=ids, labels=labels, source=Arrays(pixels)))
    train, val, test = splits
    return FamilyData(("zero", "one", "two"), train, val, test, {}, "e" * 64)


def saved(root: Path, name: str, **arrays: Any) -> None:
    good = {"pixels": np.zeros((6, 8, 8, 3), np.uint8), "labels": np.arange(6) % 3}
    np.savez(root / f"{name}.npz", **{**good, **arrays})


@pytest.fixture
def memory(tmp_path: Path) -> DataConfig:
    FAMILIES.register(Family("memory", "of arrays", in_memory))
    for name in ("train", "val", "test"):
        saved(tmp_path, name)
    return DataConfig(family="memory", root=str(tmp_path))


PIXELS = np.zeros((6, 8, 8, 3), np.uint8)


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ({"labels": np.array([0, 1, 2, 7, 1, 7])}, "test: labels must be indices of the 3 classes"),
        ({"labels": np.array([0, 1, 2, -1, 1, 2])}, "that of test/3 is -1"),
        ({"labels": np.zeros(6)}, "memory, test: labels must be int64, a tensor [6], got torch.fl"),
        ({"labels": np.arange(6) % 2}, "memory, test: no image of the classes [2] (two); where"),
        ({"pixels": PIXELS.astype(np.float32)}, "must be uint8 [N, H, W, 3], got float32 [6, 8"),
        ({"pixels": PIXELS.transpose(0, 3, 1, 2)}, "got uint8 [6, 3, 8, 8]"),
        ({"pixels": PIXELS[:5]}, "data.family: memory: IndexError: index 5"),
    ],
)
def test_data_that_break_the_contract_are_refused_wherever_they_are_opened(
    memory: DataConfig, broken: dict[str, Any], words: str
) -> None:
    assert survey(memory).refusal is None
    saved(Path(str(memory.root)), "test", **broken)
    assert words in str(survey(memory).refusal)
    refused(re.escape(words), open_data, memory)


def test_a_family_may_say_why_its_test_lacks_a_class(memory: DataConfig) -> None:
    saved(Path(str(memory.root)), "test", labels=np.arange(6) % 2)
    opener = lambda config: replace(in_memory(config), uneven="rare")  # noqa: E731
    FAMILIES.register(Family("uneven", "of arrays", opener))
    assert survey(memory.model_copy(update={"family": "uneven"})).refusal is None


def test_what_a_users_family_raises_is_told_with_its_line(memory: DataConfig) -> None:
    np.savez(Path(str(memory.root)) / "test.npz", images=np.zeros(6))
    line = rf"data.family: memory: KeyError: .* \(at {re.escape(__file__)}:\d+\)"
    assert re.fullmatch(line, str(survey(memory).refusal))
    refused(line, open_data, memory)
