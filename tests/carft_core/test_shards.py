"""Splits in tar shards are the same images as in folders, and are read by their place."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from carft_sweep.carft_core.data import FamilyData, Transform, folders, open_data
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.image_folder import IMAGE_FOLDER
from carft_sweep.carft_core.data.loader import Batches, Loader, Passes
from carft_sweep.carft_core.data.splits import bad_files
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.testing import check_family
from tests.image_files import write_tar

CLIP = Transform(16, (0.5,) * 3, (0.25,) * 3)
CLASSES = ("bell", "cat")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Ten images to train on in two shards, four to test on, and a shift in folders."""
    root = tmp_path / "data"
    for shard in range(2):
        members: dict[str, bytes] = {}
        for number in range(5):
            members[f"{shard}{number}.jpg"] = jpeg(10 * shard + number)
            members[f"{shard}{number}.cls"] = CLASSES[number % 2].encode()
        write_tar(root / f"train/set-train-{shard:04d}.tar", members)
    members = {}
    for number in range(4):
        members[f"t/{number}.json"] = json.dumps({"label": CLASSES[number % 2]}).encode()
        members[f"t/{number}.jpeg"] = jpeg(100 + number)
    write_tar(root / "test/set.tar", members)
    for name in CLASSES:
        file = root / "shifts/dark" / name / "0.jpg"
        file.parent.mkdir(parents=True)
        file.write_bytes(jpeg(200))
    return root


def opened(root: Path) -> FamilyData:
    IMAGE_FOLDER.open.__globals__["_opened"].cache_clear()
    return IMAGE_FOLDER.open(DataConfig(family="image_folder", root=str(root)))


def mistakes(root: Path) -> str:
    with pytest.raises(RequestError) as told:
        opened(root)
    return str(told.value)


def test_shards_hold_the_images_and_labels_that_were_written(root: Path) -> None:
    data = opened(root)
    assert data.class_names == CLASSES
    ones = [f"train/set-train-{s:04d}.tar/{s}{n}.jpg" for s in (0, 1) for n in (0, 2, 4)]
    twos = [f"train/set-train-{s:04d}.tar/{s}{n}.jpg" for s in (0, 1) for n in (1, 3)]
    assert data.train.ids == (*ones, *twos)
    assert data.train.labels.tolist() == [0] * 6 + [1] * 4
    assert data.id_test.ids == tuple(f"test/set.tar/t/{n}.jpeg" for n in (0, 2, 1, 3))
    plain = Transform(20, (0.0,) * 3, (1.0,) * 3)
    for seed, index in ((0, 0), (12, 4), (1, 6), (13, 9)):
        (view,) = data.train.views([index], transform=plain, seed=None, epoch=0)
        with Image.open(io.BytesIO(jpeg(seed))) as image:  # 24 wide, so 2 go on each side
            shown = np.asarray(image)[:, 2:22]
        assert np.array_equal(view.permute(1, 2, 0).numpy(), shown)


def test_views_are_those_of_the_same_images_in_folders(root: Path, tmp_path: Path) -> None:
    data = opened(root)
    folders = tmp_path / "folders"
    shutil.copytree(root / "shifts", folders / "shifts")
    for split in (data.train, data.id_test):
        for item, label in zip(split.ids, split.labels.tolist(), strict=True):
            shard, _, name = item.partition(".tar/")
            place = folders / shard.partition("/")[0] / CLASSES[label] / f"{shard[-1]}-{name}"
            place.parent.mkdir(parents=True, exist_ok=True)
            with tarfile.open(root / f"{shard}.tar") as tar:
                file = tar.extractfile(name)
                assert file is not None
                place.write_bytes(file.read())
    same = opened(folders)
    for one, other in ((data.train, same.train), (data.id_test, same.id_test)):
        assert one.labels.tolist() == other.labels.tolist()
        for seed in (None, 3):
            there = range(len(one))
            assert torch.equal(
                one.views(there, transform=CLIP, seed=seed, epoch=2),
                other.views(there, transform=CLIP, seed=seed, epoch=2),
            )


def test_reduced_views_are_those_of_the_same_images_in_folders(tmp_path: Path) -> None:
    rows = np.linspace(0, 255, 600)[:, None, None] * np.ones((1, 800, 3))
    file = io.BytesIO()
    Image.fromarray(rows.astype(np.uint8)).save(file, "JPEG", quality=95)
    for split in ("train", "test"):
        members: dict[str, bytes] = {}
        for number, name in enumerate(CLASSES):
            image = tmp_path / "folders" / split / name / "0.jpg"
            image.parent.mkdir(parents=True)
            image.write_bytes(file.getvalue())
            members |= {f"{number}.jpg": file.getvalue(), f"{number}.cls": name.encode()}
        write_tar(tmp_path / "shards" / split / "0.tar", members)
    sources = [
        IMAGE_FOLDER.open(DataConfig(family="image_folder", root=str(tmp_path / kind))).train
        for kind in ("folders", "shards")
    ]
    for seed in (None, 0):
        of_folders, of_shards, whole = (
            split.views([0], transform=replace(CLIP, reduced=reduced), seed=seed, epoch=1)
            for split, reduced in zip([*sources, sources[0]], [True, True, False], strict=True)
        )
        assert torch.equal(of_folders, of_shards)
        difference = (of_folders.int() - whole.int()).abs().float().mean()
        assert 0 < difference < 1


def test_shards_keep_the_contract_of_families(root: Path) -> None:
    check_family(IMAGE_FOLDER, DataConfig(family="image_folder", root=str(root), val_fraction=0.3))


def test_workers_load_the_same_views(root: Path) -> None:
    def load(workers: int) -> list[torch.Tensor]:
        train = opened(root).train
        plan = Passes(len(train), 3, 1)
        with Loader({"train": train}, transform=CLIP, workers=workers) as loader:
            batches = loader.steps(Batches("train", plan, 1), range(plan.steps))
            return [batch.images for batch in batches]

    assert all(torch.equal(one, other) for one, other in zip(load(0), load(2), strict=True))


def test_shards_are_indexed_once_and_anew_when_one_changes(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = set(root.rglob("*"))
    first = opened(root)
    assert set(root.rglob("*")) == before
    assert len([*cache.glob("shards/*.parquet")]) == 2
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", lambda *_: pytest.fail("read again"))
        again = opened(root)
    assert again.train.ids == first.train.ids
    assert again.digest == first.digest
    write_tar(
        root / "test/set.tar",
        {"a.jpg": jpeg(1), "a.cls": b"cat", "b.jpg": jpeg(2), "b.cls": b"bell"},
    )
    other = opened(root)
    assert other.id_test.ids == ("test/set.tar/b.jpg", "test/set.tar/a.jpg")
    assert other.digest != first.digest


def test_moving_the_root_changes_nothing(root: Path) -> None:
    first = opened(root)
    moved = root.rename(root.with_name("moved"))
    assert opened(moved).digest == first.digest


def test_labels_that_are_numbers_keep_their_order_and_want_names(root: Path) -> None:
    shards = {"train": (10, 2, 0, 10, 2, 0), "test": (0, 2, 10)}
    for split, labels in shards.items():
        shutil.rmtree(root / split)
        members: dict[str, bytes] = {}
        for number, label in enumerate(labels):
            members[f"{number}.jpg"] = jpeg(number)
            members[f"{number}.cls"] = f"{label}\n".encode()
        write_tar(root / split / "0.tar", members)
    shutil.rmtree(root / "shifts")
    problems = mistakes(root)
    assert "train/ has numbers as labels: classes.json must say what they mean" in problems
    (root / "classes.json").write_text('{"0": "bell", "2": "cat", "10": "dog"}')
    data = opened(root)
    assert data.class_names == ("bell", "cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.train.ids[0] == "train/0.tar/2.jpg"


@pytest.mark.parametrize(
    ("members", "told"),
    [
        (
            {"a.jpg": b"x", "b.jpg": b"x", "b.cls": b"cat"},
            "test/set.tar says no label of a (1 images): expected <key>.cls with a label in it, or "
            "<key>.json with a field label",
        ),
        ({"a.jpg": b"x", "a.json": b'{"caption": "a cat"}'}, "says no label of a"),
        ({"a.jpg": b"x", "a.json": b"no json"}, "says no label of a"),
        ({"a.jpg": b"x", "a.json": b"[1]"}, "says no label of a"),
        ({"a.jpg": b"x", "a.cls": b"\xff"}, "says no label of a"),
        ({"a.jpg": b"x", "a.png": b"x", "a.cls": b"cat"}, "test/set.tar has two images named a"),
        ({"a.jpg": b"", "a.cls": b"cat"}, "test/set.tar: a.jpg is empty"),
        ({"a.seg.png": b"x", "a.cls": b"cat"}, "test/ has shards without images"),
        ({"a.jpg": b"x", "a.cls": b"dog"}, "test/ has folders that are no class of train: dog"),
    ],
)
def test_a_mistake_in_a_shard_is_named(root: Path, members: dict[str, bytes], told: str) -> None:
    write_tar(root / "test/set.tar", members)
    assert told in mistakes(root)


def test_what_is_wrong_is_told_again(root: Path) -> None:
    write_tar(root / "test/set.tar", {"a.jpg": b"x"})
    assert mistakes(root) == mistakes(root)


@pytest.mark.parametrize("kept", [0, 700, 5000])
def test_a_damaged_shard_is_named(root: Path, kept: int) -> None:
    shard = root / "train/set-train-0001.tar"
    shard.write_bytes(shard.read_bytes()[:kept])
    assert "train/set-train-0001.tar cannot be read as a tar file" in mistakes(root)


def test_folders_beside_shards_are_refused(root: Path) -> None:
    (root / "train/cat").mkdir()
    assert "train/ has shards and folders (cat): keep one of them" in mistakes(root)


def test_a_bad_image_in_a_shard_is_named_or_skipped(root: Path) -> None:
    members = {f"{n}.cls": CLASSES[n % 2].encode() for n in range(4)}
    members |= {f"{n}.jpg": jpeg(n)[: 200 if n == 3 else None] for n in range(4)}
    write_tar(root / "test/set.tar", members)
    data = opened(root)
    with pytest.raises(RequestError, match=r"test/set\.tar/3\.jpg in .*/test/set\.tar cannot be"):
        data.id_test.views(range(4), transform=CLIP, seed=None, epoch=0)
    config = DataConfig(family="image_folder", root=str(root), bad_files="skip", val_fraction=0.3)
    assert open_data(config).id_test.ids == tuple(f"test/set.tar/{n}.jpg" for n in (0, 2, 1))


def test_a_shard_that_went_away_is_named(root: Path) -> None:
    data = opened(root)
    (root / "test/set.tar").unlink()
    with pytest.raises(RequestError, match=r"test/set\.tar cannot be read as an image \(\[Errno 2"):
        data.id_test.views([0], transform=CLIP, seed=None, epoch=0)


def add_raw(shard: Path, member: tarfile.TarInfo, content: bytes = b"") -> None:
    """A member in GNU's format at the end of a shard, whatever its header says of its size."""
    shard.parent.mkdir(parents=True, exist_ok=True)
    before = shard.read_bytes().rstrip(b"\0") if shard.exists() else b""
    before += bytes(-len(before) % tarfile.BLOCKSIZE)
    header = member.tobuf(tarfile.GNU_FORMAT)
    padding = bytes(-len(content) % tarfile.BLOCKSIZE)
    shard.write_bytes(before + header + content + padding + bytes(2 * tarfile.BLOCKSIZE))


def sparse(name: str, size: int) -> tarfile.TarInfo:
    """A member that holds nothing and is `size` bytes of zeros to whoever extracts it."""

    class Sparse(tarfile.TarInfo):
        def tobuf(self, *_: object, **__: object) -> bytes:
            header = bytearray(super().tobuf(tarfile.GNU_FORMAT))
            real = bytes([0x80, *size.to_bytes(11, "big")])
            header[386:398] = real  # one piece, at the end
            header[398:410] = b"00000000000\0"
            header[483:495] = real
            header[148:156] = b" " * 8
            header[148:156] = b"%06o\0 " % sum(header)
            return bytes(header)

    member = Sparse(name)
    member.type = tarfile.GNUTYPE_SPARSE
    return member


@pytest.mark.parametrize("suffix", ["cls", "json", "jpg"])
def test_a_sparse_member_is_named_and_not_filled_up(root: Path, suffix: str) -> None:
    write_tar(root / "test/set.tar", {"a.jpg": jpeg(0), "a.cls": b"cat"})
    add_raw(root / "test/set.tar", sparse(f"bomb.{suffix}", 1 << 50))
    tracemalloc.start()
    problems = mistakes(root)
    assert tracemalloc.get_traced_memory()[1] < 1 << 26
    tracemalloc.stop()
    assert f"test/set.tar: bomb.{suffix} is a link, sparse or another special member" in problems


def test_a_linked_image_is_named(root: Path) -> None:
    member = tarfile.TarInfo("b.jpg")
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
    add_raw(root / "test/set.tar", member)
    assert "test/set.tar: b.jpg is a link, sparse or another special member" in mistakes(root)


@pytest.mark.parametrize("suffix", ["cls", "json"])
def test_a_label_as_large_as_a_file_is_named(root: Path, suffix: str) -> None:
    write_tar(root / "test/set.tar", {"a.jpg": jpeg(0), f"a.{suffix}": b" " * ((1 << 16) + 1)})
    assert f"test/set.tar: a.{suffix} has 65,537 bytes; a label takes at most 65,536" in mistakes(
        root
    )


def test_a_label_nested_without_end_is_none(root: Path) -> None:
    write_tar(root / "test/set.tar", {"a.jpg": jpeg(0), "a.json": b"[" * 60_000})
    assert "test/set.tar says no label of a" in mistakes(root)


def test_headers_that_claim_gigabytes_are_not_read(root: Path) -> None:
    shard = root / "test/set.tar"
    member = tarfile.TarInfo("././@LongLink")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 34
    add_raw(shard, member)
    with shard.open("r+b") as file:
        file.truncate(1 << 35)  # with a hole, so that it takes no place here
    problems = mistakes(root)
    assert "test/set.tar cannot be read as a tar file (a header of more than" in problems


def test_a_shard_of_more_members_than_are_read_is_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "MOST_MEMBERS", 5)
    assert "train/set-train-0000.tar cannot be read as a tar file (a split has more" in mistakes(
        root
    )


def test_a_damaged_header_is_no_end(root: Path) -> None:
    shard = root / "train/set-train-0001.tar"
    content = bytearray(shard.read_bytes())
    with tarfile.open(shard) as tar:
        place = tar.getmembers()[4].offset
    content[place : place + 8] = b"\xff" * 8
    shard.write_bytes(content)
    assert "train/set-train-0001.tar cannot be read as a tar file (a damaged header" in mistakes(
        root
    )


def test_shards_of_another_data_set_have_an_index_of_their_own(root: Path) -> None:
    """Reproducible archives have one time, and sizes come in steps."""
    other = root.with_name("other")
    shutil.copytree(root, other)
    members = {"a.jpg": jpeg(1), "a.cls": b"cat\n", "b.jpg": jpeg(2), "b.cls": b"bell"}
    write_tar(root / "test/set.tar", members)
    write_tar(other / "test/set.tar", {**members, "a.cls": b"bell", "b.cls": b"cat\n"})
    for folder in (root, other):
        os.utime(folder / "test/set.tar", (0, 0))
    labels = [opened(folder).id_test.ids for folder in (root, other)]
    assert labels == [
        ("test/set.tar/b.jpg", "test/set.tar/a.jpg"),
        ("test/set.tar/a.jpg", "test/set.tar/b.jpg"),
    ]
    # The same in place: size, time and inode are what they were.
    with (root / "test/set.tar").open("r+b") as file:
        file.write((other / "test/set.tar").read_bytes())
    os.utime(root / "test/set.tar", (0, 0))
    assert opened(root).id_test.ids == labels[1]


def test_a_shard_that_changed_since_it_was_indexed_is_not_read(root: Path) -> None:
    data = opened(root)
    shard = root / "test/set.tar"
    os.utime(shard, (0, 0))
    with pytest.raises(RequestError, match=r"set\.tar cannot be read .* changed since its images"):
        data.id_test.views([0], transform=CLIP, seed=None, epoch=0)
    with pytest.raises(RequestError, match="changed since"):  # nothing is wrong with the image
        bad_files(data.id_test, "digest")
