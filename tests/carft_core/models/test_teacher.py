"""The zero-shot features of fixed views, and the cache in which they are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from carft_sweep.carft_core.data import Source
from carft_sweep.carft_core.data.transforms import AUGMENTATIONS
from carft_sweep.carft_core.models import teacher
from carft_sweep.carft_core.models.clip import open_model
from carft_sweep.carft_core.models.teacher import Teacher, is_convolutional
from carft_sweep.carft_core.training.setup import RunSetup, open_setup
from tests.carft_core.trained import Config


@pytest.fixture
def setup(toy_config: Config, cache: Path) -> RunSetup:
    """With a cache that has nothing in it."""
    assert not cache.exists()
    return open_setup(toy_config())


def kept_files(cache: Path) -> list[Path]:
    return sorted((cache / "image_features").glob("*"))


@pytest.mark.parametrize("name", ["train", "id/val", "ood/pale"])
def test_features_are_the_zero_shot_towers_on_fixed_views(setup: RunSetup, name: str) -> None:
    teacher = setup.teacher
    split = teacher.splits[name]
    views = split.views(range(len(split)), transform=teacher.transform, seed=None, epoch=0)
    with torch.no_grad():
        expected = teacher.classifier.features(teacher.transform.normalise(views))
    for _ in range(2):
        features = teacher.features(name)
        assert (features.dtype, features.device.type) == (torch.float32, "cpu")
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_they_are_computed_once_and_take_part_in_a_gradient(
    setup: RunSetup, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = setup.teacher
    assert teacher.cached_features("id/val") is None
    computed = teacher.features("id/val")
    assert len(kept_files(cache)) == 1
    monkeypatch.setattr(Source, "views", lambda *_, **__: pytest.fail("an image was read"))
    again = teacher.features("id/val")
    assert torch.equal(again, computed)
    for features in (computed, again):
        head = torch.ones(features.shape[1], requires_grad=True)
        (features @ head).sum().backward()
        assert head.grad is not None


@pytest.mark.parametrize("damage", ["garbage", "cut", "other", "gone", "folder"])
def test_a_damaged_file_is_computed_anew(setup: RunSetup, cache: Path, damage: str) -> None:
    teacher = setup.teacher
    computed = teacher.features("id/test")
    (file,) = kept_files(cache)
    whole = file.read_bytes()
    if damage == "other":
        teacher.cache_features("id/test", computed[:-1])  # of another number of images
    elif damage in ("gone", "folder"):
        file.unlink()
        if damage == "folder":
            file.mkdir()  # even the superuser cannot read it
    else:
        file.write_bytes(b"no safetensors" if damage == "garbage" else whole[:-7])
    assert teacher.cached_features("id/test") is None
    assert torch.equal(teacher.features("id/test"), computed)
    assert file.is_dir() or file.read_bytes() == whole


def order_changed(teacher: Teacher) -> Teacher:
    return replace(teacher, splits={"id/val": teacher.splits["id/val"].subset([1, 0, 2, 3, 4, 5])})


def transformed(teacher: Teacher, **fields: Any) -> Teacher:
    return replace(teacher, transform=replace(teacher.transform, **fields))


@pytest.mark.parametrize(
    ("change", "decides"),
    [
        (lambda known: replace(known, digests={**known.digests, "id/val": "0" * 64}), True),
        (lambda known: replace(known, clip=replace(known.clip, digest="0" * 64)), True),
        (lambda known: transformed(known, interpolation="bilinear"), True),
        (lambda known: replace(known, precision="bf16"), True),
        (lambda known: replace(known, device=torch.device("meta")), True),
        (order_changed, True),
        (lambda known: transformed(known, augmentation=AUGMENTATIONS["domainbed"]), False),
        (lambda known: replace(known, batch_size=2, workers=2), False),
        (lambda known: replace(known, w_ctx=-known.w_ctx, class_names=("a", "b", "c")), False),
    ],
)
def test_whatever_decides_a_feature_and_nothing_else_is_a_part_of_the_key(
    setup: RunSetup, change: Callable[[Teacher], Teacher], decides: bool
) -> None:
    features = setup.teacher.features("id/val")
    stored = change(setup.teacher).cached_features("id/val")
    assert (stored is None) == decides
    assert stored is None or torch.equal(stored, features)


def test_so_are_libraries_that_make_views(setup: RunSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.teacher.features("id/val")
    monkeypatch.setattr(teacher, "LIBRARIES", ("another",))
    assert setup.teacher.cached_features("id/val") is None


def test_a_split_of_the_same_images_by_another_name_is_known(setup: RunSetup, cache: Path) -> None:
    known = setup.teacher
    splits, digests = known.splits["ood/dark"], known.digests["ood/dark"]
    named = replace(known, splits={"ood/again": splits}, digests={"ood/again": digests})
    assert torch.equal(named.features("ood/again"), known.features("ood/dark"))
    assert len(kept_files(cache)) == 1


def test_a_residual_network_is_convolutional_and_a_vit_is_not(setup: RunSetup) -> None:
    assert not setup.teacher.convolutional
    tower = open_model("builtin").model.visual
    assert isinstance(tower, torch.nn.Module)
    assert is_convolutional(tower)
