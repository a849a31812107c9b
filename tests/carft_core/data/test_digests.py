"""What a run's data are known by stays, and knows their labels: a changed digest trains anew."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from carft_sweep.carft_core.data import FAMILIES, FamilyData
from carft_sweep.carft_core.data.base import DataConfig, forget_data
from carft_sweep.carft_core.data.families.declaration import Declaration
from carft_sweep.carft_core.data.families.image_folder import IMAGE_FOLDER, Declared
from tests import domain_bed_tree, downstream_tree, imagenet_tree, wilds_tree

KNOWN = {
    "icon_shift": "896bf7c9453875a02bb57cac0cfdcfcfd410b16a486355310156b6c13f00bc36",
    "icon_shift_dev": "7f92433026804a79d52187236b24ddf882373ac5258f9ba4bffa091bb468825f",
    "image_folder": "8b0086ccfaccbda730215b5418c197e910ac8dc0276801720eaa6a1e90147fc3",
    "image_folder, training": "af9f9d64ddc9e288bfcb8f842c4cb2882c8d7081b0a248f47f683aa00822f52a",
    "imagenet": "ceed6ad831ce2cd9f1ad80d804cf0345685c0ca88160b5215dc24ddc73f238a0",
    "imagenet, training": "d05dd402a2f52972f7e7622950c3988830d97f31a36808d0183250495c73bfae",
    "iwildcam": "9458e23236e8dde4acf3639bbfd20b50bbd2f07adca830ec9f30d7016b1bb5a3",
    "fmow": "f609f2e37c2bad27168858c332eca09d00a61552e8ebf471959dbdc7686c2a7a",
    "pacs": "3412227198b9b2eafae4405721f08c4e3eaaafcea072e65118d6b0d152fdb234",
    "vlcs": "8e8d56f9d51aa392d847e882ad82214c8cd9044403b5a7e2f722786857530b6b",
    "declared, training": "e6060d40ce6eaa6f39cadcf22cf4829d96f70c620a8a98c0158be1ed9756617a",
    "declared": "af59b78745303e552fdafc2f123714867a5122b03a1a7ee13d12a94dfed50f15",
}
TREES: dict[str, Callable[[Path], object]] = {
    "imagenet": imagenet_tree.make,
    "iwildcam": wilds_tree.make,
    "fmow": wilds_tree.make,
    "pacs": lambda root: domain_bed_tree.make(root, "pacs", per_domain=50),
    "vlcs": lambda root: domain_bed_tree.make(root, "vlcs", per_class=2),
}


@pytest.fixture
def plain_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files whose sizes no version of Pillow decides; nothing here decodes one."""
    for module in (domain_bed_tree, imagenet_tree, wilds_tree):
        monkeypatch.setattr(
            module, "pictures", lambda count=5: [b"x" * (10 + kind) for kind in range(count)]
        )


def images(root: Path) -> Path:
    for split in ("train", "test", "shifts/dark"):
        for number, name in enumerate(("cat", "hot_dog", "zebra")):
            if (split, name) != ("shifts/dark", "cat"):
                folder = root / split / name
                folder.mkdir(parents=True)
                for image in range(4):
                    (folder / f"{image}.png").write_bytes(b"x" * (1 + number + image))
    return root


def known(data: FamilyData, name: str) -> bool:
    digests = KNOWN[name], KNOWN.get(f"{name}, training", data.digest)
    return (data.digest, data.digest_of_training) == digests


@pytest.mark.usefixtures("plain_bytes")
@pytest.mark.parametrize("family", TREES)
def test_the_digest_of_a_benchmark_stays(family: str, tmp_path: Path) -> None:
    TREES[family](tmp_path)
    held_out = {"pacs": "sketch", "vlcs": "sun09"}.get(family)
    config = DataConfig(family=family, root=str(tmp_path), test_domain=held_out)
    assert known(FAMILIES[family].open(config), family)


@pytest.mark.parametrize("family", ["icon_shift", "icon_shift_dev"])
def test_the_digest_of_the_built_in_family_stays(family: str) -> None:
    assert known(FAMILIES[family].open(DataConfig(family=family)), family)


def test_the_digests_of_a_folder_tree_and_of_a_declared_family_stay(tmp_path: Path) -> None:
    declaration = Declaration.model_validate(
        {
            "name": "mine",
            "root": str(images(tmp_path)),
            "train": ["train", "test"],
            "test_fraction": 0.25,
            "shifts": {"dark": {"folders": "shifts/dark", "exclude": "zebra"}},
            "class_names": {"cat": "tabby"},
        }
    )
    declared = Declared(declaration, tmp_path / "mine.family.yaml", "", {})
    assert known(declared.open(DataConfig(family="mine")), "declared")
    names = {"cat": "a cat", "hot_dog": "a sausage", "zebra": "a zebra"}
    (tmp_path / "classes.json").write_text(json.dumps(names))
    config = DataConfig(family="image_folder", root=str(tmp_path))
    assert known(FAMILIES["image_folder"].open(config), "image_folder")


Edit = Callable[[Path], object]


def fixed(root: Path) -> FamilyData:
    return IMAGE_FOLDER.open(DataConfig(family="image_folder", root=str(root)))


def declared(root: Path) -> FamilyData:
    declaration = Declaration(name="mine", root=str(root), train=("train",), test=("test",))
    return Declared(declaration, root / "mine.family.yaml", "", {}).open(DataConfig(family="mine"))


@pytest.mark.parametrize("read", [fixed, declared], ids=lambda function: function.__name__)
def test_permuted_labels_of_own_images_are_other_data(
    read: Callable[[Path], FamilyData], tmp_path: Path
) -> None:
    for split in ("train", "test"):
        for size, name in enumerate(("bell", "cat"), start=10):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for image in range(4):
                (folder / f"{image}.png").write_bytes(b"x" * (10 * size + image))
    before = read(tmp_path)
    for old, new in (("bell", ".bell"), ("cat", "bell"), (".bell", "cat")):
        (tmp_path / "train" / old).rename(tmp_path / "train" / new)
    forget_data()
    after = read(tmp_path)
    assert (after.class_names, {*after.train.ids}) == (before.class_names, {*before.train.ids})
    assert after.digest != before.digest


def swapped(file: str, old: str, new: str) -> Edit:
    def edit(root: Path) -> None:
        text = (root / file).read_text()
        assert old in text
        text = text.replace(old, "\0").replace(new, old).replace("\0", new)
        (root / file).write_text(text)

    return edit


def reversed_mat(root: Path) -> None:
    file = root / "stanford_cars/devkit/cars_train_annos.mat"
    annotations = loadmat(file)["annotations"]
    annotations["class"] = annotations["class"][:, ::-1]
    savemat(file, {"annotations": annotations})


CATEGORIES = wilds_tree.CATEGORIES[:2]
TABLES: dict[str, Edit] = {
    "iwildcam": swapped(f"{wilds_tree.IWILDCAM}/metadata.csv", "train,0,0,0,", "train,0,1,0,"),
    "fmow": swapped(
        f"{wilds_tree.FMOW}/rgb_metadata.csv", *(f",{category}," for category in CATEGORIES)
    ),
    "stanford_cars": reversed_mat,
    "fgvc_aircraft": swapped(
        "fgvc-aircraft-2013b/data/images_variant_trainval.txt", " 707-320", " 727-200"
    ),
}


@pytest.mark.parametrize("family", TABLES)
def test_permuted_labels_of_a_table_are_other_data(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if family in ("iwildcam", "fmow"):
        wilds_tree.make(tmp_path)
    else:
        downstream_tree.make(tmp_path, family, monkeypatch)

    def read() -> FamilyData:
        forget_data()
        return FAMILIES[family].open(DataConfig(family=family, root=str(tmp_path)))

    before = read()
    TABLES[family](tmp_path)
    after = read()
    assert not np.array_equal(after.train.labels, before.train.labels)
    assert {*after.train.ids} == {*before.train.ids}
    assert after.digest_of_training != before.digest_of_training
