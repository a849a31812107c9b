"""Images that cannot be read stop a run by name, or are left out of it and told of."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from carft_sweep.carft_core.data import FamilyData, open_data
from carft_sweep.carft_core.data import unreadable as module
from carft_sweep.carft_core.data.base import DataConfig, forget_data
from carft_sweep.carft_core.data.families.declaration import Declaration
from carft_sweep.carft_core.data.families.image_folder import Declared
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import evaluation_digest, identify
from carft_sweep.carft_core.training.loop import train
from tests.carft_core.refusals import refusal, refused
from tests.carft_core.trained import Config, trained

pytestmark = pytest.mark.usefixtures("cache")
BAD = ("train/cat/3.png", "test/bell/1.png", "shifts/dark/cat/0.png")


@pytest.fixture
def root(toy_root: Path, tmp_path: Path) -> Path:
    """The toy tree, three images of which are cut off."""
    copied = tmp_path / "tree"
    shutil.copytree(toy_root, copied)
    for name in BAD:
        spoil(copied / name)
    return copied


def spoil(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:700])


def data_of(root: Path, policy: str = "skip", **fields: object) -> FamilyData:
    config = {"family": "image_folder", "root": str(root), "bad_files": policy, **fields}
    return open_data(DataConfig.model_validate(config))


@pytest.fixture
def unread(root: Path, monkeypatch: pytest.MonkeyPatch) -> FamilyData:
    """The tree, opened without a look at its images."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "READ_UNASKED", 0)
        return data_of(root, "refuse")


@pytest.fixture
def never_again(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    fail = lambda *_: pytest.fail("looked at again")  # noqa: E731
    return lambda: monkeypatch.setattr(module, "_bad_files", fail)


def ids(data: FamilyData) -> set[str]:
    splits = (data.train, data.id_val, data.id_test, *data.shifts.values())
    return {item for split in splits for item in split.ids}


def test_all_bad_files_are_refused_beforehand(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "shifts/dark/cat/1.png").write_bytes(b"")
    assert "shifts/dark/cat/1.png is empty" in refusal(data_of, root, "refuse")
    (root / "shifts/dark/cat/1.png").unlink()
    title, *named = refusal(data_of, root, "refuse").splitlines()
    assert title.startswith("data.bad_files: 3 images cannot be read")
    assert [line.split(" cannot")[0].strip() for line in named] == [str(root / bad) for bad in BAD]
    monkeypatch.setattr(module, "READ_UNASKED", 3)
    refused(r"bad_files: 3 images cannot be read", data_of, root, "refuse")  # found before
    (root / BAD[0]).unlink()
    forget_data()
    refused(r"bad_files: 2 images cannot be read", data_of, root, "refuse")


def test_bad_files_are_left_out_named_and_counted(
    root: Path, toy_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = data_of(toy_root, "refuse")
    (root / BAD[0]).write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        data = data_of(root)
    assert ids(whole) - ids(data) == {*BAD}
    bad = dict(zip(("train", "test", "shifts/dark"), BAD, strict=True))
    assert {(name, *files) for name, files in data.skipped.items()} == {*bad.items()}
    assert all(f"left out of {name}: {file}" in caplog.text for name, file in bad.items())
    assert caplog.text.count("cannot be read as an image") == 3
    assert whole.skipped == {}


def test_a_bad_file_moves_no_other_image(root: Path, toy_root: Path) -> None:
    """Neither between train and val nor in its view: only its own place is empty."""
    whole, data = data_of(toy_root, "refuse"), data_of(root)
    assert [i for i in whole.train.ids if i in ids(data)] == [*data.train.ids]
    assert [i for i in whole.id_val.ids if i in ids(data)] == [*data.id_val.ids]
    place: dict[str, Any] = {"transform": module.LOOKED_AT, "seed": 1, "epoch": 1}
    for index, item in enumerate(data.train.ids):
        theirs = whole.train.views([whole.train.ids.index(item)], **place)
        assert torch.equal(data.train.views([index], **place), theirs)


def test_images_are_looked_at_once_for_each_user_and_others_anew(
    root: Path, cache: Path, never_again: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    first = data_of(root)
    copied = shutil.copytree(root, root.with_name("more"))
    spoil(copied / "train/bell/2.png")
    assert set(data_of(copied).skipped["train"]) == {BAD[0], "train/bell/2.png"}
    listed = len([*cache.rglob("*.json")])
    never_again()
    moved = root.with_name("moved")
    root.rename(moved)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = data_of(moved)
    assert (again.skipped, caplog.text.count("left out of")) == (first.skipped, 3)
    assert set(data_of(moved, shifts=["dark"]).skipped) == {"train", "test", "shifts/dark"}
    assert len([*cache.rglob("*.json")]) == listed


def test_more_images_than_one_thread_takes_are_all_looked_at_once(
    root: Path, unread: FamilyData, monkeypatch: pytest.MonkeyPatch, never_again: Callable[[], None]
) -> None:
    monkeypatch.setattr(module, "PART", 5)
    train, val = unread.train, unread.id_val
    spoil(root / train.ids[-1])
    counts: list[int] = []
    bad = {*module.bad_files(train, "d", counts.append)}
    assert bad == {train.ids[-1], *({BAD[0]} & {*train.ids})}
    every = len(train.whole or train)
    assert every > len(train)
    assert counts == [*range(5, every, 5), every]
    never_again()  # for the other part of the whole
    assert bad | {*module.bad_files(val, "d")} == {train.ids[-1], BAD[0]}


def test_of_a_train_and_the_test_carved_from_it_the_whole_is_looked_at_once(
    root: Path, never_again: Callable[[], None]
) -> None:
    declaration = Declaration.model_validate({"name": "mine", "test_fraction": 0.2})
    data = Declared(declaration, root / "a.yaml", "", {}).open(DataConfig(root=str(root)))
    bad = {*module.bad_files_of(data, "train")}
    never_again()
    assert bad | {*module.bad_files_of(data, "test")} == {BAD[0]}


def test_a_shift_may_lose_a_class_but_not_all_and_a_test_none(root: Path) -> None:
    for file in (root / "shifts/pale/cat").iterdir():
        spoil(file)
    assert len(data_of(root).shifts["pale"]) == 3
    copied = shutil.copytree(root, root.with_name("none"))
    for file in (copied / "shifts/pale").rglob("*.png"):
        spoil(file)
    refused(r"shifts/pale has no image of anchor, cat", data_of, copied)
    for file in (root / "test/cat").iterdir():
        spoil(file)
    forget_data()
    refused(r"bad_files: test has no image of cat that is whole", data_of, root)


def test_what_cannot_be_read_now_is_not_kept(root: Path, unread: FamilyData, cache: Path) -> None:
    """A disk that fails, or a file that goes away meanwhile, says nothing of the image."""
    (root / "test/cat/0.png").unlink()
    words = r"test/cat/0\.png cannot be read as an image"
    refused(words, module.bad_files, unread.id_test, unread.digest)
    assert not cache.exists()


def test_skipped_images_of_train_make_it_another_run_and_others_another_evaluation(
    root: Path, toy_root: Path, toy_config: Config
) -> None:
    config = toy_config({"data.root": str(toy_root)})
    skipping = toy_config({"data.root": str(root), "data.bad_files": "skip"})
    assert identify(skipping, 0).parts["data"]["skipped"] == {"train": [BAD[0]]}
    shutil.copy(toy_root / BAD[0], root / BAD[0])
    forget_data()
    digest = identify(config, 0).digest
    assert identify(skipping, 0).digest == digest
    whole, skipped = (evaluation_digest(digest, None, each) for each in (config, skipping))
    assert whole != skipped


def test_a_damaged_cache_is_made_anew(
    root: Path, unread: FamilyData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = unread.id_test
    bad = module.bad_files(split, "d")
    for file in [*cache.rglob("*.json")]:
        file.write_bytes(b"[")
        file.with_suffix(".part").write_text('["5", {}]')
    assert module.bad_files(split, "d") == bad == {BAD[1]: bad[BAD[1]]}
    monkeypatch.setenv("CARFT_CACHE", str(root / BAD[0]))  # a file, so nothing can be kept
    assert module.bad_files(split, "d") == bad


def test_a_run_says_what_it_skipped(root: Path, toy_config: Config, tmp_path: Path) -> None:
    changes = {"data.root": str(root), "optim.epochs": 1, "workers": 2}
    refused(r"\.png cannot be read as an image", train, toy_config(changes), 0)
    result = trained(toy_config({**changes, "data.bad_files": "skip"}), tmp_path / "run")
    assert result.facts["skipped"] == {"train": [BAD[0]], "test": [BAD[1]], "shifts/dark": [BAD[2]]}
    assert (
        f"1 image of test cannot be read and was skipped, all numbers are of the others: {BAD[1]}"
    ) in result.facts["data_notes"]
    predicted = pq.read_table(RunFolder(tmp_path / "run").predictions("unmerged")).to_pydict()
    assert len(predicted["id"]) == sum(result.facts["images"].values())
    assert not {*BAD} & {*predicted["id"]}
