"""A listing of images that is remembered, and is never wrong because of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from carft_sweep.carft_core.data import listing as folders
from carft_sweep.carft_core.data.listing import read_manifest
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import user_cache

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
    names: list[str] = []
    real = folders._images

    def counted(folder: Path) -> folders.Files:
        names.append(folder.name)
        return real(folder)

    monkeypatch.setattr(folders, "_images", counted)
    return names


def test_one_of_the_folders_may_be_listed_alone(folder: Path, listed: list[str]) -> None:
    found = read_manifest(folder, ["b"])
    assert (found.paths, found.sizes) == (("b/1.JPEG", "b/2.jpg"), (1, 2))
    assert read_manifest(folder, ["b"]) == found
    assert listed == ["b"]


def test_images_stand_in_the_order_of_folders_and_names(folder: Path) -> None:
    found = read_manifest(folder)
    assert found.sizes == (3, 1, 2)
    assert found.paths == ("a/3.png", "b/1.JPEG", "b/2.jpg")
    assert dict(found.counts) == {"a": 1, "b": 2}
    assert [(name, list(paths)) for name, paths in found.groups()] == [
        ("a", ["a/3.png"]),
        ("b", ["b/1.JPEG", "b/2.jpg"]),
    ]
    assert found.empty == ()


def test_folders_that_lie_deeper_are_listed_as_they_are_asked_for(
    folder: Path, listed: list[str]
) -> None:
    (folder / "b" / "deep").mkdir()
    add(folder / "b" / "deep" / "4.jpg", b"4444")
    settle(folder / "b")
    settle(folder)
    asked = ("b/deep", "a", "gone")
    found = read_manifest(folder, asked)
    assert found.paths == ("b/deep/4.jpg", "a/3.png")
    listed.clear()
    assert read_manifest(folder, asked) == found
    assert listed == []
    assert read_manifest(folder, ["a", "b"]) == read_manifest(folder)


def test_the_second_time_no_file_is_looked_at(folder: Path, listed: list[str]) -> None:
    first = read_manifest(folder)
    assert sorted(listed) == ["a", "b"]
    listed.clear()
    assert read_manifest(folder) == first
    assert listed == []


@pytest.mark.parametrize("change", ["add", "remove", "rename"])
def test_only_a_folder_that_changed_is_listed_anew(
    folder: Path, listed: list[str], change: str
) -> None:
    first = read_manifest(folder)
    listed.clear()
    if change == "add":
        add(folder / "b" / "0.jpg")
    elif change == "remove":
        (folder / "b" / "1.JPEG").unlink()
    else:
        (folder / "b" / "1.JPEG").rename(folder / "b" / "9.JPEG")
    second = read_manifest(folder)
    assert listed == ["b"]
    assert second.digest != first.digest
    assert second.paths[0] == "a/3.png"
    files = [f"{one.parent.name}/{one.name}" for one in sorted((folder / "b").iterdir())]
    assert list(second.paths[1:]) == files


def test_a_class_folder_that_comes_or_goes_is_seen(folder: Path) -> None:
    first = read_manifest(folder)
    add(folder / "c" / "1.jpg")
    assert read_manifest(folder).counts == {"a": 1, "b": 2, "c": 1}
    (folder / "c" / "1.jpg").unlink()
    (folder / "c").rmdir()
    assert read_manifest(folder) == first


def test_a_folder_that_has_just_changed_is_not_believed_the_next_time(
    folder: Path, listed: list[str]
) -> None:
    add(folder / "a" / "4.png")  # now, so another file may come within the same tick
    read_manifest(folder)
    listed.clear()
    read_manifest(folder)
    assert listed == ["a"]


def test_the_digest_knows_paths_and_sizes_not_places(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "moved"
    other.mkdir()
    for name in ("a", "b"):
        (folder / name).rename(other / name)
    again = read_manifest(other)
    add(other / "b" / "2.jpg", b"333")
    (other / "b" / "1.JPEG").unlink()
    add(other / "b" / "1.JPEG", b"1")
    settle(other, LONG_AGO + 1)
    assert read_manifest(other).digest != again.digest


def test_what_holds_nothing_is_told(folder: Path) -> None:
    add(folder / "a" / "0.jpg", b"")
    (folder / "a" / "1.jpg").symlink_to(folder / "nowhere.jpg")
    assert read_manifest(folder).empty == ("a/0.jpg", "a/1.jpg")


def test_links_to_folders_and_files_are_followed(folder: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "b").symlink_to(folder / "b")
    assert read_manifest(linked).paths == ("b/1.JPEG", "b/2.jpg")


def test_a_damaged_cache_is_made_anew(folder: Path) -> None:
    first = read_manifest(folder)
    for file in (user_cache() / "manifests").iterdir():
        file.write_bytes(b"PAR1 and then nothing")
    assert read_manifest(folder) == first


def test_a_cache_that_cannot_be_written_costs_time_only(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(tmp_path / "file")
    monkeypatch.setenv("CARFT_CACHE", str(tmp_path / "file"))
    assert len(read_manifest(folder).paths) == 3


def test_nothing_is_written_into_the_data(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    read_manifest(folder)
    assert sorted(folder.rglob("*")) == before


def test_a_name_that_is_no_text_is_refused_by_name(folder: Path) -> None:
    (folder / "a" / os.fsdecode(b"\xff.jpg")).write_bytes(b"x")
    with pytest.raises(RequestError, match=r"udcff\.jpg' is not a name in UTF-8"):
        read_manifest(folder)
