"""DomainBed's sets: which images are which, what trains, what is measured, what is refused."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torchvision.datasets import ImageFolder

from carft_sweep.carft_core.data import FAMILIES, FamilyData, open_data, unreadable
from carft_sweep.carft_core.data.base import DataConfig, Derived
from carft_sweep.carft_core.data.class_names import plain_name
from carft_sweep.carft_core.data.families.domainbed import FOLDERS, class_folders
from carft_sweep.carft_core.data.listing import Manifest
from carft_sweep.carft_core.errors import RequestError
from tests import domain_bed_tree
from tests.carft_core.data.families.test_domain_bed_split import by_description

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
IMAGES = 50
"""Of each domain of the tree."""


def opened(place: Path, test: str = "sketch", **more: Any) -> FamilyData:
    fields = {"family": "pacs", "root": str(place), "test_domain": test, "val_fraction": 0.2}
    return open_data(DataConfig.model_validate(fields | more))


def theirs(root: Path, domain: str) -> list[str]:
    """The images of a domain in torchvision's order, by their ids here."""
    samples = ImageFolder(str(root / "PACS" / domain)).samples
    return [str(Path(path).relative_to(root / "PACS")) for path, _ in samples]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_images_of_a_run_are_those_of_domainbeds_run(pacs_root: Path, seed: int) -> None:
    data = opened(pacs_root, "cartoon", split_seed=seed)
    assert data.val is not None
    kept = {
        domain: [theirs(pacs_root, domain)[at] for at in by_description(IMAGES, 0.2, seed, place)]
        for place, domain in enumerate(DOMAINS)
    }
    training = [domain for domain in DOMAINS if domain != "cartoon"]
    assert list(data.val.ids) == [item for domain in training for item in kept[domain]]
    assert list(data.extras["cartoon_out"].ids) == kept["cartoon"]
    for domain in training:
        mine = {item for item in data.train.ids if item.startswith(f"{domain}/")}
        assert mine == set(theirs(pacs_root, domain)) - set(kept[domain])
    shift = data.shifts["cartoon"]
    assert set(shift.ids) == set(theirs(pacs_root, "cartoon")) - set(kept["cartoon"])


@pytest.mark.parametrize("family", FOLDERS)
def test_classes_and_images_are_in_torchvisions_order(family: str, tmp_path: Path) -> None:
    domain_bed_tree.make(tmp_path, family, per_class=1)
    found = FOLDERS[family]
    first = next(iter(found))
    data = opened(tmp_path, first, family=family, val_fraction=0.5)
    folders = [tmp_path / folder.names[0] for folder in found.values()]
    for place, folder in enumerate(folders):
        there = ImageFolder(str(folder))
        assert tuple(there.classes) == class_folders(family)
        if place == 0:
            split, out = data.shifts[first], data.extras[f"{first}_out"]
            labels = dict(zip(split.ids, split.labels.tolist(), strict=True))
            labels |= dict(zip(out.ids, out.labels.tolist(), strict=True))
            ids = [
                f"{first}/{Path(path).parent.name}/{Path(path).name}" for path, _ in there.samples
            ]
            assert [labels[item] for item in ids] == there.targets


@pytest.mark.parametrize(
    ("family", "domains", "classes", "images"),
    [
        ("pacs", 4, 7, 9_991),
        ("vlcs", 4, 5, 10_729),
        ("office_home", 4, 65, 15_588),
        ("terra_incognita", 4, 10, 24_788),
        ("domain_net", 6, 345, 586_575),
    ],
)
def test_the_published_sizes_are_the_papers(
    family: str, domains: int, classes: int, images: int
) -> None:
    found = FAMILIES[family]
    assert (len(found.domains), len(class_folders(family))) == (domains, classes)
    assert list(found.folders) == list(found.domains) == sorted(found.domains)
    assert sum(folder.images for folder in found.folders.values()) == images
    assert list(class_folders(family)) == sorted(set(class_folders(family)))


@pytest.mark.parametrize(
    ("family", "index", "name"),
    [
        ("pacs", 0, "dog"),
        ("vlcs", 4, "person"),
        ("office_home", 0, "Alarm Clock"),
        ("office_home", 58, "TV"),
        ("office_home", 59, "Table"),
        ("terra_incognita", 5, "empty"),
        ("domain_net", 0, "The Eiffel Tower"),
        ("domain_net", 3, "aircraft carrier"),
        ("domain_net", 344, "zigzag"),
    ],
)
def test_classes_have_names_for_prompts(family: str, index: int, name: str) -> None:
    assert plain_name(class_folders(family)[index]) == name


def test_one_domain_is_measured_and_the_others_train_and_validate(pacs_root: Path) -> None:
    data = opened(pacs_root)
    assert data.test is None
    assert data.val is not None
    training = DOMAINS[:3]
    assert Counter(data.train.groups) == dict.fromkeys(training, 40)
    assert Counter(data.val.groups) == dict.fromkeys(training, 10)
    assert [*data.measured()] == ["ood/sketch", "ood/sketch_out"]
    assert [len(split) for split in data.measured().values()] == [40, 10]
    assert data.derived == {"ood/sketch_all": Derived(("ood/sketch", "ood/sketch_out"))}
    assert data.outside_mean == {"ood/sketch_out", "ood/sketch_all"}
    assert all(split.groups is None for split in data.measured().values())


def test_other_images_than_published_are_told_with_both_numbers(pacs_root: Path) -> None:
    assert len(opened(pacs_root).notes) == 4
    assert opened(pacs_root).notes[3] == (
        "pacs: sketch has 50 images here, 3,929 as published; its numbers are not those of papers"
    )


def test_the_digest_is_of_the_whole_set_whatever_is_held_out_and_wherever_it_lies(
    pacs_root: Path, tmp_path: Path
) -> None:
    digest = opened(pacs_root).digest
    assert opened(pacs_root, "photo", split_seed=3).digest == digest
    moved = tmp_path / "moved"
    shutil.copytree(pacs_root, moved)
    assert opened(moved).digest == digest
    less = moved.rename(tmp_path / "less")
    (less / "PACS" / "photo" / "dog" / "0.jpg").unlink()
    assert opened(less).digest != digest


def test_office_homes_real_world_may_be_written_as_mirrors_do(tmp_path: Path) -> None:
    domain_bed_tree.make(tmp_path, "office_home", per_class=2)
    usual = opened(tmp_path, "real_world", family="office_home")
    moved = tmp_path / "moved"
    moved.mkdir()
    shutil.copytree(tmp_path / "office_home", moved / "office_home")
    (moved / "office_home" / "Real World").rename(moved / "office_home" / "RealWorld")
    other = opened(moved, "real_world", family="office_home")
    assert other.digest == usual.digest
    assert other.shifts["real_world"].ids == usual.shifts["real_world"].ids
    assert other.shifts["real_world"].ids[0].startswith("real_world/")


def test_shifts_may_be_left_out_and_then_their_union_is_too(pacs_root: Path) -> None:
    data = opened(pacs_root, shifts=[])
    assert [*data.measured()] == ["ood/sketch_out"]
    assert data.derived == {}
    assert opened(pacs_root, shifts=["sketch"]).digest == opened(pacs_root).digest
    with pytest.raises(RequestError, match="unknown shift 'sketch_out'"):
        opened(pacs_root, shifts=["sketch_out"])


def test_bad_files_are_looked_for_once_whatever_is_held_out(
    pacs_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARFT_CACHE", str(tmp_path / "cache"))
    copied = tmp_path / "copied"
    shutil.copytree(pacs_root, copied)
    (copied / "PACS" / "photo" / "dog" / "7.jpg").write_bytes(b"no image")
    whole, data = opened(pacs_root), opened(copied, bad_files="skip")
    (where,) = data.skipped
    assert list(data.skipped[where]) == ["photo/dog/7.jpg"]
    left = {"train": data.train, "val": data.val}[where]
    assert left is not None
    full = {"train": whole.train, "val": whole.val}[where]
    assert full is not None
    assert set(full.ids) - set(left.ids) == {"photo/dog/7.jpg"}
    monkeypatch.setattr(unreadable, "_bad_files", lambda *_: pytest.fail("looked at again"))
    other = opened(copied, "photo", split_seed=1, bad_files="skip")
    assert [list(bad) for bad in other.skipped.values()] == [["photo/dog/7.jpg"]]
    assert set(other.skipped) <= {"shifts/photo", "extras/photo_out"}


# What is refused


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"test_domain": None},
            "data.test_domain: which domain is held out? pacs has art_painting, cartoon, photo, "
            "sketch",
        ),
        ({"test_domain": "sketsh"}, "data.test_domain: unknown domain 'sketsh'; did you mean"),
        ({"val_fraction": 0.01}, "data.val_fraction: 0.01 of the 50 images of art_painting keeps"),
        ({"root": None}, "data.root: which folder holds the data sets?"),
        ({"root": "/nowhere/at/all"}, "data.root: /nowhere/at/all does not exist"),
    ],
)
def test_what_cannot_be_is_refused_in_one_message(
    pacs_root: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        opened(pacs_root, **fields)
    assert str(caught.value).startswith(message)


def test_a_missing_domain_is_named_with_where_to_get_it(pacs_root: Path, tmp_path: Path) -> None:
    shutil.copytree(pacs_root / "PACS" / "photo", tmp_path / "PACS" / "photo")
    with pytest.raises(RequestError) as caught:
        opened(tmp_path)
    lines = str(caught.value).splitlines()
    assert [line.split()[0] for line in lines[1:]] == [
        *("PACS/art_painting", "PACS/cartoon", "PACS/sketch")
    ]
    assert "<class>/<image>, 3,929 images; from https://" in lines[-1]


def test_every_mistake_in_the_folders_comes_at_once(pacs_root: Path, tmp_path: Path) -> None:
    shutil.copytree(pacs_root, tmp_path, dirs_exist_ok=True)
    (tmp_path / "PACS" / "photo" / "dog").rename(tmp_path / "PACS" / "photo" / "dogs")
    shutil.rmtree(tmp_path / "PACS" / "sketch" / "house")
    (tmp_path / "PACS" / "sketch" / "house").mkdir()
    (tmp_path / "PACS" / "cartoon" / "horse" / "4.jpg").unlink()
    (tmp_path / "PACS" / "cartoon" / "horse" / "4.jpg").touch()
    with pytest.raises(RequestError) as caught:
        opened(tmp_path)
    told = str(caught.value)
    for expected in (
        "data.root: pacs cannot be used:",
        "photo: lacks 1 of 7 class folders: dog",
        "photo: has 1 folders that are no class of it: dogs; did you mean 'dog'?",
        "sketch: has class folders without images: house",
        "cartoon: has files that are empty or links to nothing: horse/4.jpg",
    ):
        assert expected in told


@pytest.mark.parametrize("family", ["icon_shift", "image_folder", "imagenet", "fmow", "food101"])
def test_families_without_domains_hold_none_out(family: str, tmp_path: Path) -> None:
    root = None if family == "icon_shift" else str(tmp_path)
    config = DataConfig.model_validate({"family": family, "root": root, "test_domain": "sketch"})
    with pytest.raises(RequestError, match=rf"data\.test_domain: {family} has no domains"):
        FAMILIES[family].open(config)


def test_only_what_has_domains_can_be_balanced() -> None:
    with pytest.raises(RequestError, match=r"data\.balanced: icon_shift has no domains"):
        open_data(DataConfig(family="icon_shift", balanced=True))


def test_a_folder_that_the_disk_does_not_give_is_named(
    pacs_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(folder: Path) -> Manifest:
        raise PermissionError(errno.EACCES, "Permission denied", str(folder))

    shutil.copytree(pacs_root, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("carft_sweep.carft_core.data.folders.read_manifest", refusing)
    with pytest.raises(RequestError) as caught:
        opened(tmp_path)
    place = tmp_path / "PACS" / "art_painting"
    assert str(caught.value) == f"data.root: {place} cannot be read: Permission denied"
