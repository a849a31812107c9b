"""The downstream tasks: which class is which, how they are divided, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision import datasets

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.data import FAMILIES, FamilyData, Split, Transform, open_data
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.downstream import _open_data
from carft_sweep.carft_core.data.families.downstream_tasks import TASKS, by_lists, by_number
from carft_sweep.carft_core.data.transforms import evaluation_view
from carft_sweep.carft_core.models.prompts import template_set
from tests import downstream_tree
from tests.carft_core.refusals import refusal, refused

PLAIN = Transform(size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
SIZES = {
    "cifar10": (10, 18, 50_000, 10_000),
    "cifar100": (100, 18, 50_000, 10_000),
    "caltech101": (101, 34, 3_030, 5_647),
    "flowers102": (102, 1, 2_040, 6_149),
    "food101": (101, 1, 75_750, 25_250),
    "stanford_cars": (196, 8, 8_144, 8_041),
    "sun397": (397, 2, 19_850, 19_850),
    "dtd": (47, 8, 3_760, 1_880),
    "oxford_pets": (37, 1, 3_680, 3_669),
    "fgvc_aircraft": (100, 2, 6_667, 3_333),
}
"""Classes, CLIP's templates, images of train and test: CLIP's paper, table 9, and prompts.md; its
Caltech-101 has 30 and 438 more, of a background class."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data root with all ten; it is shared: copy what is to be changed."""
    folder = tmp_path_factory.mktemp("downstream")
    with pytest.MonkeyPatch.context() as patch:
        for name in TASKS:
            downstream_tree.make(folder, name, patch)
        yield folder


def data_of(name: str, root: Path, **fields: Any) -> FamilyData:
    return FAMILIES[name].open(DataConfig(family=name, root=str(root), **fields))


def copied(root: Path, name: str, target: Path) -> Path:
    """The folder of one of them, in a data root of its own, with links in the place of images."""
    folder = TASKS[name].folder
    shutil.copytree(root / folder, target / folder, copy_function=_linked)
    return target / folder


def _linked(source: str, target: str) -> str:
    if source.endswith(".jpg"):
        Path(target).symlink_to(source)
        return target
    return shutil.copy2(source, target)


@pytest.mark.parametrize("name", TASKS)
def test_classes_templates_and_published_counts_are_clips(name: str) -> None:
    task, family = TASKS[name], FAMILIES[name]
    counts = [family.folders[split].images for split in ("train", "test")]
    assert (len(task.classes()), len(template_set(name).templates), *counts) == SIZES[name]
    config = trial_config({"data": {"family": name}, "algorithm": "car_ft"})
    assert config.prompts.classes == name
    assert len(template_set(config.prompts.contexts).templates) > 1, "else nothing would be held"


def test_classes_that_are_easily_confused_are_where_clip_has_them() -> None:
    for name, theirs, index, ours in (
        ("cifar100", "sweet_pepper", 83, "sweet pepper"),
        ("caltech101", "Faces", 0, "off-center face"),
        ("caltech101", "crocodile_head", 29, "head of a crocodile"),
        ("caltech101", "yin_yang", 100, "yin and yang symbol"),
        ("flowers102", "1", 0, "pink primrose"),
        ("flowers102", "93", 92, "air plant"),
        ("food101", "cheesecake", 17, "cheesecake"),
        ("stanford_cars", "Ram C/V Cargo Van Minivan 2012", 173, "Ram C/V Cargo Van Minivan 2012"),
        ("sun397", "jail_cell", 206, "jail cell"),
        ("sun397", "jail/indoor", 207, "jail indoor"),
        ("oxford_pets", "Sphynx", 11, "Sphynx"),
        ("oxford_pets", "American Bulldog", 12, "american bulldog"),
        ("oxford_pets", "Yorkshire Terrier", 36, "yorkshire terrier"),
    ):
        assert [*TASKS[name].classes().items()][index] == (theirs, ours)


def test_lists_are_torchvisions_own_where_it_has_them(root: Path) -> None:
    alike: dict[str, Any] = {
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
        "food101": datasets.Food101,
        "stanford_cars": datasets.StanfordCars,
        "dtd": datasets.DTD,
        "fgvc_aircraft": datasets.FGVCAircraft,
    }
    permuted: dict[str, Any] = {"sun397": datasets.SUN397, "oxford_pets": datasets.OxfordIIITPet}
    for name, dataset in {**alike, **permuted}.items():
        theirs, ours = list(dataset(str(root)).classes), [*TASKS[name].classes()]
        assert (theirs == ours, sorted(theirs)) == (name in alike, sorted(ours))
    assert datasets.Caltech101(str(root)).categories == [*TASKS["caltech101"].classes()]
    # Names in lower case, but for the three that CLIP's authors changed.
    flowers = [*TASKS["flowers102"].classes().values()]
    changed = [(a, b) for a, b in zip(datasets.Flowers102.classes, flowers, strict=True) if a != b]
    assert changed == [
        ("globe-flower", "globe flower"),
        ("pink-yellow dahlia?", "pink and yellow dahlia"),
        ("ball moss", "air plant"),
    ]


@pytest.mark.parametrize("name", TASKS)
def test_an_image_has_the_label_that_its_own_class_has(root: Path, name: str) -> None:
    data = data_of(name, root)
    classes = TASKS[name].classes()
    assert data.class_names == tuple(classes.values())
    each = 2 if name == "caltech101" else 1
    assert data.id_test.labels.bincount().tolist() == [each] * len(classes)
    for id_, label in zip(data.id_test.ids, data.id_test.labels.tolist(), strict=True):
        theirs = [*classes][label]
        if name in ("caltech101", "food101", "dtd", "sun397"):
            assert f"/{theirs}/" in id_
        elif name == "stanford_cars":
            assert f"/{label + 1:03d}_" in id_
        elif name == "oxford_pets":
            assert Path(id_).stem.rsplit("_", 1)[0].lower() == theirs.lower().replace(" ", "_")
    # Train is what is published as train and val.
    each = 30 if name == "caltech101" else downstream_tree.TRAIN
    assert data.train.labels.bincount().tolist() == [each] * len(classes)
    assert (data.val, dict(data.shifts)) == (None, {})
    assert not {*data.train.ids} & {*data.id_test.ids}


def test_caltech_is_divided_by_names_alone() -> None:
    names = {f"caltech101/{c}/{n}.jpg": c for c in ("ant", "bass") for n in range(40)}
    train, test = by_number(Path(), names)
    assert [list(train.values()).count(name) for name in ("ant", "bass")] == [30, 30]
    assert {*train, *test} == {*names}
    assert by_number(Path(), dict(reversed(names.items())))[1].keys() == test.keys()
    fewer = dict(list(names.items())[1:])
    assert len(test.keys() ^ by_number(Path(), fewer)[1].keys()) <= 2, "others keep their places"


def test_sun_follows_its_lists_in_their_order(tmp_path: Path) -> None:
    folder = tmp_path / "SUN397"
    folder.mkdir()
    (folder / "Training_01.txt").write_text("/a/abbey/sun_b.jpg\n/a/abbey/sun_a.jpg\n")
    (folder / "Testing_01.txt").write_text("/a/alley/sun_c.jpg\n/a/alley/sun_gone.jpg\n")
    whole = {f"SUN397/a/{name}": name.split("/")[0] for name in ("abbey/sun_a.jpg",)}
    whole |= {"SUN397/a/abbey/sun_b.jpg": "abbey", "SUN397/a/alley/sun_c.jpg": "alley"}
    train, test = by_lists(folder, {**whole, "SUN397/a/alley/sun_in_no_list.jpg": "alley"})
    assert [*train] == ["SUN397/a/abbey/sun_b.jpg", "SUN397/a/abbey/sun_a.jpg"]
    assert test == {"SUN397/a/alley/sun_c.jpg": "alley"}


def test_pixels_and_files_are_seen_as_torchvision_gives_them(root: Path, tmp_path: Path) -> None:
    def seen(test: Split, row: int, image: Image.Image) -> bool:
        ours = test.views([row], transform=PLAIN, seed=None, epoch=0)[0]
        return torch.equal(ours, evaluation_view(image, PLAIN))

    test = data_of("cifar100", root).id_test
    image, label = datasets.CIFAR100(str(root), train=False)[7]
    assert test.labels[7] == label
    assert seen(test, 7, image)
    folder = copied(root, "dtd", tmp_path)
    theirs = datasets.DTD(str(tmp_path), split="test")
    file = Path(theirs._image_files[3])
    file.unlink()
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a camera; torchvision does not turn it back
    Image.new("RGB", (20, 10), "red").save(file, exif=exif)
    test = data_of("dtd", tmp_path).id_test
    assert test.ids[3] == f"dtd/{file.relative_to(folder).as_posix()}"
    assert seen(test, 3, theirs[3][0])


def test_a_missing_folder_or_list_is_named_with_its_source(root: Path, tmp_path: Path) -> None:
    for name, task in TASKS.items():
        message = refusal(data_of, name, tmp_path)
        assert f"{tmp_path} lacks folders:\n  {task.folder} with {', '.join(task.needs)}" in message
        assert f"{task.test_images:,} images; from {task.origin}" in message
    nowhere = DataConfig(family="dtd")
    refused("--data-root or CARFT_DATA; dtd looks there for dtd", FAMILIES["dtd"].open, nowhere)
    folder = tmp_path / "SUN397"
    folder.mkdir()
    shutil.copy(root / "SUN397/ClassName.txt", folder)
    message = refusal(data_of, "sun397", tmp_path)
    assert f"{folder} lacks Training_01.txt, Testing_01.txt; from https://vision" in message
    assert "Partitions.zip" in message


@pytest.mark.parametrize(
    ("name", "file"), [("cifar10", "data_batch_3"), ("flowers102", "setid.mat")]
)
def test_another_checksum_is_told(root: Path, tmp_path: Path, name: str, file: str) -> None:
    folder = copied(root, name, tmp_path)
    (folder / file).write_bytes(b"another")
    message = refusal(data_of, name, tmp_path)
    assert f"data.root: {folder} is not {TASKS[name].title} as published, or is damaged" in message
    assert "torchvision finds files missing, or of another checksum" in message
    assert "download=True" not in message


def test_images_and_classes_that_are_not_there_are_named(root: Path, tmp_path: Path) -> None:
    folder = copied(root, "food101", tmp_path)
    (folder / "images/waffles/9.jpg").unlink()
    (folder / "images/waffles/0.jpg").unlink()
    (folder / "images/waffles/0.jpg").touch()
    message = refusal(data_of, "food101", tmp_path)
    assert "lacks 1 of its images: food-101/images/waffles/9.jpg" in message
    assert "has files that are empty or links to nothing: food-101/images/waffles/0.jpg" in message
    listed = json.loads((folder / "meta/train.json").read_text())
    listed["wafles"] = listed.pop("waffles")
    (folder / "meta/train.json").write_text(json.dumps(listed))
    message = refusal(data_of, "food101", tmp_path)
    assert "train has no image of 1 of 101 classes: waffles" in message
    assert "train has classes that are none of it: wafles; did you mean 'waffles'?" in message
    (folder / "meta/test.json").write_text("{")
    assert "is damaged (JSONDecodeError: " in refusal(data_of, "food101", tmp_path)


def test_domains_and_shifts_are_refused_and_no_shifts_are_fine(root: Path) -> None:
    assert "data.test_domain: dtd has no domains" in refusal(data_of, "dtd", root, test_domain="x")
    assert "data.shifts: dtd has no shifts" in refusal(data_of, "dtd", root, shifts=("x",))
    assert not data_of("dtd", root, shifts=()).shifts


def test_the_digest_knows_content_not_place(root: Path, tmp_path: Path) -> None:
    assert len({data_of(name, root).digest for name in TASKS}) == len(TASKS)
    folder = copied(root, "oxford_pets", tmp_path)
    before = data_of("oxford_pets", tmp_path).digest
    assert before == data_of("oxford_pets", root).digest
    file = next((folder / "images").glob("*_9.jpg"))
    file.unlink()
    Image.new("RGB", (50, 50)).save(file)
    _open_data.cache_clear()  # as in the next process
    assert data_of("oxford_pets", tmp_path).digest != before


def test_few_shots_are_of_each_class_nested(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carft_sweep.carft_core.data.unreadable.READ_UNASKED", 0)

    def train(shots: int | None, seed: int = 0) -> FamilyData:
        name = "caltech101"
        return open_data(DataConfig(family=name, root=str(root), shots=shots, split_seed=seed))

    four, sixteen, whole = train(4), train(16), train(None)
    assert four.train.labels.bincount().tolist() == [4] * 101
    assert {*four.train.ids} < {*sixteen.train.ids} < {*whole.train.ids}
    assert four.id_val.ids == whole.id_val.ids
    assert {*train(4, seed=1).train.ids} != {*four.train.ids}
    assert four.digest == whole.digest
    assert not any("shots" in note for note in sixteen.notes)


def test_a_class_with_fewer_shots_gives_all_and_no_fraction_goes_with_them(root: Path) -> None:
    data = open_data(DataConfig(family="dtd", root=str(root), shots=9))
    assert data.train.labels.bincount().tolist() == [2] * 47  # one of three is val
    assert data.notes[-1] == (
        "data.shots: train has fewer than 9 images of banded, blotchy, braided, bubbly, bumpy, "
        "chequered, cobwebbed, cracked and 39 more"
    )
    fields = {"data": {"shots": 4, "train_fraction": 0.5}, "algorithm": "fine_tune"}
    refused("data: give shots or train_fraction, not both", trial_config, fields)
