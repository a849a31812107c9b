"""`init`: which layouts it knows, what it says of them, and that what it writes can be run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.scaffold.write import class_names, family_name, quoted
from carft_sweep.sweeps.spec.document import parse
from carft_sweep.sweeps.spec.spec import load_spec
from tests.sweeps.conftest import Carft

pytestmark = pytest.mark.usefixtures("registries")

Tree = Mapping[str, int]
"""Folder of images -> how many."""
ICONS = (24, 20)
PHOTO = (320, 240)


def plant(root: Path, tree: Tree, size: tuple[int, int] = ICONS) -> Path:
    noise = np.random.default_rng(0)
    for folder, count in tree.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            # A row more for each, so that no two have one size in bytes.
            pixels = noise.integers(0, 256, (size[1] + index, size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{index}.png")
    return root


def classes(folders: Tree, names: str = "owl rook wren") -> Tree:
    return {f"{folder}/{name}": folders[folder] for folder in folders for name in names.split()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user is, with a home of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CARFT_HOME", str(tmp_path / "home"))
    return tmp_path


def begun(carft: Carft, *words: str) -> dict[str, Any]:
    """What `init --json` tells, once the two files have passed `check`."""
    report: dict[str, Any] = carft("init", *words, "--json").json
    carft("check", report["sweep"], "--set", "model={name: builtin}")
    return report


def declared(report: Mapping[str, Any]) -> Any:
    return parse(Path(report["family"]).read_text()).data


def counted(report: Mapping[str, Any]) -> dict[str, int]:
    return {split: sum(of.values()) for split, of in report["counts"].items()}


def test_our_own_layout(place: Path, carft: Carft) -> None:
    plant(place / "birds", classes({"train": 6, "val": 2, "test": 3, "shifts/night": 2}))
    report = begun(carft, "birds")
    assert counted(report) == {"train": 18, "val": 6, "test": 9, "night": 6}
    assert report["counts"]["night"] == {"owl": 2, "rook": 2, "wren": 2}
    assert report["assumed"] == []
    family = {
        **{"name": "birds", "root": "birds", "train": "train", "val": "val", "test": "test"},
        **{"shifts": {"night": "shifts/night"}, "domains": ["night"]},
        "class_names": {"owl": "owl", "rook": "rook", "wren": "wren"},
    }
    assert {key: declared(report)[key] for key in family} == family
    assert report["next"] == ["carft-sweep check birds.yaml", "carft-sweep run birds.yaml"]


def test_image_folders_val_becomes_the_test(place: Path, carft: Carft) -> None:
    plant(place / "birds", classes({"training": 6, "validation": 2}))
    report = begun(carft, "birds")
    assert counted(report) == {"train": 18, "test": 6}
    assert report["assumed"][0].startswith("took validation/ for the test, since there is none")
    assert declared(report)["test"] == "validation"
    doubt = "no shift is measured: a verdict says nothing of robustness; name shifts in the family"
    assert f"{doubt}, or in `data.shifts`" in report["doubts"]


def test_one_folder_of_classes_has_its_test_carved(place: Path, carft: Carft) -> None:
    plant(place / "birds", {"owl": 10, "rook": 10, "wren/brown": 5, "wren/grey": 5, "notes": 0})
    (place / "birds" / "notes" / "readme.txt").write_text("mine")
    report = begun(carft, "birds")
    assert report["layout"] == "classes"
    assert report["counts"] == {"train": {"owl": 10, "rook": 10, "wren": 10}}
    assert "took each folder for a class; there is no shift to measure" in report["assumed"]
    assert "left out the class notes: train has fewer than 3 images of it" in report["assumed"]
    family = declared(report)
    assert (family["train"], family["test_fraction"]) == (".", 0.2)
    assert family["exclude"] == ["notes"]


def test_of_domains_the_largest_is_in_distribution(place: Path, carft: Carft) -> None:
    plant(place / "birds", classes({"art": 5, "photo": 8}))
    plant(place / "birds", {**classes({"sketch": 4}, "owl wren"), "other/fish": 3, "other/crab": 3})
    report = begun(carft, "birds")
    assert report["layout"] == "domains"
    assert counted(report) == {"train": 24, "art": 15, "sketch": 8}
    assert report["assumed"][0].endswith(
        "photo, which has the most images, is in distribution; the shifts are art, sketch"
    )
    assert "left out other/: it has no folders of photo's" in report["assumed"]
    doubt = "the shift sketch has 2 of 3 classes, not rook"
    assert any(text.startswith(doubt) for text in report["doubts"])


def test_folders_around_it_are_looked_through(place: Path, carft: Carft) -> None:
    plant(place / "birds" / "v1" / "images", classes({"train": 3, "test": 1}))
    (place / "birds" / "docs").mkdir()
    report = begun(carft, "birds")
    assert declared(report)["root"] == "birds/v1/images"
    looked = "looked into {}/, the only folder with images in it"
    assert report["assumed"][:2] == [looked.format("v1"), looked.format("images")]


def test_folders_beside_train_with_its_classes_are_shifts(place: Path, carft: Carft) -> None:
    plant(place / "birds", classes({"train": 4, "test": 2, "by night": 2}))
    plant(place / "birds", {"fish/cod": 2, "fish/eel": 2})
    report = begun(carft, "birds")
    assert declared(report)["shifts"] == {"by_night": "by night"}
    assert "took by night/ for a shift: its folders are train's" in report["assumed"]
    assert "left out fish/: it has no folders of train's classes" in report["assumed"]


def test_classes_that_a_split_lacks_are_left_out(place: Path, carft: Carft) -> None:
    plant(place / "birds", classes({"train": 4, "test": 2, "val": 1, "shifts/x": 1}))
    plant(place / "birds", {"train/kiwi": 4, "val/kiwi": 1, "test/emu": 2, "shifts/x/kiwi": 2})
    plant(place / "birds", {"train/lone": 1, "test/lone": 1})
    report = begun(carft, "birds")
    assert sorted(report["counts"]["train"]) == ["owl", "rook", "wren"]
    assert sorted(declared(report)["exclude"]) == ["emu", "kiwi", "lone"]
    assert "left out the class kiwi: test/ has no images of it" in report["assumed"]
    assert "left out the class emu: train/ has no such class" in report["assumed"]


def test_what_looks_suspicious_is_told(place: Path, carft: Carft) -> None:
    root = plant(place / "birds", {"train/n01440764": 40, "train/n01443537": 3})
    plant(root, {"test/n01440764": 2, "test/n01443537": 1})
    (root / "train" / "loose.png").write_bytes((root / "test/n01440764/0.png").read_bytes())
    (root / "train/n01443537/IMG_7.HEIC").write_bytes(b"of a phone")
    doubts = "\n".join(begun(carft, "birds")["doubts"])
    for text in (
        "1 picture is left out, since .HEIC is not read; save it as JPEG: train/n01443537/IMG_7.H",
        "train has fewer than 10 images of n01443537",
        "the test is small: 3 images",
        "images outside the class folders of train/ are left out: 1",
    ):
        assert text in doubts, text


def test_copies_of_training_images_are_warned_of(place: Path, carft: Carft) -> None:
    root = plant(place / "birds", classes({"train": 6, "val": 2, "test": 3, "shifts/night": 2}))
    for copy in ("test/owl/a.png", "test/owl/b.png", "shifts/night/owl/a.png", "val/owl/a.png"):
        (root / copy).write_bytes((root / "train/owl/0.png").read_bytes())
    # Of the same size, but another image.
    other = bytearray((root / "train/rook/1.png").read_bytes())
    other[-1] ^= 1
    (root / "test/rook/z.png").write_bytes(other)
    begun(carft, "birds")
    copies = {
        "val/owl/a.png": "val has 1 of its 7 images",
        "test/owl/a.png": "test has 2 of its 12 images",
        "shifts/night/owl/a.png": "night has 1 of its 7 images",
    }
    check = ("check", "birds.yaml", "--set", "model={name: builtin}")
    for command in (check, ("data", "check", "birds.family.yaml")):
        printed = carft(*command).out
        for path, share in copies.items():
            source = f"such as {path}, which is train/owl/0.png: it measures memory"
            assert f"{share} from train, byte by byte, {source}" in printed


def test_what_only_its_owner_can_mend_is_told(place: Path, carft: Carft) -> None:
    root = plant(place / "birds", classes({"train": 4, "test": 2}))
    (root / "again").symlink_to(root)  # a circle, which ends
    (root / "train" / "owl" / "empty.png").touch()
    (root / "train" / "owl" / "gone.png").symlink_to(root / "nowhere.png")
    out = carft("init", "birds").out
    assert "To be corrected before it runs:\n  - train/owl/empty.png is empty\n" in out
    assert "  - train/owl/gone.png is a link to nothing\n" in out
    carft("check", "birds.yaml", "--set", "model={name: builtin}", code=2)
    for name in ("empty.png", "gone.png"):
        (root / "train" / "owl" / name).unlink()
    assert counted(begun(carft, "birds", "--force")) == {"train": 12, "test": 6}


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems hold UTF-8 names only")
def test_a_name_that_is_not_utf_8_is_told(place: Path, carft: Carft) -> None:
    root = plant(place / "birds", classes({"train": 4, "test": 2}))
    (root / "train" / "owl" / "0.png").rename(root / "train" / "owl" / os.fsdecode(b"\xff.png"))
    out = carft("init", "birds").out
    assert r"'train/owl/\udcff.png' is not a name in UTF-8; rename it" in out


def test_the_table_and_the_next_commands_are_printed(place: Path, carft: Carft) -> None:
    plant(place / "birds", classes({"train": 4, "test": 2, "shifts/night": 1}, "owl wren"))
    out = carft("init", "birds", "--out", "mine").out
    table = [["train", "test", "night"], ["owl", "4", "2", "1"], ["wren", "4", "2", "1"]]
    lines = [line.split() for line in out.splitlines()]
    at = lines.index(table[0])
    assert lines[at : at + 4] == [*table, ["all", "classes", "8", "4", "2"]]
    assert out.endswith(
        "Wrote mine/birds.family.yaml and mine/birds.yaml. Next:\n"
        "  carft-sweep check mine/birds.yaml\n  carft-sweep run mine/birds.yaml\n"
    )
    assert load_spec("mine/birds.yaml").trial["data"] == {"family": "birds"}
    assert parse(Path("mine/birds.family.yaml").read_text()).data["root"] == str(place / "birds")


def test_nothing_is_written_over_unless_it_is_forced(place: Path, carft: Carft) -> None:
    plant(place / "birds", classes({"train": 4, "test": 2}))
    begun(carft, "birds")
    Path("birds.yaml").write_text("mine")
    message = carft("init", "birds", code=2).err
    assert "birds.family.yaml and birds.yaml are in" in message
    assert "--force overwrites, --name and --out write elsewhere" in message
    assert Path("birds.yaml").read_text() == "mine"
    begun(carft, "birds", "--name", "others")
    begun(carft, "birds", "--force")


UNUSABLE: Mapping[str, Tree] = {
    "there is no image in": {},
    "has no folders of classes: put the images of each class into a folder": {".": 3},
    "has no folders of classes": {"owl": 3},
    "/train has no folders of classes": {"train": 3},
    "fewer than two classes can be used": {"train/owl": 3, "test/owl": 3},
    "fewer than two classes can be used; left out the 2 classes owl": {"owl": 2, "wren": 2},
}


def test_what_cannot_be_used_is_refused(place: Path, carft: Carft) -> None:
    for number, (message, tree) in enumerate(UNUSABLE.items()):
        (place / f"birds{number}").mkdir()
        plant(place / f"birds{number}", tree)
        assert message in carft("init", f"birds{number}", code=2).err
    message = carft("init", "nowhere", code=2).err
    assert "nowhere does not exist; `init` needs a folder of images" in message
    plant(place / "birds", classes({"train": 4, "test": 2}))
    assert "is not a folder" in carft("init", "birds/train/owl/0.png", code=2).err
    for name, why in (("Birds", "is no name for a family"), ("icon_shift", "is a family already")):
        assert f"--name {name} {why}" in carft("init", "birds", "--name", name, code=2).err
    assert not [*place.glob("*.yaml")]


def test_tiny_images_begin_with_the_built_in_model_and_others_do_not(place: Path) -> None:
    plant(place / "icons", classes({"train": 4, "test": 2}))
    plant(place / "photos", classes({"train": 4, "test": 2}), PHOTO)
    assert main(["init", "icons"]) == main(["init", "photos"]) == 0
    assert load_spec("icons.yaml").trial["model"] == {"name": "builtin"}
    photos = load_spec("photos.yaml")
    assert photos.trial["model"] == {"name": "ViT-B-32", "pretrained": "openai"}
    assert photos.seeds == (0, 1, 2, 3, 4)
    assert [item["name"] for item in photos.baselines] == ["zero_shot", "fine_tune"]


def test_a_family_gets_a_name_that_it_can_have_and_class_names_lose_numbers_but_stay_apart() -> (
    None
):
    names = {"Birds of 2024!": "birds_of_2024", "2024": "images_2024", "???": "images"}
    names["icon_shift"] = "my_icon_shift"
    assert {folder: family_name(folder, list(FAMILIES)) for folder in names} == names
    folders = ["001.Black_footed_Albatross", "2 cats", "7up", "1_dog", "2_dog"]
    readable = ["Black footed Albatross", "cats", "7up", "1_dog", "2_dog"]
    assert [*class_names(folders).values()] == readable


def test_a_text_is_written_so_that_it_is_read_again() -> None:
    texts = ("a b", "true", "1e5", "a: b", "#x", "it's", 'a "b" \\', "x\x85\t", "- a", "", "~")
    for text in (*texts, "日本"):
        assert parse(f"{{{quoted(text)}: [{quoted(text)}]}}").data == {text: [text]}
