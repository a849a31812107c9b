"""WILDS' own package and these families say the same of each image, and measure the same."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from carft_sweep.carft_core.data import FAMILIES, Split
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.evaluation.metrics import (
    macro_f1,
    mean_per_class_top1,
    top1,
    worst_group_top1,
)
from tests import wilds_tree

wilds = pytest.importorskip("wilds", reason="pip install wilds")
ARCHIVES = {"iwildcam": (wilds_tree.IWILDCAM, "2.0"), "fmow": (wilds_tree.FMOW, "1.1")}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both data sets, with the files by which the package knows that they were downloaded."""
    root = wilds_tree.make(tmp_path_factory.mktemp("wilds"))
    for folder, version in ARCHIVES.values():
        (root / folder / f"RELEASE_v{version}.txt").touch()
    return root


def splits(root: Path, family: str) -> dict[str, Split]:
    data = FAMILIES[family].open(DataConfig(family=family, root=str(root)))
    assert data.val is not None
    return {
        "train": data.train,
        "id_val": data.val,
        "id_test": data.id_test,
        "val": data.extras["val"],
        "test": data.shifts["test"],
    }


def theirs(root: Path, family: str) -> Any:
    return wilds.get_dataset(family, root_dir=str(root), download=False)


@pytest.mark.parametrize("family", ARCHIVES)
def test_splits_labels_and_images_are_those_of_the_package(root: Path, family: str) -> None:
    dataset = theirs(root, family)
    for name, split in splits(root, family).items():
        subset = dataset.get_subset(name)
        assert len(subset) == len(split)
        assert subset.y_array.tolist() == split.labels.tolist()
        for place in (0, len(split) - 1):
            shown = dataset.get_input(subset.indices[place]).convert("RGB")
            assert shown.tobytes() == split._image(place).tobytes()  # type: ignore[attr-defined]


def test_regions_are_those_of_the_package(root: Path) -> None:
    dataset = theirs(root, "fmow")
    known = [region if isinstance(region, str) else "" for region in dataset.metadata_map["region"]]
    field = dataset.metadata_fields.index("region")
    for name, split in splits(root, "fmow").items():
        regions = [known[number] for number in dataset.get_subset(name).metadata_array[:, field]]
        assert split.groups == tuple("" if region == "Other" else region for region in regions)


def mean_of(src: Tensor, index: Tensor, *, dim_size: int, reduce: str) -> Tensor:
    """`torch_scatter.scatter`, which the package calls and which has to be compiled for a torch."""
    zeros = torch.zeros(dim_size, dtype=src.dtype)
    return zeros.scatter_reduce(0, index, src, reduce, include_self=False)


@pytest.mark.parametrize("family", ARCHIVES)
def test_metrics_are_those_of_the_package(
    root: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch_scatter", SimpleNamespace(scatter=mean_of))
    dataset = theirs(root, family)
    generator = torch.Generator().manual_seed(0)
    for name, split in splits(root, family).items():
        right = torch.rand(len(split), generator=generator) < 0.6
        other = torch.randint(5, (len(split),), generator=generator)
        told = torch.where(right, split.labels, other)
        logits = torch.eye(182)[told]
        metadata = dataset.get_subset(name).metadata_array
        found, _ = dataset.eval(told, split.labels, metadata)
        assert top1(logits, split.labels) == pytest.approx(found["acc_avg"])
        if family == "iwildcam":
            assert macro_f1(logits, split.labels) == pytest.approx(found["F1-macro_all"])
            recall = mean_per_class_top1(logits, split.labels)
            assert recall == pytest.approx(found["recall-macro_all"])
        else:
            assert split.groups is not None
            worst = worst_group_top1(logits, split.labels, split.groups)
            assert worst == pytest.approx(found["acc_worst_region"])
