"""Labels are part of the data: the same images under permuted labels have another digest."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy.io import loadmat, savemat

from carft_sweep.carft_core.data import FAMILIES, FamilyData
from carft_sweep.carft_core.data.base import DataConfig, forget_data
from carft_sweep.carft_core.data.families.declaration import Declaration
from carft_sweep.carft_core.data.families.image_folder import IMAGE_FOLDER, Declared
from tests import downstream_tree, wilds_tree

Edit = Callable[[Path], object]


def fixed(root: Path) -> FamilyData:
    return IMAGE_FOLDER.open(DataConfig(family="image_folder", root=str(root)))


def declared(root: Path) -> FamilyData:
    declaration = Declaration(name="mine", root=str(root), train=("train",), test=("test",))
    family = Declared(declaration, root / "mine.family.yaml", "", {})
    return family.open(DataConfig(family="mine"))


@pytest.mark.parametrize("opened", [fixed, declared], ids=lambda it: it.__name__)
def test_permuted_labels_of_own_images_are_other_data(
    opened: Callable[[Path], FamilyData], tmp_path: Path
) -> None:
    """Of class folders whose images have the same names, and other sizes."""
    for split in ("train", "test"):
        for size, name in enumerate(("bell", "cat"), start=10):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for image in range(4):
                (folder / f"{image}.png").write_bytes(b"x" * (10 * size + image))
    before = opened(tmp_path)
    for old, new in (("bell", ".bell"), ("cat", "bell"), (".bell", "cat")):
        (tmp_path / "train" / old).rename(tmp_path / "train" / new)
    forget_data()
    after = opened(tmp_path)
    assert (after.class_names, {*after.train.ids}) == (before.class_names, {*before.train.ids})
    assert after.digest != before.digest


def swapped(file: str, one: str, other: str) -> Edit:
    """Exchange two pieces of a table of text."""

    def edit(root: Path) -> None:
        text = (root / file).read_text()
        assert one in text
        text = text.replace(one, "\0").replace(other, one).replace("\0", other)
        (root / file).write_text(text)

    return edit


def reversed_mat(root: Path) -> None:
    """Give the cars of train the labels of one another."""
    file = root / "stanford_cars/devkit/cars_train_annos.mat"
    annotations = loadmat(file)["annotations"]
    annotations["class"] = annotations["class"][:, ::-1]
    savemat(file, {"annotations": annotations})


TABLES: dict[str, Edit] = {
    "iwildcam": swapped(f"{wilds_tree.IWILDCAM}/metadata.csv", "train,0,0,0,", "train,0,1,0,"),
    "fmow": swapped(
        f"{wilds_tree.FMOW}/rgb_metadata.csv",
        f",{wilds_tree.CATEGORIES[0]},",
        f",{wilds_tree.CATEGORIES[1]},",
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

    def opened() -> FamilyData:
        forget_data()
        return FAMILIES[family].open(DataConfig(family=family, root=str(tmp_path)))

    before = opened()
    TABLES[family](tmp_path)
    after = opened()
    assert not np.array_equal(after.train.labels, before.train.labels)
    assert {*after.train.ids} == {*before.train.ids}
    assert after.digest_of_training != before.digest_of_training
