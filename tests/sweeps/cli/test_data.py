"""`data list`, `data check`: what is said of data before any run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carft_sweep.carft_core import data as families
from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.families import image_folder, imagenet
from tests.imagenet_tree import WNIDS
from tests.sweeps.conftest import Carft, Printed

GOLDEN = Path(__file__).parents[2] / "golden"
pytestmark = pytest.mark.usefixtures("registries")


@pytest.fixture
def data(carft: Carft) -> Carft:
    """Runs `carft-sweep data ...` in this process, which forgets what an earlier one opened."""

    def run(*words: object, code: int = 0) -> Printed:
        for module in (image_folder, imagenet):
            module._open_data.cache_clear()
        families._prepared.cache_clear()
        return carft("data", *words, code=code)

    return run


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A tree of 3 classes, with a shift that has two of them."""
    root = tmp_path / "photos"
    for split, count in {"train": 4, "test": 2, "shifts/dark": 2}.items():
        for value, name in enumerate(("ant", "bee", "cat")):
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((6, 6, 3), 40 * value + index, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    shutil.rmtree(root / "shifts/dark/bee")
    return root


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_is_readable_at_every_width(
    data: Carft, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    printed = data("list", "imagenet").out
    assert printed == (GOLDEN / f"data_list_{width}.txt").read_text()
    assert max(map(len, printed.splitlines())) <= width


def test_every_family_is_listed_and_looked_for_below_the_root(
    data: Carft, linked_imagenet: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = linked_imagenet()
    (root / "sketch").unlink()
    monkeypatch.setenv("CARFT_DATA", str(root))
    printed = data("list").out
    assert [name for name in FAMILIES if f"{name}: " not in printed] == []
    assert re.search(r"icon_shift: .*\n.*\n  reads nothing below the data root\n", printed)
    assert re.search(r"  sketch +50,889  no ", printed)
    assert re.search(r"  r +30,000  yes ", printed)
    assert f"Data root: {root}\n" in printed
    splits = data("list", "imagenet", "--json").json["families"][0]["splits"]
    assert splits["sketch"]["found"] is None
    assert splits["r"] == {
        **{"folders": ["imagenet-r"], "found": str(root / "imagenet-r"), "images": 30_000},
        **{"layout": "<wnid>/<image>", "origin": "https://github.com/hendrycks/imagenet-r"},
    }


def test_the_list_has_what_is_imported_and_declared(
    data: Carft, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("mine.family.yaml").write_text("root: photos\ntest: test\nsummary: insects\n")
    printed = data("list", "mine.family.yaml").out
    assert printed.startswith("mine: insects\n  reads nothing below the data root; its images lie")
    document = data("list", "--import", "mine.family.yaml", "--json").json
    place = {"place": str(photos), "splits": {}}
    assert document["families"][-1] == {"family": "mine", "summary": "insects", **place}


def test_what_is_there_stands_in_one_table(data: Carft, imagenet_root: Path) -> None:
    table, message = data("check", "imagenet", "--data-root", imagenet_root)
    assert message == ""
    table = table.replace(str(imagenet_root), "ROOT")
    table = re.sub("digest [0-9a-f]{64}", "digest DIGEST", table)
    table = re.sub(r"\b[0-9a-f]{8}\b", "########", table)  # JPEG's sizes are Pillow's
    assert table == (GOLDEN / "data_check.txt").read_text()


def test_all_that_is_missing_is_reported_at_once(
    data: Carft, linked_imagenet: Callable[..., Path]
) -> None:
    root = linked_imagenet("imagenet-r")
    (root / "sketch").unlink()
    (root / "imagenet-a").unlink()
    check = ["check", "imagenet", "--data-root", root]
    printed, message = data(*check, code=2)
    assert printed == f"imagenet in {root}\n"
    assert "sketch (or imagenet-sketch) with <wnid>/<image>, 50,889 images; from" in message
    assert "imagenet-a with <wnid>/<image>" in message
    assert "name those that you have" in message
    data(*check, "--set", "data.shifts=[v2, r, objectnet]")


def test_a_wrong_tree_is_told(data: Carft, linked_imagenet: Callable[..., Path]) -> None:
    root = linked_imagenet("imagenet/train")
    train = root / "imagenet/train"
    (train / "train").mkdir()
    for wnid in WNIDS:
        (train / wnid).rename(train / "train" / wnid)
    words = ("check", "imagenet", "--data-root", root, "--set", "data.shifts=[r]", "--json")
    output = data(*words, code=2)
    message = "has its class folders one level too deep, in train/: move them up"
    assert f"imagenet/train: {message}" in output.err
    assert output.err.count(message) == 1
    assert (output.json["splits"], output.json["digest"]) == ({}, None)
    assert message in output.json["refusal"]


def test_a_family_file_is_told_of_split_by_split(
    data: Carft, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("mine.family.yaml").write_text(
        "root: photos\ntest: test\nshifts: {night: shifts/dark, both: [test, shifts/dark]}\n"
    )
    right = data("check", "mine.family.yaml")
    assert right.err == ""
    assert right.out.startswith(f"mine in {photos}\n")
    assert re.search(r"shifts/night +4 +2/2  [0-9a-f]{8}  ok\nshifts/both +10 +3/3 ", right.out)
    shutil.rmtree(photos / "shifts")
    wrong = data("check", "mine.family.yaml", "--json", code=2)
    assert "mine.family.yaml:3: shifts.night: there is no shifts/dark/" in wrong.err


def test_every_image_is_decoded_once_and_bad_ones_are_named_and_skipped_where_others_are_left(
    data: Carft, photos: Path
) -> None:
    bad = photos / "test/cat/1.png"
    bad.write_bytes(bad.read_bytes()[:40])
    read = ["check", "image_folder", "--data-root", photos, "--read"]
    first = data(*read, "--json", code=2)
    assert first.json["refusal"].startswith("data.bad_files: 1 image cannot be read")
    assert list(first.json["bad"]["test"]) == ["test/cat/1.png"]
    assert first.json["bad"]["train"] == {}
    assert first.err.splitlines()[:3] == [
        "train: 12 images, 0 cannot be read",
        "test: 6 images, 1 cannot be read",
        "shifts/dark: 4 images, 0 cannot be read",
    ]
    assert re.search(r"^test +6 .*  unreadable images$", data(*read, code=2).out, re.MULTILINE)
    again = data(*read[:-1], code=2)
    assert re.search(r"bad_files: 1 image .*\n .*test/cat/1\.png cannot be read", again.err)
    check = ["check", "image_folder", "--data-root", photos, "--set", "data.bad_files=skip"]
    assert "! 1 image of test cannot be read and was skipped" in data(*check).out
    for file in (photos / "test/cat").iterdir():
        file.write_bytes(b"no image")
    message = data(*read, "--set", "data.bad_files=skip", code=2).err
    assert "data.bad_files: test has no image of cat that is whole" in message
    shutil.rmtree(photos / "test")
    assert "test/ is missing" in data(*read, code=2).err
