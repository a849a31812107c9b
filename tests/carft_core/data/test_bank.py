"""What runs share of their batches: kept once, and what each would compute itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data.bank import BANK_GB_ENV, RECENT, Bank
from carft_sweep.carft_core.data.base import Source, Split, forget_data
from carft_sweep.carft_core.data.families import image_folder
from carft_sweep.carft_core.data.transforms import AUGMENTATIONS
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import identify
from carft_sweep.carft_core.training.loop import Run, epochs, train
from carft_sweep.carft_core.training.setup import open_setup
from tests.carft_core.refusals import refused
from tests.carft_core.stand_ins import watched
from tests.carft_core.trained import Config, numbers, same, trained, weights
from tests.golden import write as golden

ROWS, WIDTH = torch.arange(4), 8
FEATURES = torch.arange(4.0 * WIDTH).view(4, WIDTH)
SIZE = 3 * (FEATURES.nbytes + 4)
"""A file's."""


def bank(views: str = "views", *, steps: int = 6) -> Bank:
    """One whose epochs have three steps."""
    return Bank("features", views, steps=steps, per_epoch=3, like=FEATURES)


def reads(own: Bank, step: int = 0, features: Tensor = FEATURES) -> bool:
    """Whether a bank has these features of a step; it may have no others."""
    stored = own.read(step, ROWS[: len(features)])
    assert stored is None or torch.equal(stored, features)
    return stored is not None


def files(cache: Path) -> list[Path]:
    return sorted((cache / "bank").glob("features-*"))


def used(cache: Path, seconds_ago: float) -> list[Path]:
    """The files, after setting when they were used last."""
    for file in files(cache):
        os.utime(file, (time.time() - seconds_ago,) * 2)
    return files(cache)


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """`bound(n)`: all banks may have so many bytes."""
    return lambda size: monkeypatch.setenv(BANK_GB_ENV, f"{size / 1e9:.9f}")


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the teacher was shown, call by call."""
    return watched(monkeypatch, Teacher, "image_features", lambda _, images: len(images))


def last(config: TrialConfig, folder: Path, seed: int = 0) -> dict[str, float]:
    return numbers([*epochs(config, seed, workdir=folder)][-1])


def test_what_one_bank_keeps_another_of_the_same_views_reads(cache: Path) -> None:
    assert not reads(bank(), 1)
    bank().write(1, ROWS, FEATURES)
    bank().write(2, ROWS[:3], FEATURES[:3])  # the last batch of a pass
    assert reads(bank(), 1)
    assert reads(bank(), 2, FEATURES[:3])
    assert not reads(bank(), 0)
    assert not reads(bank(), 4)  # the same place, in the next epoch
    assert not reads(bank("others"), 1)
    assert bank().read(1, ROWS.flip(0)) is None  # of other images
    assert len(files(cache)) == 1
    bank().write(4, ROWS, FEATURES)
    assert not reads(bank(steps=5), 4), "a shorter last epoch is another file"
    assert len(files(cache)) == 2


def damage(file: Path, kind: str) -> None:
    content = bytearray(file.read_bytes())
    if kind == "bit":
        content[10] ^= 1
        file.write_bytes(content)
    elif kind == "cut":
        file.write_bytes(content[: FEATURES.nbytes // 2])
    elif kind == "emptied":
        file.write_bytes(bytes(len(content)))
    else:
        file.unlink()
        {"folder": file.mkdir, "pipe": lambda: os.mkfifo(file), "gone": lambda: None}[kind]()


@pytest.mark.parametrize("kind", ["bit", "cut", "emptied", "gone", "folder", "pipe"])
def test_what_is_damaged_is_missing_and_may_be_written_again(cache: Path, kind: str) -> None:
    own = bank()
    own.write(0, ROWS, FEATURES)
    damage(files(cache)[0], kind)
    again = bank()
    assert not reads(again)
    again.write(0, ROWS, FEATURES)
    assert reads(again) == (kind not in ("folder", "pipe"))
    if kind == "gone":  # also for whoever had it open
        files(cache)[0].unlink()
        own.write(1, ROWS, FEATURES)
        assert (reads(own, 0), reads(own, 1)) == (False, True)


LARGE = torch.arange(512)


def large_bank() -> Bank:
    return Bank("features", "views", steps=1, per_epoch=1, like=torch.empty(len(LARGE), 512))


def write_for_ever(features: Tensor) -> None:
    own = large_bank()
    while True:
        own.write(0, LARGE, features)


@pytest.mark.usefixtures("cache")
def test_of_writers_at_once_that_are_killed_nothing_half_written_is_read() -> None:
    """Two that disagree, as no two runs do: half of one and half of the other would be seen."""
    own, seen, until = large_bank(), set[float](), time.monotonic() + 120
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=write_for_ever, args=(torch.full((len(LARGE), 512), value),))
        for value in (1.0, 2.0)
    ]
    for writer in writers:
        writer.start()
    try:
        while len(seen) < 2 and time.monotonic() < until:
            features = own.read(0, LARGE)
            if features is not None:
                assert len(features.unique()) == 1
                seen.add(float(features[0, 0]))
    finally:
        for writer in writers:
            writer.kill()
            writer.join()
    assert seen == {1.0, 2.0}
    features = own.read(0, LARGE)
    assert features is None or len(features.unique()) == 1
    own.write(0, LARGE, torch.zeros(len(LARGE), 512))
    features = own.read(0, LARGE)
    assert features is not None
    assert not features.any()


def test_what_was_used_longest_ago_makes_room(cache: Path, bound: Callable[[float], None]) -> None:
    bound(2.5 * SIZE)
    bank("first").write(0, ROWS, FEATURES)
    (first,) = used(cache, 3 * RECENT)
    bank("second").write(0, ROWS, FEATURES)
    second = next(file for file in files(cache) if file != first)
    os.utime(second, (time.time() - 2 * RECENT,) * 2)
    assert reads(bank("first"))  # is used now
    bank("third").write(0, ROWS, FEATURES)
    assert (first in files(cache), second in files(cache)) == (True, False)
    assert reads(bank("third"))
    assert sum(file.stat().st_size for file in files(cache)) <= 2.5 * SIZE


def test_what_was_used_lately_makes_no_room(cache: Path, bound: Callable[[float], None]) -> None:
    bound(5 * FEATURES.nbytes)
    for name in ("first", "second"):
        bank(name).write(0, ROWS, FEATURES)
    assert (reads(bank("first")), reads(bank("second"))) == (True, False)
    used(cache, 2 * RECENT)
    bound(2 * FEATURES.nbytes)
    bank("second").write(0, ROWS, FEATURES)
    assert len(files(cache)) == 1  # nothing is deleted for what would not fit either


def test_views_leave_features_a_quarter_of_all(cache: Path, bound: Callable[[float], None]) -> None:
    views = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    bound(4 * 3 * (views.nbytes + 4))
    for name in ("first", "second", "third", "fourth"):
        Bank("views", [name], steps=3, per_epoch=3, like=views).write(0, ROWS, views)
    assert len([*(cache / "bank").glob("views-*")]) == 3
    bank().write(0, ROWS, FEATURES)
    assert reads(bank())


def test_half_of_the_disks_free_bytes_is_left(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, stored in ((2 * SIZE - 2, 0), (2 * SIZE, 1)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        bank().write(0, ROWS, FEATURES)
        assert len(files(cache)) == stored


def test_at_a_bound_of_zero_or_where_nothing_can_be_written_nothing_is_kept_or_read(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank().write(0, ROWS, FEATURES)
    monkeypatch.setenv(BANK_GB_ENV, "0")
    assert not reads(bank())
    bank("others").write(0, ROWS, FEATURES)
    assert len(files(cache)) == 1
    monkeypatch.setenv(BANK_GB_ENV, "1")
    monkeypatch.setenv("CARFT_CACHE", str(files(cache)[0]))
    own = bank()
    own.write(0, ROWS, FEATURES)
    assert not reads(own)
    for wrong in ("-1", "20GB", "1e3", "nan"):
        monkeypatch.setenv(BANK_GB_ENV, wrong)
        refused(f"^{BANK_GB_ENV} must be a number of gigabytes", bank)


def changed(teacher: Teacher, change: Callable[[Split], Split]) -> Teacher:
    return replace(teacher, splits={**teacher.splits, "train": change(teacher.splits["train"])})


def transformed(teacher: Teacher, **fields: Any) -> Teacher:
    return replace(teacher, transform=replace(teacher.transform, **fields))


CHANGES: dict[str, Callable[[Teacher], Teacher]] = {
    "weights": lambda teacher: replace(teacher, clip=replace(teacher.clip, digest="1" * 64)),
    "data": lambda teacher: replace(teacher, digests={**teacher.digests, "train": "others"}),
    "images": lambda teacher: changed(
        teacher, lambda train: replace(train, ids=("x", *train.ids[1:]))
    ),
    "rows": lambda teacher: changed(teacher, lambda train: train.subset(range(12))),
    "size": lambda teacher: transformed(teacher, size=40),
    "augmentation": lambda teacher: transformed(teacher, augmentation=AUGMENTATIONS["domainbed"]),
    "precision": lambda teacher: replace(teacher, precision="bf16"),
    "device": lambda teacher: replace(teacher, device=torch.device("cuda")),
}
OF_THE_TEACHER = ("weights", "precision", "device")
"""What changes its features and not what it is shown."""


def names(teacher: Teacher, seed: int = 0, *plan: object) -> tuple[str, str]:
    """What the views and the features of a step are known by."""
    views = teacher.training_views(seed, *plan)
    return json.dumps(views), json.dumps(teacher.training_features(None, views))


@pytest.mark.parametrize("change", CHANGES)
def test_another_teacher_data_or_view_has_another_name(teacher: Teacher, change: str) -> None:
    (views, features), (own_views, own_features) = names(CHANGES[change](teacher)), names(teacher)
    assert features != own_features
    assert (views == own_views) == (change in OF_THE_TEACHER)


def test_another_seed_batch_or_revision_has_another_name(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = [names(teacher), names(teacher, 1), names(teacher, 0, 8)]
    assert [len({*each}) for each in zip(*known, strict=True)] == [3, 3]
    monkeypatch.setattr("carft_sweep.carft_core.models.teacher.FEATURES_REVISION", 1000)
    views, features = names(teacher)
    assert views == known[0][0]
    assert features not in [of for _, of in known]
    monkeypatch.setattr("carft_sweep.carft_core.models.teacher.VIEWS_REVISION", 1000)
    assert names(teacher)[0] not in [of for of, _ in known]


KNOWN: list[tuple[dict[str, Any], bool]] = [
    ({"optim.lr": 1e-4}, True),
    ({"algorithm": {"name": "ema", "of": {"name": "car_ft"}}}, True),
    ({"optim.name": "sam", "optim.rho": 0.05}, True),
    ({"optim.epochs": 1}, True),
    ({"optim.batch_size": 6}, False),
    ({"optim.micro_batch": 3}, False),
    ({"optim.epochs": None, "optim.steps": 6, "optim.steps_per_epoch": 3}, False),
]


@pytest.fixture(scope="module")
def filled(
    toy_config: Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[TrialConfig, dict[str, float]]]:
    """A cache in which a run of car_ft has left its features, its config and its numbers."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CARFT_CACHE", str(folder / "cache"))
        config = toy_config()
        yield config, last(config, folder / "run")


@pytest.mark.usefixtures("filled")
@pytest.mark.parametrize(("changes", "is_known"), KNOWN, ids=str)
def test_runs_that_show_the_teacher_the_same_compute_nothing_and_others_all_once(
    toy_config: Config, computed: list[int], tmp_path: Path, changes: dict[str, Any], is_known: bool
) -> None:
    config = toy_config(changes)
    last(config, tmp_path)
    images = sum(computed)
    assert images == 0 if is_known else images >= 12
    if not is_known:
        last(config, tmp_path / "again")
        assert sum(computed) == images


def test_a_run_out_of_the_bank_has_the_same_numbers_and_begins_at_a_kl_of_exactly_zero(
    filled: tuple[TrialConfig, dict[str, float]], computed: list[int], tmp_path: Path
) -> None:
    config, expected = filled
    reports = list(epochs(config, 0, workdir=tmp_path))
    assert computed == []
    assert reports[1].metrics["train/first/context_kl"] == 0.0
    assert numbers(reports[-1]) == expected


def test_what_a_run_lacks_of_an_epoch_it_computes(
    toy_config: Config, cache: Path, computed: list[int], tmp_path: Path
) -> None:
    """As behind a killed run, or beside one that is under way: of 18 images in batches of 8."""
    config = toy_config()
    expected = last(config, tmp_path / "first")
    assert computed == [8, 8, 2] * 2
    first, second = files(cache)
    first.unlink()
    damage(second, "bit")
    computed.clear()
    assert last(config, tmp_path / "second") == expected
    assert sorted(computed) == [2, 8, 8, 8]


@pytest.mark.usefixtures("cache")
def test_a_second_pass_and_its_parts_ask_once_a_batch(
    toy_config: Config, computed: list[int], tmp_path: Path
) -> None:
    """`sam` computes the loss of a step twice."""
    changes = {"optim.name": "sam", "optim.rho": 0.05, "optim.micro_batch": 5, "optim.epochs": 1}
    last(toy_config(changes), tmp_path)
    assert computed == [5, 3, 5, 3, 2]


@pytest.mark.usefixtures("cache")
def test_of_other_images_than_the_batch_came_with_the_features_are_computed(
    toy_config: Config, computed: list[int], tmp_path: Path
) -> None:
    config = toy_config({"optim.micro_batch": 5})
    run = Run(config, 0, RunFolder(tmp_path), open_setup(config))
    batch = run._batch(next(run.teacher.loader.steps(run.batches, range(1))))
    for own in (batch, batch.part(slice(5, 8))):
        features, mixed = own.zero_shot(), own.images.flip(0)
        computed.clear()
        assert torch.equal(own.zero_shot(), features)
        assert computed == []
        torch.testing.assert_close(replace(own, images=mixed).zero_shot(), features.flip(0))
        assert sum(computed) == len(mixed)


CASES: dict[str, dict[str, Any]] = {
    **{name: {"name": name} for name, algorithm in ALGORITHMS.items() if algorithm().takes_steps},
    "ema of car_ft": {"name": "ema", "of": {"name": "car_ft"}},
    "car_ft in parts": {"name": "car_ft"},
    "coral in parts": {"name": "coral"},
    "car_ft by sam": {"name": "car_ft"},
}
ASK = {name for name in CASES if "car_ft" in name} | {"clip_adapter", "lipsum_ft", "starft"}
"""Whose loss needs the teacher's features."""


def trained_by(run: Run) -> dict[str, Tensor]:
    with run.teacher.loader:
        list(run.epochs())
    return {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


@pytest.mark.parametrize("case", CASES)
def test_every_algorithm_trains_to_the_same_weights_with_the_bank_and_without(
    case: str,
    teacher: Teacher,
    cache: Path,
    computed: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fields = CASES[case]
    config = golden.config_of(ALGORITHMS[fields["name"]].model_validate(fields))
    changes: dict[str, Any] = {"steps": 4, "steps_per_epoch": 2}
    changes |= {"micro_batch": 4} if "parts" in case else {}
    changes |= {"name": "sam", "rho": 0.05} if "sam" in case else {}
    config = config.model_copy(update={"optim": config.optim.model_copy(update=changes)})
    setup = replace(golden.task(), teacher=teacher)
    results, images = [], []
    with golden.one_thread():
        for attempt, bound in enumerate(["0", "1", "1"] if case in ASK else ["0", "1"]):
            monkeypatch.setenv(BANK_GB_ENV, bound)
            computed.clear()
            results.append(trained_by(Run(config, 0, RunFolder(tmp_path / str(attempt)), setup)))
            images.append(sum(computed))
    assert all(same(results[0], other) for other in results[1:])
    assert images == ([24, 24, 0] if case in ASK else [0, 0])
    assert len(files(cache)) == (2 if case in ASK else 0)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """The seeds, None of a fixed view, by which views were made, call by call."""
    return watched(monkeypatch, Source, "views", lambda *_, seed, **__: seed)


def test_the_fixed_views_of_a_split_are_made_once_for_all_runs(
    toy_config: Config, made: list[int | None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(toy_config(), 0, workdir=tmp_path / "first")
    assert None in made
    made.clear()
    trained(toy_config({"algorithm": {"name": "fine_tune"}}), tmp_path / "second")
    teacher = open_setup(toy_config()).teacher
    views = torch.cat([*teacher.views("id/test")])
    assert None not in made
    monkeypatch.setenv(BANK_GB_ENV, "0")
    assert torch.equal(views, torch.cat([*teacher.views("id/test")]))


def pictures(root: Path, suffix: str, count: int, tests: int, seed: int = 0) -> dict[str, Any]:
    """Write images of two classes to train and test on, with the times of the files that they
    replace; return their `data` section."""
    times = {file: file.stat() for file in root.rglob(f"*{suffix}")}
    rng = np.random.default_rng(seed)
    for split, images in (("train", count), ("test", tests)):
        for name in ("bell", "cat"):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(images):
                image = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8))
                image.save(root / split / name / f"{number}{suffix}")
    for file, status in times.items():
        assert file.stat().st_size == status.st_size
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    return {"family": "image_folder", "root": str(root), "val_fraction": 0.3}


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    return watched(monkeypatch, image_folder, "read_rgb", lambda path, **_: path)


def test_photographs_are_decoded_once_for_all_runs_of_a_seed(
    toy_config: Config, decoded: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = pictures(tmp_path / "photographs", ".jpg", 6, 1)

    def run(name: str, **fields: Any) -> dict[str, float]:
        decoded.clear()
        return last(toy_config({"data": data, "workers": 0, **fields}), tmp_path / name)

    first = run("first")
    assert len(decoded) > 0
    assert (run("again"), decoded) == (first, [])
    run("faster", **{"optim.lr": 2e-3})
    assert decoded == []
    run("augmented", data={**data, "augmentation": "domainbed"})
    assert len(decoded) > 0
    monkeypatch.setenv(BANK_GB_ENV, "0")
    assert run("without") == first
    assert len(decoded) > 0


def test_what_workers_load_is_not_kept(toy_config: Config, cache: Path, tmp_path: Path) -> None:
    """They hide what it costs, and would have to wait for the disk."""
    data = pictures(tmp_path / "photographs", ".jpg", 6, 1)
    last(toy_config({"data": data, "workers": 1}), tmp_path / "run")
    assert len([*(cache / "bank").glob("views-*")]) == 1  # of id/val


@pytest.mark.parametrize("algorithm", ["car_ft", "linear_probe"])
@pytest.mark.usefixtures("cache")
def test_images_that_others_of_their_size_replaced_are_neither_trained_nor_tested_on(
    algorithm: str, toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "bitmaps"  # whose sizes do not depend on what they show
    data = pictures(root, ".bmp", 6, 3)
    config = toy_config({"data": data, "algorithm": algorithm, "workers": 0})

    def run(name: str) -> tuple[dict[str, float], dict[str, Tensor]]:
        forget_data()  # as in a process of its own
        return numbers(trained(config, tmp_path / name)), weights(tmp_path / name)

    before, digest = run("before"), identify(config, 0).digest
    assert run("again")[0] == before[0]
    pictures(root, ".bmp", 6, 3, seed=1)
    after = run("after")
    assert identify(config, 0).digest == digest
    monkeypatch.setenv("CARFT_CACHE", str(tmp_path / "another cache"))
    alone = run("alone")
    assert after[0] == alone[0] != before[0]
    assert same(after[1], alone[1])
    assert not same(after[1], before[1])
