"""A listing of images that is remembered, and is never wrong because of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from carft_sweep.carft_core.data import listing as folders
from carft_sweep.carft_core.data.listing import read_manifest
from carft_sweep.carft_core.files import user_cache
from tests.carft_core.refusals import refused
from tests.carft_core.stand_ins import watched

LONG_AGO = 1_000_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two class folders that changed last long ago, as data sets have."""
    for path, content in {"b/2.jpg": b"22", "b/1.JPEG": b"1", "a/3.png": b"333"}.items():
        add(tmp_path / path, content)
    add(tmp_path / "a" / "notes.txt", b"no image")
    add(tmp_path / "a" / ".hidden.jpg", b"x")
    settle(tmp_path)
    return tmp_path


def add(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)


def settle(folder: Path, seconds: int = LONG_AGO) -> None:
    for path in folder.iterdir():
        os.utime(path, (seconds, seconds))


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The class folders whose files were listed."""
    return watched(monkeypatch, folders, "_images", lambda folder: folder.name)


def test_images_stand_in_the_order_of_folders_and_names_and_are_looked_at_once(
    folder: Path, listed: list[str]
) -> None:
    before = sorted(folder.rglob("*"))
    manifest = read_manifest(folder)
    assert (manifest.sizes, manifest.empty) == ((3, 1, 2), ())
    assert manifest.paths == ("a/3.png", "b/1.JPEG", "b/2.jpg")
    assert dict(manifest.counts) == {"a": 1, "b": 2}
    groups = {name: list(paths) for name, paths in manifest.groups()}
    assert groups == {"a": ["a/3.png"], "b": ["b/1.JPEG", "b/2.jpg"]}
    assert sorted(listed) == ["a", "b"]
    assert read_manifest(folder) == manifest
    assert len(listed) == 2
    assert sorted(folder.rglob("*")) == before, "nothing is written into the data"


def test_folders_are_listed_alone_or_deeper_as_asked_for(folder: Path, listed: list[str]) -> None:
    manifest = read_manifest(folder, ["b"])
    assert (manifest.paths, manifest.sizes) == (("b/1.JPEG", "b/2.jpg"), (1, 2))
    assert (read_manifest(folder, ["b"]), listed) == (manifest, ["b"])
    (folder / "b" / "deep").mkdir()
    add(folder / "b" / "deep" / "4.jpg", b"4444")
    settle(folder / "b")
    settle(folder)
    manifest = read_manifest(folder, ("b/deep", "a", "gone"))
    assert manifest.paths == ("b/deep/4.jpg", "a/3.png")
    listed.clear()
    assert (read_manifest(folder, ("b/deep", "a", "gone")), listed) == (manifest, [])
    assert read_manifest(folder, ["a", "b"]) == read_manifest(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda b: add(b / "0.jpg"),
        lambda b: (b / "1.JPEG").unlink(),
        lambda b: (b / "1.JPEG").rename(b / "9.JPEG"),
    ],
    ids=["add", "remove", "rename"],
)
def test_only_a_folder_that_changed_is_listed_anew(
    folder: Path, listed: list[str], change: Callable[[Path], object]
) -> None:
    first = read_manifest(folder)
    listed.clear()
    change(folder / "b")
    second = read_manifest(folder)
    assert listed == ["b"]
    assert second.digest != first.digest
    files = sorted(f"b/{file.name}" for file in (folder / "b").iterdir())
    assert list(second.paths) == ["a/3.png", *files]
    read_manifest(folder)
    assert listed == ["b", "b"], "another file may come within the same tick of the clock"


def test_a_class_folder_that_comes_or_goes_is_seen(folder: Path) -> None:
    first = read_manifest(folder)
    add(folder / "c" / "1.jpg")
    assert read_manifest(folder).counts == {"a": 1, "b": 2, "c": 1}
    (folder / "c" / "1.jpg").unlink()
    (folder / "c").rmdir()
    assert read_manifest(folder) == first


def test_the_digest_knows_paths_and_sizes_not_places(folder: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("a", "b"):
        (folder / name).rename(moved / name)
    again = read_manifest(moved)
    add(moved / "b" / "2.jpg", b"333")
    (moved / "b" / "1.JPEG").unlink()
    add(moved / "b" / "1.JPEG", b"1")
    settle(moved, LONG_AGO + 1)
    assert read_manifest(moved).digest != again.digest


def test_what_holds_nothing_is_told_and_links_are_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "b").symlink_to(folder / "b")
    assert read_manifest(tmp_path / "linked").paths == ("b/1.JPEG", "b/2.jpg")
    add(folder / "a" / "0.jpg", b"")
    (folder / "a" / "1.jpg").symlink_to(folder / "nowhere.jpg")
    assert read_manifest(folder, ["a"]).empty == ("a/0.jpg", "a/1.jpg")


def test_a_cache_that_is_damaged_or_cannot_be_written_costs_time_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read_manifest(folder)
    for file in (user_cache() / "manifests").iterdir():
        file.write_bytes(b"PAR1 and then nothing")
    assert read_manifest(folder) == first
    add(tmp_path / "file")
    monkeypatch.setenv("CARFT_CACHE", str(tmp_path / "file"))
    assert len(read_manifest(folder).paths) == 3


def test_a_name_that_is_no_text_is_refused_by_name(folder: Path) -> None:
    (folder / "a" / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    refused(r"udcff\.jpg' is not a name in UTF-8", read_manifest, folder)
