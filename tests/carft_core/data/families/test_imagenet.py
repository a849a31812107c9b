"""ImageNet and its shifts: which class is which, what is refused, and how it is measured."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torchvision.datasets import ImageFolder

from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.data import FamilyData, Split, Transform, open_data
from carft_sweep.carft_core.data.base import DataConfig, Derived, Files
from carft_sweep.carft_core.data.families.imagenet import IMAGENET
from carft_sweep.carft_core.data.images import read_inside_border, read_plain, read_rgb
from carft_sweep.carft_core.evaluation.measure import predict, split_metrics
from carft_sweep.carft_core.evaluation.predictions import Predictions
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.runs.evaluations import finish, is_complete
from carft_sweep.carft_core.runs.identity import identify
from tests.carft_core.bare_teacher import bare_teacher
from tests.carft_core.refusals import refusal
from tests.carft_core.trained import trained
from tests.imagenet_tree import OBJECTNET, OBJECTS, V2, WNIDS

PLAIN = Transform(size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
FIVE = ("v2", "r", "a", "sketch", "objectnet")


@pytest.fixture(autouse=True)
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening looks for no broken files among thousands."""
    monkeypatch.setattr("carft_sweep.carft_core.data.unreadable.READ_UNASKED", 0)


def data_of(root: Path, shifts: Sequence[str] | None = None) -> FamilyData:
    fields = {"family": "imagenet", "root": str(root), "shifts": shifts}
    return IMAGENET.open(DataConfig.model_validate(fields))


def test_the_order_of_classes_is_torchvisions_and_open_clips_names(imagenet_root: Path) -> None:
    data = data_of(imagenet_root)
    theirs = ImageFolder(str(imagenet_root / "imagenet" / "train"))
    assert theirs.classes == list(WNIDS)
    ours = [id_.removeprefix("train/") for id_ in data.train.ids]
    assert ours == [f"{Path(p).parent.name}/{Path(p).name}" for p, _ in theirs.samples]
    assert data.train.labels.tolist() == theirs.targets
    assert data.class_names == tuple(open_clip.IMAGENET_CLASSNAMES)


def test_the_folders_of_v2_are_indices_not_names_in_their_order(imagenet_root: Path) -> None:
    split = data_of(imagenet_root).shifts["v2"]
    labels = split.labels.tolist()
    assert [id_.split("/")[1] for id_ in split.ids] == [*map(str, labels)]
    assert sorted(labels) == list(range(1000))


def test_r_and_a_have_200_classes_each_and_share_86(imagenet_root: Path) -> None:
    data = data_of(imagenet_root)
    assert tuple(data.shifts) == FIVE
    r, a = (data.shifts[name].classes or () for name in ("r", "a"))
    assert (len(r), len(a), len({*r} & {*a})) == (200, 200, 86)
    part_r, part_a = (Derived(("id/test",), classes) for classes in (r, a))
    assert data.derived == {"id/test_r": part_r, "id/test_a": part_a}
    # The first and last of wise-ft's CLASS_SUBLISTs, by their indices.
    assert (r[:3], a[:3], r[-1], a[-1]) == ((1, 2, 4), (6, 11, 13), 988, 988)
    for name, classes in (("r", r), ("a", a)):
        assert sorted(data.shifts[name].labels.tolist()) == sorted(classes)
    # What differs from the published counts is noted, not refused.
    assert "imagenet: train has 3,000 images here, 1,281,167 as published" in data.notes[0]
    assert any("objectnet has 113 images here, 18,574 as published" in note for note in data.notes)
    assert len(data.notes) == 7


def test_objectnet_has_113_of_its_objects_and_125_classes(imagenet_root: Path) -> None:
    split = data_of(imagenet_root).shifts["objectnet"]
    assert len(split) == len(split.classes or ()) == len(split.alike) == 113
    assert not any("air_freshener" in id_ for id_ in split.ids)
    grouped = [index for group in split.alike.values() for index in group]
    assert len(grouped) == len(set(grouped)) == 125
    names = {
        id_.split("/")[1]: [open_clip.IMAGENET_CLASSNAMES[index] for index in split.alike[label]]
        for id_, label in zip(split.ids, split.labels.tolist(), strict=True)
    }
    assert names["chair"] == ["barber chair", "folding chair", "rocking chair"]
    assert (names["tie"], names["wok"]) == (["bow tie", "Windsor tie"], ["wok"])


class Echo(nn.Module):
    """A tower whose features are given beforehand, in the order of the images."""

    def __init__(self, features: torch.Tensor) -> None:
        super().__init__()
        self.features, self.at = features, 0

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.at += len(images)
        return self.features[self.at - len(images) : self.at]


def predicted(split: Split, seed: int = 0) -> tuple[Predictions, torch.Tensor]:
    """What a random classifier says of a split, and its 1000 logits before any restriction."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(16, 1000, bias=False)
    head.weight.data = torch.randn(1000, 16, generator=generator)
    features = torch.randn(len(split), 16, generator=generator)
    teacher = bare_teacher(split, PLAIN, name="ood/x", batch_size=64)
    (made,) = predict([ImageClassifier(Echo(features), head)], "ood/x", teacher)
    return made, F.normalize(features, dim=1) @ head.weight.data.T


def test_objectnet_is_scored_by_wise_fts_rule(imagenet_root: Path) -> None:
    split = data_of(imagenet_root).shifts["objectnet"]
    made, logits = predicted(split)
    # Its rule: 113 logits in the order of the folders' names, each the maximum over the folder's
    # classes; the label is the place of the folder among the names.
    folders = sorted(OBJECTS)
    projected = torch.stack([logits[:, OBJECTS[name]].amax(dim=1) for name in folders], dim=1)
    labels = torch.tensor([folders.index(id_.split("/")[1]) for id_ in split.ids])
    metrics = split_metrics(made)
    assert metrics["top1"] == float((projected.argmax(dim=1) == labels).double().mean())
    assert metrics["nll"] == pytest.approx(float(F.cross_entropy(projected.double(), labels)), 1e-5)
    assert int(made.logits.isfinite().sum(dim=1).unique()) == 113


@pytest.mark.parametrize("name", ["r", "a"])
def test_r_and_a_are_scored_among_their_own_classes(imagenet_root: Path, name: str) -> None:
    split = data_of(imagenet_root).shifts[name]
    made, logits = predicted(split)
    # wise-ft masks 1000 logits to the columns of the sublist, and counts labels within it.
    wnids = sorted({id_.split("/")[1] for id_ in split.ids})
    masked = logits[:, [wnid in wnids for wnid in WNIDS]]
    labels = torch.tensor([wnids.index(id_.split("/")[1]) for id_ in split.ids])
    assert split_metrics(made)["top1"] == float((masked.argmax(dim=1) == labels).double().mean())


def test_objectnet_is_seen_without_its_border(tmp_path: Path) -> None:
    pixels = np.full((20, 30, 3), 100, np.uint8)
    pixels[:2] = pixels[-2:] = pixels[:, :2] = pixels[:, -2:] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    inside = read_inside_border(tmp_path / "x.png")
    assert inside.size == (26, 16)
    assert np.all(np.asarray(inside) == 100)


def test_images_are_read_as_torchvision_reads_them(tmp_path: Path) -> None:
    folder = tmp_path / "n01440764"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10), "red").save(folder / "turned.jpg", exif=exif)
    Image.new("CMYK", (4, 4), (10, 20, 30, 40)).save(folder / "cmyk.jpg")
    Image.new("RGBA", (4, 4), (10, 20, 30, 40)).save(folder / "clear.png")
    for path, _ in ImageFolder(str(tmp_path)).samples:
        theirs = ImageFolder(str(tmp_path)).loader(path)
        assert np.array_equal(np.asarray(read_plain(Path(path))), np.asarray(theirs))
    assert read_plain(folder / "turned.jpg").size == (20, 10)
    assert read_rgb(folder / "turned.jpg").size == (10, 20)


@pytest.mark.parametrize("name", ["ILSVRC2012", "ILSVRC/Data/CLS-LOC"])
def test_other_names_of_imagenet_are_known_and_change_nothing(
    imagenet_root: Path, tmp_path: Path, name: str
) -> None:
    place = tmp_path / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(imagenet_root / "imagenet")
    linked, usual = data_of(tmp_path, []), data_of(imagenet_root, [])
    assert (linked.digest, linked.train.ids) == (usual.digest, usual.train.ids)


def test_a_missing_folder_is_named_with_its_source(imagenet_root: Path, tmp_path: Path) -> None:
    message = refusal(data_of, tmp_path)
    for part in ("imagenet/train", "imagenet/val", V2, "imagenet-r", "sketch", OBJECTNET):
        assert f"  {part}" in message
    assert "(or ILSVRC2012/val, ILSVRC/Data/CLS-LOC/val) with <wnid>/<image>" in message
    assert "18,574 images; from https://objectnet.dev" in message
    assert "data.shifts, v2, r, a, sketch, objectnet where it is left out" in message
    message = refusal(data_of, imagenet_root / "imagenet", [])  # one folder too deep
    assert "train lies in " in message
    assert "the data root is the folder around imagenet/" in message


def test_a_missing_or_strange_class_folder_is_named(linked_imagenet: Callable[..., Path]) -> None:
    root = linked_imagenet("imagenet/train", "imagenet-r")
    (root / "imagenet/train/n01440764").rename(root / "imagenet/train/n01440746")
    shutil.rmtree(root / "imagenet-r/n01443537")
    message = refusal(data_of, root)
    assert "imagenet/train: lacks 1 of 1000 class folders: n01440764" in message
    assert "has 1 folders that are no class of it: n01440746; did you mean 'n01440764'?" in message
    assert "imagenet-r: lacks 1 of 200 class folders: n01443537" in message
    (root / "imagenet/val").unlink()
    (root / "imagenet/val").mkdir()
    assert "has no class folders, expected <wnid>/<image>" in refusal(data_of, root)
    (root / "imagenet/val/ILSVRC2012_val_00000001.JPEG").write_bytes(b"x")
    assert "sort them into folders by their classes" in refusal(data_of, root)


def test_corruptions_are_asked_for_by_name_kind_or_all(
    imagenet_root: Path, linked_imagenet: Callable[..., Path]
) -> None:
    root = linked_imagenet()
    for corruption in ("fog", "snow", "spatter"):
        (root / "imagenet-c" / corruption).mkdir(parents=True)
        for severity in "12345":
            place = root / "imagenet-c" / corruption / severity
            place.symlink_to(imagenet_root / "imagenet" / "val")
    fog = data_of(root, ["c-fog"]).shifts
    assert list(fog) == [f"c-fog-{severity}" for severity in range(1, 6)]
    assert fog["c-fog-3"].ids[0].startswith("c-fog-3/n01440764/")
    data = data_of(root, ["c-fog-2", "r", "c-snow-5", "c_extra-spatter-1"])
    assert list(data.shifts) == ["c-fog-2", "r", "c-snow-5", "c_extra-spatter-1"]
    assert data.own_means == {
        "ood/c": ("ood/c-fog-2", "ood/c-snow-5"),
        "ood/c_extra": ("ood/c_extra-spatter-1",),
    }
    assert {*data.measured()} - data.outside_mean == {"id/test", "ood/r"}
    message = refusal(data_of, root, ["c"])
    assert "imagenet-c/gaussian_noise/1 (or ImageNet-C/gaussian_noise/1)" in message
    assert message.count("imagenet-c/") == 13 * 5
    assert "did you mean 'sketch'?" in refusal(data_of, imagenet_root, ["sketches"])
    assert refusal(data_of, imagenet_root, ["v3"]) == (
        "data.shifts: unknown shift 'v3'; Known: a, c, c_extra, objectnet, r, sketch, v2."
    )


def test_a_run_is_measured_on_another_shift_without_being_trained_again(
    imagenet_root: Path, tiny_clip_files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Thousands of files would be decoded otherwise, some of them several times.
    pixels = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(Files, "read", lambda _, row: Image.fromarray(pixels[row % 8]))

    def config(*shifts: str) -> TrialConfig:
        return trial_config(
            {
                "model": {"name": str(tiny_clip_files)},
                "data": {"family": "imagenet", "root": str(imagenet_root), "shifts": shifts},
                "prompts": {"classes": "class_only", "contexts": "class_only"},
                "algorithm": "fine_tune",
                "optim": {"steps": 1, "batch_size": 8},
                "device": "cpu",
            }
        )

    first, more = config("a"), config("a", "objectnet")
    assert identify(first, 0).digest == identify(more, 0).digest
    run = tmp_path / "run"
    before = trained(first, run)
    assert set(before.facts["images"]) == {"id/val", "id/test", "ood/a"}
    assert {"id/test_r/top1", "id/test_a/ece", "context/id/test_r/kl"} <= set(before.metrics)
    assert before.metrics["ood/mean/nll"] == before.metrics["ood/a/nll"]
    assert (is_complete(run, first), is_complete(run, more)) == (True, False)
    weights = (run / "weights" / "last.safetensors").read_bytes()
    after = finish(run, more, 0)
    a, objectnet = (after.metrics[f"ood/{name}/nll"] for name in ("a", "objectnet"))
    assert a == before.metrics["ood/a/nll"]
    assert after.metrics["ood/mean/nll"] == pytest.approx((a + objectnet) / 2)
    assert (run / "weights" / "last.safetensors").read_bytes() == weights
    assert after.facts["data"] != before.facts["data"]


def test_val_is_carved_from_train_two_in_a_hundred(imagenet_root: Path) -> None:
    data = {"family": "imagenet", "root": str(imagenet_root)}
    config = trial_config({"data": data, "algorithm": "fine_tune"})
    assert config.data.val_fraction == 0.02
    val = open_data(config.data.model_copy(update={"shifts": ()})).id_val
    assert len(val) == 1000  # at least one image of a class
    assert {id_.split("/")[0] for id_ in val.ids} == {"train"}
