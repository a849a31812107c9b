"""DomainBed's sets: which images are which, what trains, what is measured, what is refused."""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from torchvision.datasets import ImageFolder

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.data import FAMILIES, Family, FamilyData, open_data, unreadable
from carft_sweep.carft_core.data.base import DataConfig, Derived
from carft_sweep.carft_core.data.class_names import plain_name
from carft_sweep.carft_core.data.families import domainbed
from carft_sweep.carft_core.data.families.domainbed import FOLDERS, class_folders
from carft_sweep.carft_core.export.export import export
from carft_sweep.carft_core.runs.evaluations import RunResult
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import identify
from tests import domain_bed_tree
from tests.carft_core.refusals import refusal, refused
from tests.carft_core.stand_ins import failing
from tests.carft_core.trained import Config, trained

DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
IMAGES = 50
"""Of each domain of the tree."""


def data_of(place: Path, test: str = "sketch", **more: Any) -> FamilyData:
    fields = {"family": "pacs", "root": str(place), "test_domain": test, "val_fraction": 0.2}
    return open_data(DataConfig.model_validate(fields | more))


@pytest.fixture
def copied(pacs_root: Path, tmp_path: Path) -> Path:
    return shutil.copytree(pacs_root, tmp_path / "copied")


def theirs(root: Path, domain: str) -> list[str]:
    """The images of a domain in torchvision's order, by their ids here."""
    samples = ImageFolder(str(root / "PACS" / domain)).samples
    return [str(Path(path).relative_to(root / "PACS")) for path, _ in samples]


# facebookresearch/DomainBed at b93c22a, its `split_dataset` and `seed_hash` executed: 50 images.
OUT = {
    (0, 0): [8, 0, 5, 32, 6, 45, 27, 11, 26, 40],
    (0, 1): [39, 3, 20, 12, 41, 11, 49, 40, 26, 42],
    (0, 2): [49, 30, 29, 40, 18, 35, 28, 47, 14, 8],
    (0, 3): [25, 41, 11, 10, 34, 13, 43, 0, 14, 27],
    (1, 0): [25, 47, 12, 8, 16, 7, 19, 34, 23, 40],
    (1, 1): [19, 2, 35, 31, 16, 17, 45, 6, 21, 41],
}
IN_0_0 = [
    *(34, 2, 7, 43, 1, 13, 3, 30, 20, 28, 44, 41, 25, 48, 16, 23, 42, 38, 4, 18),
    *(37, 46, 10, 15, 33, 35, 36, 39, 17, 9, 19, 21, 47, 49, 29, 14, 24, 31, 22, 12),
]


def by_description(count: int, fraction: float, trial_seed: int, environment: int) -> list[int]:
    """What is kept back, as DomainBed's paper and code describe it, written down anew."""
    text = f"({trial_seed}, {environment})"
    seed = int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest(), 16) % 2**31
    keys = list(range(count))
    np.random.RandomState(seed).shuffle(keys)
    return keys[: int(count * fraction)]


def test_a_domain_is_divided_as_domainbed_divides_it_to_the_index() -> None:
    for (seed, environment), held_out in OUT.items():
        parts = domainbed.divided(IMAGES, 0.2, trial_seed=seed, environment=environment)
        assert list(parts.kept) == held_out
        assert sorted(parts.kept + parts.train) == list(range(IMAGES))
    assert list(domainbed.divided(IMAGES, 0.2, trial_seed=0, environment=0).train) == IN_0_0
    assert (domainbed.seed_hash(0, 0), domainbed.seed_hash(2, 3)) == (894182419, 1709828778)
    assert domainbed.seed_hash(1, "batch_size") == 1689080019
    for count, fraction in itertools.product((2, 9, 50, 1001), (0.2, 0.5, 0.07)):
        for seed, environment in ((0, 0), (3, 5), (123456, 2)):
            parts = domainbed.divided(count, fraction, trial_seed=seed, environment=environment)
            assert list(parts.kept) == by_description(count, fraction, seed, environment)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_images_of_a_run_are_those_of_domainbeds_run(pacs_root: Path, seed: int) -> None:
    data = data_of(pacs_root, "cartoon", split_seed=seed)
    listed = {domain: theirs(pacs_root, domain) for domain in DOMAINS}
    held_out = {
        domain: [listed[domain][at] for at in by_description(IMAGES, 0.2, seed, place)]
        for place, domain in enumerate(DOMAINS)
    }
    training = [domain for domain in DOMAINS if domain != "cartoon"]
    assert list(data.id_val.ids) == [item for domain in training for item in held_out[domain]]
    assert list(data.extras["cartoon_out"].ids) == held_out["cartoon"]
    for domain in training:
        mine = {item for item in data.train.ids if item.startswith(f"{domain}/")}
        assert mine == set(listed[domain]) - set(held_out[domain])
    assert {*data.shifts["cartoon"].ids} == set(listed["cartoon"]) - set(held_out["cartoon"])


@pytest.mark.parametrize("family", FOLDERS)
def test_classes_and_images_are_in_torchvisions_order(family: str, tmp_path: Path) -> None:
    domain_bed_tree.make(tmp_path, family, per_class=1)
    folders = FOLDERS[family]
    domain = next(iter(folders))
    data = data_of(tmp_path, domain, family=family, val_fraction=0.5)
    theirs = [ImageFolder(str(tmp_path / folder.names[0])) for folder in folders.values()]
    assert all(tuple(folder.classes) == class_folders(family) for folder in theirs)
    labels = {
        item: label
        for split in (data.shifts[domain], data.extras[f"{domain}_out"])
        for item, label in zip(split.ids, split.labels.tolist(), strict=True)
    }
    ids = [f"{domain}/{Path(path).parent.name}/{Path(path).name}" for path, _ in theirs[0].samples]
    assert [labels[item] for item in ids] == theirs[0].targets


@pytest.mark.parametrize(
    ("family", "domains", "classes", "images"),
    [
        ("pacs", 4, 7, 9_991),
        ("vlcs", 4, 5, 10_729),
        ("office_home", 4, 65, 15_588),
        ("terra_incognita", 4, 10, 24_788),
        ("domain_net", 6, 345, 586_575),
    ],
)
def test_the_sizes_are_the_papers(family: str, domains: int, classes: int, images: int) -> None:
    declared = FAMILIES[family]
    assert (len(declared.domains), len(class_folders(family))) == (domains, classes)
    assert list(declared.folders) == list(declared.domains) == sorted(declared.domains)
    assert sum(folder.images for folder in declared.folders.values()) == images
    assert list(class_folders(family)) == sorted(set(class_folders(family)))


def test_classes_have_names_for_prompts() -> None:
    for family, index, name in (
        ("pacs", 0, "dog"),
        ("office_home", 0, "Alarm Clock"),
        ("office_home", 58, "TV"),
        ("office_home", 59, "Table"),
        ("domain_net", 0, "The Eiffel Tower"),
        ("domain_net", 3, "aircraft carrier"),
        ("domain_net", 344, "zigzag"),
    ):
        assert plain_name(class_folders(family)[index]) == name


def test_one_domain_is_measured_and_the_others_train_and_validate(pacs_root: Path) -> None:
    data = data_of(pacs_root)
    assert data.test is None
    assert Counter(data.train.groups) == dict.fromkeys(DOMAINS[:3], 40)
    assert Counter(data.id_val.groups) == dict.fromkeys(DOMAINS[:3], 10)
    lengths = {name: len(split) for name, split in data.measured().items()}
    assert lengths == {"ood/sketch": 40, "ood/sketch_out": 10}
    assert data.derived == {"ood/sketch_all": Derived(("ood/sketch", "ood/sketch_out"))}
    assert data.outside_mean == {"ood/sketch_out", "ood/sketch_all"}
    assert all(split.groups is None for split in data.measured().values())
    assert len(data.notes) == 4
    assert data.notes[3] == (
        "pacs: sketch has 50 images here, 3,929 as published; its numbers are not those of papers"
    )


def test_the_digest_is_of_the_whole_set_and_of_no_place(pacs_root: Path, tmp_path: Path) -> None:
    digest = data_of(pacs_root).digest
    assert data_of(pacs_root, "photo", split_seed=3).digest == digest
    moved = shutil.copytree(pacs_root, tmp_path / "moved")
    assert data_of(moved).digest == digest
    less = moved.rename(tmp_path / "less")
    (less / "PACS" / "photo" / "dog" / "0.jpg").unlink()
    assert data_of(less).digest != digest


def test_office_homes_real_world_may_be_written_as_mirrors_do(tmp_path: Path) -> None:
    domain_bed_tree.make(tmp_path, "office_home", per_class=2)
    usual = data_of(tmp_path, "real_world", family="office_home")
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "office_home", moved / "office_home")
    (moved / "office_home" / "Real World").rename(moved / "office_home" / "RealWorld")
    renamed = data_of(moved, "real_world", family="office_home")
    ids = renamed.shifts["real_world"].ids
    assert (renamed.digest, ids) == (usual.digest, usual.shifts["real_world"].ids)
    assert ids[0].startswith("real_world/")


def test_shifts_may_be_left_out_and_then_their_union_is_too(pacs_root: Path) -> None:
    data = data_of(pacs_root, shifts=[])
    assert ([*data.measured()], data.derived) == (["ood/sketch_out"], {})
    assert data_of(pacs_root, shifts=["sketch"]).digest == data_of(pacs_root).digest
    refused("unknown shift 'sketch_out'", data_of, pacs_root, shifts=["sketch_out"])


@pytest.mark.usefixtures("cache")
def test_bad_files_are_looked_for_once_whatever_is_held_out(
    pacs_root: Path, copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = "photo/dog/7.jpg"
    (copied / "PACS" / bad).write_bytes(b"no image")
    whole, data = data_of(pacs_root), data_of(copied, bad_files="skip")
    ((where, skipped),) = data.skipped.items()
    assert list(skipped) == [bad]
    full, read = ({"train": tree.train, "val": tree.id_val}[where] for tree in (whole, data))
    assert set(full.ids) - set(read.ids) == {bad}
    monkeypatch.setattr(unreadable, "_bad_files", lambda *_: pytest.fail("looked at again"))
    again = data_of(copied, "photo", split_seed=1, bad_files="skip")
    assert [list(files) for files in again.skipped.values()] == [[bad]]
    assert set(again.skipped) <= {"shifts/photo", "extras/photo_out"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"test_domain": None},
            "data.test_domain: which domain is held out? pacs has art_painting",
        ),
        ({"test_domain": "sketsh"}, "data.test_domain: unknown domain 'sketsh'; did you mean"),
        ({"val_fraction": 0.01}, "data.val_fraction: 0.01 of the 50 images of art_painting keeps"),
        ({"root": None}, "data.root: which folder holds the data sets?"),
        ({"root": "/nowhere/at/all"}, "data.root: /nowhere/at/all does not exist"),
    ],
)
def test_what_cannot_be_is_refused(pacs_root: Path, fields: dict[str, Any], message: str) -> None:
    assert refusal(data_of, pacs_root, **fields).startswith(message)


def test_a_missing_domain_is_named_with_where_to_get_it(pacs_root: Path, tmp_path: Path) -> None:
    shutil.copytree(pacs_root / "PACS" / "photo", tmp_path / "PACS" / "photo")
    lines = refusal(data_of, tmp_path).splitlines()[1:]
    lacking = ["PACS/art_painting", "PACS/cartoon", "PACS/sketch"]
    assert [line.split()[0] for line in lines] == lacking
    assert "<class>/<image>, 3,929 images; from https://" in lines[-1]


def test_every_mistake_in_the_folders_comes_at_once(copied: Path) -> None:
    root = copied / "PACS"
    (root / "photo" / "dog").rename(root / "photo" / "dogs")
    shutil.rmtree(root / "sketch" / "house")
    (root / "sketch" / "house").mkdir()
    (root / "cartoon" / "horse" / "4.jpg").unlink()
    (root / "cartoon" / "horse" / "4.jpg").touch()
    message = refusal(data_of, copied)
    for expected in (
        "data.root: pacs cannot be used:",
        "photo: lacks 1 of 7 class folders: dog",
        "photo: has 1 folders that are no class of it: dogs; did you mean 'dog'?",
        "sketch: has class folders without images: house",
        "cartoon: has files that are empty or links to nothing: horse/4.jpg",
    ):
        assert expected in message


@pytest.mark.parametrize("family", ["icon_shift", "image_folder", "imagenet", "fmow", "food101"])
def test_families_without_domains_hold_none_out_and_balance_none(
    family: str, tmp_path: Path
) -> None:
    root = None if family == "icon_shift" else str(tmp_path)
    held_out = DataConfig(family=family, root=root, test_domain="sketch")
    refused(rf"data\.test_domain: {family} has no domains", FAMILIES[family].open, held_out)
    balanced = DataConfig(family="icon_shift", balanced=True)
    refused(r"data\.balanced: icon_shift has no domains", open_data, balanced)


def test_a_folder_no_disk_gives_is_named(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = f"{copied}/PACS/art_painting"
    denied = failing(PermissionError(errno.EACCES, "Permission denied", folder))
    monkeypatch.setattr("carft_sweep.carft_core.data.folders.read_manifest", denied)
    refused(f"^data.root: {folder} cannot be read: Permission denied$", data_of, copied)


FIVE = {"optim.steps": 5}
Finished = tuple[RunFolder, RunResult]


@pytest.fixture(scope="module")
def finished(pacs_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("run")
    return RunFolder(folder), trained(pacs_config(FIVE), folder)


@pytest.mark.parametrize("family", domainbed.DOMAIN_BED, ids=lambda family: family.name)
def test_the_defaults_are_domainbeds_budget_and_batches(family: Family) -> None:
    fields = {"data": {"family": family.name}, "algorithm": "car_ft"}
    config, by_epochs = trial_config(fields), trial_config({**fields, "optim": {"epochs": 3}})
    assert (config.optim.steps, config.optim.epochs, config.optim.batch_size) == (5000, None, 32)
    assert config.optim.steps_per_epoch == (1000 if family.name == "domain_net" else 300)
    assert config.data.balanced
    assert (config.data.val_fraction, config.data.augmentation) == (0.2, "domainbed")
    assert config.keep.result == "best_val"
    optim = by_epochs.optim
    assert (optim.epochs, optim.steps, optim.steps_per_epoch) == (3, None, None)


def test_a_run_measures_what_domainbed_measures_and_no_id_test(finished: Finished) -> None:
    folder, result = finished
    assert {name for name in result.metrics if name.endswith("/top1")} == {
        *("id/val/top1", "ood/sketch/top1", "ood/sketch_out/top1", "ood/sketch_all/top1"),
        *("ood/mean/top1", "gain/ood/top1"),
    }
    assert result.metrics["ood/mean/top1"] == result.metrics["ood/sketch/top1"]
    parts = [result.metrics[f"ood/{name}/top1"] for name in ("sketch", "sketch_out", "sketch_all")]
    assert parts[2] == pytest.approx(0.8 * parts[0] + 0.2 * parts[1])
    assert "ood/sketch/mean_group_top1" not in result.metrics
    rows = pq.read_table(folder.predictions("unmerged")).to_pylist()
    counts = {"id/val": 30, "ood/sketch": 40, "ood/sketch_out": 10, "ood/sketch_all": 50}
    assert Counter(row["split"] for row in rows) == counts
    assert result.facts["contexts"] == "known_domain_words without sketch"
    assert result.facts["contexts_name"] == []
    assert result.facts["budget"] == "5 steps, balanced"


def test_the_result_is_the_interval_best_over_the_training_domains(finished: Finished) -> None:
    folder, result = finished
    history = folder.history()
    assert [report["step"] for report in history] == [0, 2, 4, 5]
    values = [report["metrics"]["id/val/mean_group_top1"] for report in history[1:]]
    assert result.metrics["id/val/mean_group_top1"] == max(values)
    rows = pq.read_table(folder.predictions("unmerged")).to_pylist()
    by_domain: dict[str, list[bool]] = {}
    for row in rows:
        if row["split"] == "id/val":
            hit = row["label"] == row["prediction"]
            by_domain.setdefault(row["id"].partition("/")[0], []).append(hit)
    means = [sum(hits) / len(hits) for hits in by_domain.values()]
    assert len(means) == 3
    assert max(values) == pytest.approx(sum(means) / 3)


def test_runs_differ_by_what_is_held_out_and_by_balance(pacs_config: Config) -> None:
    fields = {"test_domain": "photo", "split_seed": 1, "balanced": False}
    changes = [{}, *({f"data.{name}": value} for name, value in fields.items())]
    assert len({identify(pacs_config(change), 0).digest for change in changes}) == 4


def test_the_export_has_a_card_without_an_id_test(
    pacs_config: Config, finished: Finished, tmp_path: Path
) -> None:
    export(finished[0].path, pacs_config(FIVE), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "ood/sketch_out" in card
    assert "id/test" not in card
    assert "gap" not in card
    contexts = json.loads((tmp_path / "model" / "classes.json").read_text())["contexts"]
    assert "a sketch of a {}" not in contexts
    assert "a cartoon of a {}" in contexts
