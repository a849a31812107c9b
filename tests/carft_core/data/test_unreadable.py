"""Images that cannot be read stop a run by name, or are left out of it and told of."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import FamilyData, open_data
from carft_sweep.carft_core.data import unreadable as module
from carft_sweep.carft_core.data.base import DataConfig, forget_data
from carft_sweep.carft_core.data.families.declaration import Declaration
from carft_sweep.carft_core.data.families.image_folder import Declared
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import evaluation_digest, identify
from carft_sweep.carft_core.training.loop import train
from tests.carft_core.trained import trained

Config = Callable[..., TrialConfig]
BAD = ("train/cat/3.png", "test/bell/1.png", "shifts/dark/cat/0.png")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CARFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


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


def opened(root: Path, policy: str = "skip") -> FamilyData:
    config = {"family": "image_folder", "root": str(root), "bad_files": policy}
    return open_data(DataConfig.model_validate(config))


@pytest.fixture
def unread(root: Path, monkeypatch: pytest.MonkeyPatch) -> FamilyData:
    """The tree, opened without a look at its images."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "READ_UNASKED", 0)
        return opened(root, "refuse")


def ids(data: FamilyData) -> set[str]:
    assert data.val is not None
    splits = (data.train, data.val, data.id_test, *data.shifts.values())
    return {item for split in splits for item in split.ids}


def test_all_bad_files_are_refused_before_anything_trains(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "shifts/dark/cat/1.png").write_bytes(b"")
    with pytest.raises(RequestError) as caught:
        opened(root, "refuse")
    assert "shifts/dark/cat/1.png is empty" in str(caught.value)
    (root / "shifts/dark/cat/1.png").unlink()
    with pytest.raises(RequestError) as caught:
        opened(root, "refuse")
    title, *named = str(caught.value).splitlines()
    assert title.startswith("data.bad_files: 3 images cannot be read")
    assert [line.split(" cannot")[0].strip() for line in named] == [str(root / bad) for bad in BAD]
    monkeypatch.setattr(module, "READ_UNASKED", 3)
    with pytest.raises(RequestError, match=r"bad_files: 3 images cannot be read"):
        opened(root, "refuse")  # found before
    (root / BAD[0]).unlink()
    forget_data()
    with pytest.raises(RequestError, match=r"bad_files: 2 images cannot be read"):
        opened(root, "refuse")


def test_an_empty_file_is_skipped_as_others_are(root: Path) -> None:
    (root / "test/cat/0.png").write_bytes(b"")
    assert [*opened(root).skipped["test"]] == [BAD[1], "test/cat/0.png"]


def test_bad_files_are_left_out_named_and_counted(
    root: Path, toy_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = opened(toy_root, "refuse")
    with caplog.at_level(logging.WARNING):
        data = opened(root)
    assert ids(whole) - ids(data) == {*BAD}
    assert {name: [*bad] for name, bad in data.skipped.items()} == {
        "train": [BAD[0]],
        "test": [BAD[1]],
        "shifts/dark": [BAD[2]],
    }
    for name in BAD:
        assert f"left out of {name.rpartition('/')[0].rpartition('/')[0]}: {name}" in caplog.text
    assert caplog.text.count("cannot be read as an image") == 3
    assert whole.skipped == {}


def test_a_bad_file_moves_no_other_image(root: Path, toy_root: Path) -> None:
    """Neither between train and val nor in its view: only its own place is empty."""
    whole, data = opened(toy_root, "refuse"), opened(root)
    assert whole.val is not None
    assert data.val is not None
    assert [i for i in whole.train.ids if i in ids(data)] == [*data.train.ids]
    assert [i for i in whole.val.ids if i in ids(data)] == [*data.val.ids]
    transform = module.LOOKED_AT
    for index, item in enumerate(data.train.ids):
        there = whole.train.ids.index(item)
        views = [
            split.views([at], transform=transform, seed=1, epoch=1)
            for split, at in ((data.train, index), (whole.train, there))
        ]
        assert torch.equal(*views)


def test_images_are_looked_at_once_for_each_user(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = opened(root)
    monkeypatch.setattr(module, "_bad_files", lambda *_: pytest.fail("looked at again"))
    moved = root.with_name("moved")
    root.rename(moved)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        again = opened(moved)
    assert again.skipped == first.skipped
    assert caplog.text.count("left out of") == 3
    assert len([*cache.rglob("*.json")]) == 2 + len(again.shifts)


def test_other_images_are_looked_at_anew(root: Path) -> None:
    assert len(opened(root).skipped["train"]) == 1
    copied = root.with_name("more")
    shutil.copytree(root, copied)
    spoil(copied / "train/bell/2.png")
    assert set(opened(copied).skipped["train"]) == {BAD[0], "train/bell/2.png"}


def test_more_images_than_one_thread_takes_are_all_looked_at(
    root: Path, unread: FamilyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PART", 5)
    train = unread.train
    spoil(root / train.ids[-1])
    told: list[int] = []
    found = module.bad_files(train, "d", told.append)
    assert {*found} == {train.ids[-1], *({BAD[0]} & {*train.ids})}
    every = len(train.whole or train)
    assert every > len(train)
    assert told == [*range(5, every, 5), every]


def test_of_two_parts_the_whole_is_looked_at_once(
    unread: FamilyData, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert unread.val is not None
    found = module.bad_files(unread.train, "d")
    monkeypatch.setattr(module, "_bad_files", None)
    found |= module.bad_files(unread.val, "d")
    assert BAD[0] in found
    assert {*found} <= {*unread.train.ids, *unread.val.ids}


def test_of_a_train_and_the_test_carved_from_it_the_whole_is_looked_at_once(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    declaration = Declaration.model_validate({"name": "mine", "test_fraction": 0.2})
    data = Declared(declaration, root / "a.yaml", "", {}).open(DataConfig(root=str(root)))
    found = {*module.bad_files_of(data, "train")}
    monkeypatch.setattr(module, "_bad_files", None)
    assert found | {*module.bad_files_of(data, "test")} == {BAD[0]}


def test_a_class_without_images_is_refused(root: Path) -> None:
    for file in (root / "test/cat").iterdir():
        spoil(file)
    with pytest.raises(RequestError, match=r"bad_files: test has no image of cat that is whole"):
        opened(root)


def test_a_shift_may_lose_a_class_but_not_all(root: Path) -> None:
    for file in (root / "shifts/pale/cat").iterdir():
        spoil(file)
    assert len(opened(root).shifts["pale"]) == 3
    copied = root.with_name("none")
    shutil.copytree(root, copied)
    for file in (copied / "shifts/pale").rglob("*.png"):
        spoil(file)
    with pytest.raises(RequestError, match=r"shifts/pale has no image of anchor, cat"):
        opened(copied)


def test_what_the_system_cannot_read_is_refused_and_not_kept(
    root: Path, unread: FamilyData, cache: Path
) -> None:
    """A disk that fails, or a file that goes away meanwhile, says nothing of the image."""
    data = unread
    (root / "test/cat/0.png").unlink()
    with pytest.raises(RequestError, match=r"test/cat/0\.png cannot be read as an image"):
        module.bad_files(data.id_test, data.digest)
    assert not cache.exists()


def test_skipped_images_make_it_another_run(root: Path, toy_config: Config) -> None:
    skipping = toy_config({"data.root": str(root), "data.bad_files": "skip"})
    assert identify(skipping, 0).parts["data"]["skipped"] == {"train": [BAD[0]]}


def test_an_image_of_a_test_or_shift_is_measured_anew_and_trains_nothing(
    toy_root: Path, toy_config: Config, tmp_path: Path
) -> None:
    copied = tmp_path / "measured"
    shutil.copytree(toy_root, copied)
    for name in BAD[1:]:
        spoil(copied / name)
    config = toy_config({"data.root": str(toy_root)})
    skipping = toy_config({"data.root": str(copied), "data.bad_files": "skip"})
    digest = identify(config, 0).digest
    assert identify(skipping, 0).digest == digest
    evaluated = [evaluation_digest(digest, None, one) for one in (config, skipping)]
    assert evaluated[0] != evaluated[1]


def test_with_another_choice_of_shifts_nothing_is_looked_at_again(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened(root)
    monkeypatch.setattr(module, "_bad_files", lambda *_: pytest.fail("looked at again"))
    config = {"family": "image_folder", "root": str(root), "bad_files": "skip", "shifts": ["dark"]}
    data = open_data(DataConfig.model_validate(config))
    assert set(data.skipped) == {"train", "test", "shifts/dark"}


def test_a_damaged_cache_is_made_anew(
    root: Path, unread: FamilyData, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = unread.id_test
    found = module.bad_files(split, "d")
    for file in [*cache.rglob("*.json")]:
        file.write_bytes(b"[")
        file.with_suffix(".part").write_text('["5", {}]')
    assert module.bad_files(split, "d") == found == {BAD[1]: found[BAD[1]]}
    monkeypatch.setenv("CARFT_CACHE", str(root / BAD[0]))  # a file, so nothing can be kept
    assert module.bad_files(split, "d") == found


def test_a_run_says_what_it_skipped(root: Path, toy_config: Config, tmp_path: Path) -> None:
    there = {"data.root": str(root), "optim.epochs": 1, "workers": 2}
    with pytest.raises(RequestError, match=r"\.png cannot be read as an image"):
        train(toy_config(there), 0)
    result = trained(toy_config({**there, "data.bad_files": "skip"}), tmp_path / "run")
    assert result.facts["skipped"] == {"train": [BAD[0]], "test": [BAD[1]], "shifts/dark": [BAD[2]]}
    assert (
        f"1 image of test cannot be read and was skipped, all numbers are of the others: {BAD[1]}"
    ) in result.facts["data_notes"]
    predicted = pq.read_table(RunFolder(tmp_path / "run").predictions("unmerged")).to_pydict()
    assert len(predicted["id"]) == sum(result.facts["images"].values())
    assert not {*BAD} & {*predicted["id"]}
