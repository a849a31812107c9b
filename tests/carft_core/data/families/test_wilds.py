"""iWildCam and FMoW of WILDS: which image is in which split, class and region; refusals."""

from __future__ import annotations

import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.metrics import f1_score
from torch import Tensor

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.data import FAMILIES, FamilyData, Split, Transform, open_data
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.wilds import FMOW_BENCHMARK as FMOW
from carft_sweep.carft_core.data.families.wilds import IWILDCAM_BENCHMARK as IWILDCAM
from carft_sweep.carft_core.data.families.wilds import _open_data, read_fmow
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.evaluation import metrics as ours
from carft_sweep.carft_core.models.prompts import template_set
from carft_sweep.carft_core.runs.folder import RunFolder
from tests import wilds_tree
from tests.carft_core.refusals import refusal, refused
from tests.carft_core.trained import trained
from tests.wilds_tree import CATEGORIES, fmow_row, fmow_rows, iwildcam_row, iwildcam_rows

FEW = [
    iwildcam_row("train", 0, 0, 0),
    iwildcam_row("train", 0, 0, 1),
    *(
        iwildcam_row(split, 0, 1 + n)
        for n, split in enumerate(("id_val", "id_test", "val", "test"))
    ),
]
"""A burst of two images to train on, and an image of each other split; all empty of animals."""
PLAIN = Transform(size=36, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


ARCHIVES = {"iwildcam": (wilds_tree.IWILDCAM, "2.0"), "fmow": (wilds_tree.FMOW, "1.1")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both data sets, as WILDS' own package looks for them; shared: nothing in it is changed."""
    root = wilds_tree.make(tmp_path_factory.mktemp("wilds"))
    for folder, version in ARCHIVES.values():
        (root / folder / f"RELEASE_v{version}.txt").touch()
    return root


def data_of(root: Path, family: str) -> FamilyData:
    return FAMILIES[family].open(DataConfig(family=family, root=str(root)))


def of_wilds(data: FamilyData) -> dict[str, Split]:
    """The splits by the names that WILDS has for them."""
    outside = {"val": data.extras["val"], "test": data.shifts["test"]}
    return {"train": data.train, "id_val": data.id_val, "id_test": data.id_test, **outside}


def files(split: Split) -> list[str]:
    return [item.rpartition("/")[2] for item in split.ids]


def test_the_published_counts_are_those_of_wilds() -> None:
    # iWildCam 2.0 has 203,029 images; the five splits of FMoW are 141,696 of its 470,086 rows.
    assert (IWILDCAM.whole.images, FMOW.whole.images) == (203_029, 141_696)
    assert {name: folder.images for name, folder in FAMILIES["fmow"].folders.items()} == {
        "train": 76_863,
        "val": 11_483,
        "test": 11_327,
        "extras/val": 19_915,
        "shifts/test": 22_108,
    }


def test_iwildcams_classes_are_those_of_wise_ft_four_names_twice() -> None:
    names = IWILDCAM.class_names()
    assert len(names) == 182
    sample = ("empty", "white-lipped peccary", "günther's dik-dik", "central american red brocket")
    assert tuple(names[index] for index in (0, 1, 52, 181)) == sample
    places = {name: tuple(np.flatnonzero(np.array(names) == name)) for name in set(names)}
    twice = {name: at for name, at in places.items() if len(at) > 1}
    assert twice == {
        "lowland paca": (3, 148),
        "jaguarundi": (19, 174),
        "unknown bird": (82, 178),
        "central american red brocket": (153, 181),
    }
    assert set(FAMILIES["iwildcam"].shared_names) == {*twice}


def test_fmows_classes_are_those_of_wilds_in_order_and_the_templates_those_of_wise_ft() -> None:
    names = FMOW.class_names()
    assert (len(names), names[0], names[-1]) == (62, "airport", "zoo")
    assert list(names) == sorted(names)
    assert template_set("iwildcam").templates == ("a photo of {}.", "{} in the wild.")
    fmow = template_set("fmow").templates
    assert (len(fmow), *fmow[:2]) == (14, "satellite photo of a {}.", "aerial photo of a {}.")


def test_every_image_of_iwildcam_is_in_the_split_and_class_of_its_row(root: Path) -> None:
    data = data_of(root, "iwildcam")
    for name, split in of_wilds(data).items():
        rows = [row for row in iwildcam_rows() if row["split"] == name]
        assert files(split) == [row["filename"] for row in rows]
        assert split.labels.tolist() == [row["y"] for row in rows]
        assert split.groups is None
    assert (data.derived, list(data.measured())) == ({}, ["id/test", "ood/test", "ood/val"])
    units = data.train.units
    assert units[:3] == ("sequence 0/0", "sequence 0/0", "sequence 1/0"), "a burst is one unit"
    assert set(Counter(units).values()) == {1, 2}


def test_fmow_is_divided_by_original_split_and_year(tmp_path: Path) -> None:
    for number, (original, time, split) in enumerate(
        [
            ("train", "2002-01-01T00:00:00Z", "train"),
            ("train", "2012-12-31T23:59:59Z", "train"),
            ("train", "2013-01-01T00:00:00Z", None),
            ("val", "2012-12-31T23:59:59.999Z", "id_val"),
            ("val", "2013-01-01T00:00:00.000Z", "val"),
            ("val", "2015-12-31T23:59:59Z", "val"),
            ("val", "2016-01-01T00:00:00Z", None),
            ("test", "2012-12-31T23:59:59Z", "id_test"),
            ("test", "2015-12-31T23:59:59Z", None),
            ("test", "2016-01-01T00:00:00Z", "test"),
            ("test", "2017-09-09T12:00:00Z", "test"),
            ("seq", "2010-01-01T00:00:00Z", None),
            ("seq", "2016-01-01T00:00:00Z", None),
        ]
    ):
        folder = tmp_path / str(number)
        wilds_tree.make_fmow(folder, [fmow_row(original, "zoo", time, "FRA")])
        splits = [image.split for image in read_fmow(folder, FMOW.class_names())]
        assert splits == ([] if split is None else [split]), (original, time)


def test_the_number_of_an_image_of_fmow_is_its_row_with_all_rows_counted(root: Path) -> None:
    rows, data = fmow_rows(), data_of(root, "fmow")
    for split in of_wilds(data).values():
        for file, label in zip(files(split), split.labels.tolist(), strict=True):
            row = rows[int(file.removeprefix("rgb_img_").removesuffix(".png"))]
            assert CATEGORIES[label] == row["category"]
            assert row["split"] != "seq"
    assert sum(map(len, of_wilds(data).values())) == 6 * len(CATEGORIES)


def test_regions_are_the_countries_and_other_is_none(root: Path) -> None:
    rows, split = fmow_rows(), data_of(root, "fmow").shifts["test"]
    regions = {"CHN": "Asia", "FRA": "Europe", "KEN": "Africa", "USA": "Americas"}
    countries = [rows[int(file[8:-4])]["country_code"] for file in files(split)]
    expected = [(regions | {"AUS": "Oceania"}).get(str(country), "") for country in countries]
    assert {"ATA", "XKX", "ZZZ", ""} < set(countries)
    assert split.groups == tuple(expected)


def test_the_images_of_a_place_are_one_unit(tmp_path: Path) -> None:
    rows = [
        fmow_row("train", "zoo", f"201{year}-01-01T00:00:00Z", "FRA", place=place)
        for year, place in ((0, 7), (1, 7), (1, 8))
    ]
    wilds_tree.make_fmow(tmp_path / "x", rows)
    units = [image.unit for image in read_fmow(tmp_path / "x", FMOW.class_names())]
    assert units == ["train/zoo/zoo_7", "train/zoo/zoo_7", "train/zoo/zoo_8"]
    bare = [{name: row[name] for name in row if name != "img_path"} for row in rows]
    wilds_tree.make_fmow(tmp_path / "y", bare)
    assert len({image.unit for image in read_fmow(tmp_path / "y", FMOW.class_names())}) == 3


@pytest.mark.parametrize("family", ["iwildcam", "fmow"])
def test_a_view_is_of_the_file_that_the_id_names(root: Path, family: str) -> None:
    folder = {"iwildcam": "iwildcam_v2.0/train", "fmow": "fmow_v1.1/images"}[family]
    for split in of_wilds(data_of(root, family)).values():
        last = len(split) - 1
        view = split.views([last], transform=PLAIN, seed=None, epoch=0)
        with Image.open(root / folder / files(split)[last]) as image:
            centre = np.asarray(image.convert("RGB"))[:, 2:38]
        assert np.array_equal(view[0].numpy(), centre.transpose(2, 0, 1))


def test_the_digest_knows_rows_names_and_sizes_but_no_place(tmp_path: Path) -> None:
    def digest(name: str, change: Callable[[Path], object]) -> str:
        root = tmp_path / name
        change(wilds_tree.make_iwildcam(root / wilds_tree.IWILDCAM, FEW))
        return data_of(root, "iwildcam").digest

    unchanged = {
        digest("as it is", lambda _: None),
        digest("a file more", lambda folder: (folder / "train" / "more.jpg").write_bytes(b"x")),
        digest("a table more", lambda folder: (folder / "categories.csv").write_text("y")),
    }
    changed = {
        digest("another size", lambda folder: (folder / "train" / "0-0.jpg").write_bytes(b"xy")),
        digest("another class", replaced("train,0,0,", "train,0,5,")),
        digest("another burst", replaced("train,0,0,0,", "train,0,0,7,")),
        digest("another split", replaced("train,", "val,")),
    }
    assert (len(unchanged), len(changed | unchanged)) == (1, 5)


def test_no_images_are_listed_twice(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the folder had not just been made.
    monkeypatch.setattr("carft_sweep.carft_core.data.listing.SETTLED", -1_000_000_000_000)
    before = _open_data.__wrapped__(root / wilds_tree.FMOW, FMOW)
    monkeypatch.setattr("carft_sweep.carft_core.data.listing._images", None)
    assert _open_data.__wrapped__(root / wilds_tree.FMOW, FMOW).digest == before.digest


Change = Callable[[Path], object]


def replaced(old: str, new: str, file: str = "metadata.csv") -> Change:
    def change(folder: Path) -> None:
        text = (folder / file).read_text()
        assert old in text
        (folder / file).write_text(text.replace(old, new, 1))

    return change


def removed(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


def emptied(file: str) -> Change:
    return lambda folder: (folder / file).write_bytes(b"")


def as_folder(file: str) -> Change:
    def change(folder: Path) -> None:
        (folder / file).unlink()
        (folder / file).mkdir()

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (shutil.rmtree, "iwildcam_v2.0 with metadata.csv and train/<image>, 203,029 images; from"),
        (removed("metadata.csv"), "metadata.csv is missing; it is in WILDS'"),
        (as_folder("metadata.csv"), "metadata.csv cannot be read"),
        (emptied("metadata.csv"), "not the table that WILDS publishes"),
        (replaced(",y,", ",label,"), "lacks columns: y; it has split, location_remapped, label"),
        (replaced("train,0,0,", "train,0,zero,"), "not the table that WILDS publishes: In CSV"),
        (replaced("train,0,0,", "train,0,,"), "metadata.csv: row 0 has no y"),
        (replaced("train,0,0,", "train,0,182,"), "row 0 has y 182, expected 0 to 181"),
        (replaced("id_val,", "idval,"), "unknown split 'idval'; did you mean 'id_val'?"),
        (lambda folder: shutil.rmtree(folder / "train"), "lacks the folder train/ with its images"),
        (removed("train/0-1.jpg"), "lacks 1 of the 6 images that the table names"),
        (emptied("train/0-1.jpg"), "are empty or links to nothing: 0-1"),
        (replaced("0-1.jpg", "0-0.jpg"), "its table names images twice: 0-0.jpg"),
        (replaced("0-1.jpg", "../metadata.csv"), "that the table names: ../metadata.csv"),
        (replaced("id_val,", "train,"), "its table names no image of id_val"),
    ],
)
def test_a_tree_that_is_not_wilds_says_why(tmp_path: Path, change: Change, words: str) -> None:
    change(wilds_tree.make_iwildcam(tmp_path / wilds_tree.IWILDCAM, FEW))
    assert words in refusal(data_of, tmp_path, "iwildcam")


def test_a_category_or_split_of_fmow_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    row = fmow_row("train", "zo", "2010-01-01T00:00:00Z", "FRA")
    folder = wilds_tree.make_fmow(tmp_path / wilds_tree.FMOW, [row])
    assert "row 0: unknown category 'zo'; did you mean 'zoo'?" in refusal(data_of, tmp_path, "fmow")
    replaced("train,", "training,", "rgb_metadata.csv")(folder)
    message = refusal(data_of, tmp_path, "fmow")
    assert "row 0: unknown split 'training'; did you mean 'train'?" in message
    replaced("training,", "train,", "rgb_metadata.csv")(folder)
    replaced(",zo,", ",zoo,", "rgb_metadata.csv")(folder)
    (folder / "country_code_mapping.csv").unlink()
    assert "country_code_mapping.csv is missing" in refusal(data_of, tmp_path, "fmow")


@pytest.mark.parametrize("family", ["iwildcam", "fmow"])
def test_there_are_official_splits_and_one_shift(root: Path, family: str) -> None:
    known = DataConfig(family=family, root=str(root))
    with pytest.raises(RequestError, match=r"data\.test_domain: .* its splits are official"):
        FAMILIES[family].open(known.model_copy(update={"test_domain": "Asia"}))
    with pytest.raises(RequestError, match=r"unknown shift 'tests'; did you mean 'test'"):
        open_data(known.model_copy(update={"shifts": ("tests",)}))
    none = open_data(known.model_copy(update={"shifts": ()}))
    assert list(none.measured()) == ["id/test", "ood/val"]


def test_a_bad_file_may_be_the_last_of_its_class_where_classes_lack_anyhow(tmp_path: Path) -> None:
    more = [*FEW, iwildcam_row("id_val", 1, 9), iwildcam_row("train", 1, 10)]

    def skipping(name: str, broken: str) -> FamilyData:
        folder = wilds_tree.make_iwildcam(tmp_path / name / wilds_tree.IWILDCAM, more)
        (folder / "train" / broken).write_bytes(b"no image")
        return open_data(DataConfig(family="iwildcam", root=str(tmp_path / name), bad_files="skip"))

    assert list(skipping("one", "9-0.jpg").skipped["val"]) == ["val/9-0.jpg"]
    refused("train has no image of white-lipped peccary", skipping, "two", "10-0.jpg")


@pytest.mark.parametrize("family", ["iwildcam", "fmow"])
def test_zero_shot_is_measured_by_the_benchmarks_own_metric(
    root: Path, tiny_clip_files: Path, tmp_path: Path, family: str
) -> None:
    config = trial_config(
        {
            "model": {"name": str(tiny_clip_files)},
            "data": {"family": family, "root": str(root)},
            "prompts": {"contexts": family},
            "algorithm": "zero_shot",
            "device": "cpu",
        }
    )
    result = trained(config, tmp_path / "run")
    metrics, data = result.metrics, data_of(root, family)
    assert set(result.facts["images"]) == {"id/val", "id/test", "ood/test", "ood/val"}
    table = pq.read_table(RunFolder(tmp_path / "run").predictions("unmerged")).to_pydict()
    columns = {name: np.array(table[name]) for name in ("split", "label", "prediction")}
    own = "macro_f1" if family == "iwildcam" else "worst_group_top1"
    for name, split in {"id/val": data.id_val, **data.measured()}.items():
        own_rows = columns["split"] == name
        label, predicted = columns["label"][own_rows], columns["prediction"][own_rows]
        assert label.tolist() == split.labels.tolist()
        if family == "iwildcam":
            known = np.unique(label)
            expected = f1_score(label, predicted, average="macro", labels=known, zero_division=0)
        else:
            groups = np.array(split.groups)
            hits = [(label == predicted)[groups == region].mean() for region in set(groups) - {""}]
            assert len(hits) == 5
            expected = min(hits)
        assert metrics[f"{name}/{own}"] == pytest.approx(expected)
    assert metrics[f"ood/mean/{own}"] == metrics[f"ood/test/{own}"]
    assert metrics["ood/mean/nll"] == metrics["ood/test/nll"] != metrics["ood/val/nll"]


@pytest.fixture
def package(root: Path) -> Callable[[str], Any]:
    wilds = pytest.importorskip("wilds", reason="pip install wilds")
    return lambda family: wilds.get_dataset(family, root_dir=str(root), download=False)


@pytest.mark.parametrize("family", ARCHIVES)
def test_splits_labels_images_and_regions_are_those_of_the_package(
    root: Path, family: str, package: Callable[[str], Any]
) -> None:
    dataset = package(family)
    for name, split in of_wilds(data_of(root, family)).items():
        subset = dataset.get_subset(name)
        assert len(subset) == len(split)
        assert subset.y_array.tolist() == split.labels.tolist()
        for place in (0, len(split) - 1):
            shown = dataset.get_input(subset.indices[place]).convert("RGB")
            assert shown.tobytes() == split.source.read(place).tobytes()
        if family == "fmow":
            mapped = dataset.metadata_map["region"]
            known = [region if isinstance(region, str) else "" for region in mapped]
            numbers = subset.metadata_array[:, dataset.metadata_fields.index("region")]
            regions = [known[number] for number in numbers]
            assert split.groups == tuple("" if region == "Other" else region for region in regions)


def mean_of(src: Tensor, index: Tensor, *, dim_size: int, reduce: str) -> Tensor:
    """`torch_scatter.scatter`, which the package calls and which has to be compiled for a torch."""
    zeros = torch.zeros(dim_size, dtype=src.dtype)
    return zeros.scatter_reduce(0, index, src, reduce, include_self=False)


@pytest.mark.parametrize("family", ARCHIVES)
def test_metrics_are_those_of_the_package(
    root: Path, family: str, package: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_scatter", SimpleNamespace(scatter=mean_of))
    dataset, generator = package(family), torch.Generator().manual_seed(0)
    for name, split in of_wilds(data_of(root, family)).items():
        right = torch.rand(len(split), generator=generator) < 0.6
        other = torch.randint(5, (len(split),), generator=generator)
        predicted = torch.where(right, split.labels, other)
        logits = torch.eye(182)[predicted]
        theirs, _ = dataset.eval(predicted, split.labels, dataset.get_subset(name).metadata_array)
        assert ours.top1(logits, split.labels) == pytest.approx(theirs["acc_avg"])
        if family == "iwildcam":
            assert ours.macro_f1(logits, split.labels) == pytest.approx(theirs["F1-macro_all"])
            recall = ours.mean_per_class_top1(logits, split.labels)
            assert recall == pytest.approx(theirs["recall-macro_all"])
        else:
            assert split.groups is not None
            worst = ours.worst_group_top1(logits, split.labels, split.groups)
            assert worst == pytest.approx(theirs["acc_worst_region"])
