"""`data list`, `data check`: what is said of data before any run."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

from carft_sweep.carft_core import data as families
from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.families import image_folder, imagenet
from carft_sweep.sweeps.cli import main
from tests.imagenet_tree import OBJECTNET, V2, WNIDS

GOLDEN = Path(__file__).parents[2] / "golden"
PARTS = ("imagenet/train", "imagenet/val", V2, "imagenet-r", "imagenet-a", "sketch", OBJECTNET)


class Told(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Data = Callable[..., Told]


pytestmark = pytest.mark.usefixtures("registries")


@pytest.fixture
def data(capsys: pytest.CaptureFixture[str]) -> Data:
    """Runs `carft-sweep data ...` in this process, which forgets what an earlier one opened."""

    def run(*words: object) -> Told:
        for module in (image_folder, imagenet):
            module._opened.cache_clear()
        families._prepared.cache_clear()
        code = main(["data", *map(str, words)])
        return Told(code, *capsys.readouterr())

    return run


@pytest.fixture
def changed(imagenet_root: Path, tmp_path: Path) -> Callable[..., Path]:
    """A data root that shares all folders with the tests' but for copies of its own."""

    def build(*own: str) -> Path:
        for part in PARTS:
            there = tmp_path / part
            there.parent.mkdir(exist_ok=True)
            if part in own:
                shutil.copytree(imagenet_root / part, there)
            else:
                there.symlink_to(imagenet_root / part)
        return tmp_path

    return build


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A tree of 3 classes, with a shift that has two of them."""
    root = tmp_path / "photos"
    for split, count in {"train": 4, "test": 2, "shifts/dark": 2}.items():
        for value, name in enumerate(("ant", "bee", "cat")):
            if (split, name) == ("shifts/dark", "bee"):
                continue
            (root / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = np.full((6, 6, 3), 40 * value + index, np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{index}.png")
    return root


def statuses(told: Told) -> dict[str, str]:
    return {name: split["status"] for name, split in told.json["splits"].items()}


# list


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_is_readable_at_every_width(
    data: Data, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    told = data("list", "imagenet")
    assert told.out == (GOLDEN / f"data_list_{width}.txt").read_text()
    assert max(map(len, told.out.splitlines())) <= width


def test_every_family_is_listed_and_looked_for_below_the_root(
    data: Data, changed: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = changed()
    (root / "sketch").unlink()
    monkeypatch.setenv("CARFT_DATA", str(root))
    told = data("list")
    for name in FAMILIES:
        assert f"{name}: " in told.out
    assert re.search(r"icon_shift: .*\n.*\n  reads nothing below the data root\n", told.out)
    assert re.search(r"  sketch +50,889  no ", told.out)
    assert re.search(r"  r +30,000  yes ", told.out)
    assert f"Data root: {root}\n" in told.out
    splits = data("list", "imagenet", "--json").json["families"][0]["splits"]
    assert splits["sketch"]["found"] is None
    assert splits["r"] == {
        "folders": ["imagenet-r"],
        "layout": "<wnid>/<image>",
        "origin": "https://github.com/hendrycks/imagenet-r",
        "images": 30_000,
        "found": str(root / "imagenet-r"),
    }


def test_the_list_has_what_is_imported_and_declared(
    data: Data, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("mine.family.yaml").write_text("root: photos\ntest: test\nsummary: insects\n")
    told = data("list", "mine.family.yaml")
    assert told.out.startswith("mine: insects\n  reads nothing below the data root; its images lie")
    assert data("list", "--import", "mine.family.yaml", "--json").json["families"][-1] == {
        "family": "mine",
        "summary": "insects",
        "place": str(photos),
        "splits": {},
    }


def test_a_family_or_root_that_is_not_there_is_refused(data: Data, tmp_path: Path) -> None:
    assert "did you mean 'imagenet'?" in data("list", "imagnet").err
    told = data("list", "--data-root", tmp_path / "no")
    assert told.code == 2
    assert "no does not exist; it must hold a folder for each data set" in told.err


# check


def test_what_is_there_stands_in_one_table(data: Data, imagenet_root: Path) -> None:
    told = data("check", "imagenet", "--data-root", imagenet_root)
    assert (told.code, told.err) == (0, "")
    table = told.out.replace(str(imagenet_root), "ROOT")
    table = re.sub("digest [0-9a-f]{64}", "digest DIGEST", table)
    table = re.sub(r"\b[0-9a-f]{8}\b", "########", table)  # JPEG's sizes are Pillow's
    assert table == (GOLDEN / "data_check.txt").read_text()


def test_everything_that_is_missing_or_wrong_is_told_at_once(
    data: Data, changed: Callable[..., Path]
) -> None:
    root = changed("imagenet-r")
    (root / "sketch").unlink()
    (root / "imagenet-a").unlink()
    told = data("check", "imagenet", "--data-root", root)
    assert (told.code, told.out) == (2, f"imagenet in {root}\n")
    assert "sketch (or imagenet-sketch) with <wnid>/<image>, 50,889 images; from" in told.err
    assert "imagenet-a with <wnid>/<image>" in told.err
    assert "name those that you have" in told.err
    rest = ["--set", "data.shifts=[v2, r, objectnet]"]
    assert data("check", "imagenet", "--data-root", root, *rest).code == 0
    shutil.rmtree(root / "imagenet-r" / "n01443537")
    told = data("check", "imagenet", "--data-root", root, *rest)
    assert told.code == 2
    assert "imagenet-r: lacks 1 of 200 class folders: n01443537" in told.err


def deeper(folder: Path) -> None:
    inner = folder / folder.name
    inner.mkdir()
    for one in WNIDS:
        (folder / one).rename(inner / one)


def lacking(folder: Path) -> None:
    shutil.rmtree(folder / WNIDS[3])


def emptied(folder: Path) -> None:
    next((folder / WNIDS[3]).iterdir()).write_bytes(b"")


def swapped(folder: Path) -> None:
    """As if the folders had been filled by another order of the classes."""
    (folder / WNIDS[0]).rename(folder / "aside")
    (folder / WNIDS[1]).rename(folder / WNIDS[0])
    (folder / "aside").rename(folder / WNIDS[1])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (deeper, "has its class folders one level too deep, in train/: move them up"),
        (lacking, f"lacks 1 of 1000 class folders: {WNIDS[3]}"),
        (emptied, f"has files that are empty or links to nothing: {WNIDS[3]}/{WNIDS[3]}_"),
        (swapped, "has 6 images in the folder of another class than their names say: n01440764/n"),
    ],
)
def test_a_wrong_tree_is_told(
    data: Data, changed: Callable[..., Path], spoil: Callable[[Path], None], said: str
) -> None:
    root = changed("imagenet/train")
    spoil(root / "imagenet/train")
    told = data("check", "imagenet", "--data-root", root, "--set", "data.shifts=[r]", "--json")
    assert told.code == 2
    assert f"imagenet/train: {said}" in told.err
    assert told.err.count(said) == 1
    assert (told.json["splits"], told.json["digest"]) == ({}, None)
    assert said in told.json["refusal"]


def test_classes_that_were_swapped_are_found_by_the_digest(
    data: Data, changed: Callable[..., Path], imagenet_root: Path
) -> None:
    """Names of V2's files do not tell their class, and the counts are right."""
    only = ["--set", "data.shifts=[v2]"]
    theirs = data("check", "imagenet", "--data-root", imagenet_root, *only, "--json").json
    root = changed(V2)
    mine = ["check", "imagenet", "--data-root", root, *only]
    assert theirs["digest"] in data(*mine).out
    (root / V2 / "7").rename(root / V2 / "aside")
    (root / V2 / "8").rename(root / V2 / "7")
    (root / V2 / "aside").rename(root / V2 / "8")
    told = data(*mine, "--json")
    assert told.json["digest"] != theirs["digest"]
    splits = theirs["splits"]
    differ = [
        name for name, it in told.json["splits"].items() if it["digest"] != splits[name]["digest"]
    ]
    assert differ == ["shifts/v2"]


def test_a_users_own_tree_is_told_of_split_by_split(data: Data, photos: Path) -> None:
    mine = ["check", "image_folder", "--data-root", photos, "--json"]
    right = data(*mine)
    assert statuses(right) == {"train": "ok", "test": "ok", "shifts/dark": "ok"}
    assert right.json["splits"]["shifts/dark"]["expected_classes"] == 2
    (photos / "shifts/dark/bat").mkdir()
    (photos / "train/ant/0.png").write_bytes(b"")
    wrong = data(*mine)
    assert (wrong.code, wrong.json["splits"]) == (2, {})
    assert "train/ant/0.png is empty" in wrong.err
    assert "shifts/dark/ has folders that are no class of train: bat" in wrong.err


def test_a_family_file_is_told_of_split_by_split(
    data: Data, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos.parent)
    Path("mine.family.yaml").write_text(
        "root: photos\ntest: test\nshifts: {night: shifts/dark, both: [test, shifts/dark]}\n"
    )
    right = data("check", "mine.family.yaml")
    assert (right.code, right.err) == (0, "")
    assert right.out.startswith(f"mine in {photos}\n")
    assert re.search(r"shifts/night +4 +2/2  [0-9a-f]{8}  ok\nshifts/both +10 +3/3 ", right.out)
    shutil.rmtree(photos / "shifts")
    wrong = data("check", "mine.family.yaml", "--json")
    assert wrong.code == 2
    assert "mine.family.yaml:3: shifts.night: there is no shifts/dark/" in wrong.err
    other = photos.parent / "cut.family.yaml"
    other.write_text("root: photos\ntest_fraction: 0.3\n")
    found = data("check", other, "--json").json["splits"]
    assert [found[name]["images"] for name in ("train", "test")] == [9, 3]
    assert found["train"]["digest"] != found["test"]["digest"]


def test_what_is_asked_of_data_is_checked_at_once(data: Data, photos: Path) -> None:
    told = data("check", "imagnet", "--set", "optim.lr=1", "--set", "data.shfts=[]")
    assert told.code == 2
    assert "--set optim.lr=1: only fields of data count here" in told.err
    assert "--set data.shfts=[]: unknown key" in told.err
    told = data("check", "imagnet")
    assert told.err.startswith("carft-sweep: imagnet: data.family: unknown family 'imagnet'; did")
    told = data("check", "image_folder", "--data-root", photos, "--set", "data.val_fraction=2")
    assert "--set data.val_fraction=2: data.val_fraction: must be less than 1, got 2" in told.err
    told = data("check", "--import", "nowhere_at_all", "imagenet")
    assert "no module 'nowhere_at_all' is installed" in told.err
    assert (
        "data check: unknown option '--jsn'; did you mean '--json'?"
        in data("check", "--jsn", "x").err
    )
    assert "data: unknown command 'chek'; did you mean 'check'?" in data("chek").err


# check --read


def test_every_image_is_decoded_once_and_bad_ones_are_named(data: Data, photos: Path) -> None:
    bad = photos / "test/cat/1.png"
    bad.write_bytes(bad.read_bytes()[:40])
    read = ["check", "image_folder", "--data-root", photos, "--read"]
    first = data(*read, "--json")
    assert first.code == 0
    assert first.json["refusal"] is None
    assert list(first.json["bad"]["test"]) == ["test/cat/1.png"]
    assert first.json["bad"]["train"] == {}
    assert first.err.splitlines() == [
        "train: 12 images, 0 cannot be read",
        "test: 6 images, 1 cannot be read",
        "shifts/dark: 4 images, 0 cannot be read",
    ]
    again = data(*read)
    assert again.code == 0
    assert re.search(r"! test/cat/1\.png: .*cannot be read as an image", again.out)
    assert "set data.bad_files: skip, which leaves out 1 of test, and says so" in again.out
    check = ["check", "image_folder", "--data-root", photos, "--set", "data.bad_files=skip"]
    assert "! 1 image of test cannot be read and was skipped" in data(*check).out


def test_a_terminal_sees_how_far_it_is(
    data: Data, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes standard error for a terminal then
    told = data("check", "image_folder", "--data-root", photos, "--read")
    assert re.search(r"shifts/dark .*4/4", told.err)
    assert "cannot be read" not in told.err
    assert "Every image can be read.\n" in told.out


def test_what_not_even_skipping_can_use_is_refused(data: Data, photos: Path) -> None:
    for file in (photos / "test/cat").iterdir():
        file.write_bytes(b"no image")
    told = data("check", "image_folder", "--data-root", photos, "--read")
    assert told.code == 2
    assert "A run refuses these data, with data.bad_files: skip as well." in told.out
    assert "data.bad_files: test has no image of cat that is whole" in told.err
    shutil.rmtree(photos / "test")
    told = data("check", "image_folder", "--data-root", photos, "--read")
    assert told.code == 2
    assert "test/ is missing" in told.err


def test_of_many_bad_images_the_first_are_named(
    data: Data, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("carft_sweep.sweeps.cli.data.NAMED", 1)
    for name in ("test/cat/1.png", "train/ant/0.png", "shifts/dark/ant/0.png"):
        (photos / name).write_bytes(b"no image")
    told = data("check", "image_folder", "--data-root", photos, "--read")
    assert told.out.count("cannot be read as an image") == 1
    assert "  and 2 more; --json names them all\n" in told.out
