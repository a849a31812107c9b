"""The image_folder family: what it reads and refuses, and how an image looks to a model."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from carft_sweep.carft_core.data import FamilyData, Source, Split, Transform, open_data
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.declaration import Declaration
from carft_sweep.carft_core.data.families.image_folder import IMAGE_FOLDER, Declared
from carft_sweep.carft_core.data.images import read_rgb
from carft_sweep.carft_core.data.listing import EXTENSIONS
from carft_sweep.carft_core.data.loader import BatchSource, EpochPlan, LoadedBatch, Loader
from carft_sweep.carft_core.data.transforms import AUGMENTATIONS, evaluation_view, training_view
from carft_sweep.carft_core.errors import RequestError

PLAIN = Transform(size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLIP = Transform(
    size=24, mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711)
)
SPLITS = ("train", "test", "shifts/sketch", "shifts/art")


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def add(root: Path, path: str, image: Image.Image | None = None) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    (image or noise(10, 9)).save(file)
    return file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images of each of three classes in every split; the shift `art` has two classes."""
    for split in SPLITS:
        for name in ("cat", "hot_dog", "zebra"):
            if split != "shifts/art" or name != "hot_dog":
                for number in range(2):
                    add(tmp_path, f"{split}/{name}/{number}.png")
    return tmp_path


def opened(root: Path | str) -> FamilyData:
    return IMAGE_FOLDER.open(DataConfig(family="image_folder", root=str(root)))


def refusal(root: Path) -> str:
    with pytest.raises(RequestError) as caught:
        opened(root)
    return str(caught.value)


def load(
    split: Split, transform: Transform, seed: int | None, workers: int
) -> Iterator[LoadedBatch]:
    """One pass."""
    plan = EpochPlan(len(split), 4, seed)
    with Loader({"train": split}, transform=transform, workers=workers) as loader:
        yield from loader.steps(BatchSource("train", plan, seed), range(plan.steps))


def views(root: Path, split: str = "test", transform: Transform = PLAIN) -> torch.Tensor:
    data = opened(root)
    part = data.id_test if split == "test" else data.train
    return part.views(range(len(part)), transform=transform, seed=None, epoch=0)


# What it reads


def test_a_tree_is_read_into_splits_with_classes_in_order(root: Path) -> None:
    data = opened(root)
    assert data.class_names == ("cat", "hot dog", "zebra")
    assert data.val is None
    assert list(data.shifts) == ["art", "sketch"]
    assert data.id_test.ids == tuple(
        f"test/{name}/{n}.png" for name in ("cat", "hot_dog", "zebra") for n in (0, 1)
    )
    assert data.id_test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert data.id_test.units == data.id_test.ids
    assert data.id_test.classes is None


def test_an_official_val_split_is_read(root: Path) -> None:
    shutil.copytree(root / "test", root / "val")
    val = opened(root).val
    assert val is not None
    assert val.ids[0] == "val/cat/0.png"


def test_hidden_files_and_other_files_are_left_out(root: Path) -> None:
    before = opened(root).digest
    for number, folder in enumerate(("train", "shifts/art")):
        (root / folder / f"cat/IMG_{number}.HEIC").write_bytes(b"of a phone")
    add(root, "test/cat/._0.png")
    add(root, "test/.cache/cat/0.png")
    (root / "test/cat/notes.txt").write_text("the cat is asleep")
    (root / "readme.md").write_text("cats")
    (root / "annotations").mkdir()
    opened_again = opened_freshly(root)
    assert opened_again.id_test.ids[:3] == (
        "test/cat/0.png",
        "test/cat/1.png",
        "test/hot_dog/0.png",
    )
    assert opened_again.digest == before
    assert opened_again.notes[-1] == (
        "2 pictures are left out, since .HEIC is not read; save them as JPEG: "
        "shifts/art/cat/IMG_1.HEIC, train/cat/IMG_0.HEIC"
    )


def test_what_makes_accuracies_coarse_or_unlike_is_said(root: Path) -> None:
    notes = open_data(DataConfig(family="image_folder", root=str(root))).notes
    assert [text for text in notes if "byte by byte" not in text] == [
        "ood/art has 2 of 3 classes; there the model chooses among these alone, so it is easier "
        "than id/test",
        "id/val, carved from train, has 3 images: each is 33.3 points of the accuracy that "
        "chooses settings",
    ]


def opened_freshly(root: Path) -> FamilyData:
    """As a new process would see the tree: a process reads a root once."""
    other = root.parent / f"{root.name}-{len(list(root.parent.iterdir()))}"
    other.symlink_to(root, target_is_directory=True)
    return opened(other)


def test_every_format_of_torchvision_is_read_whatever_the_case_of_its_name(root: Path) -> None:
    assert EXTENSIONS == IMG_EXTENSIONS
    for number, extension in enumerate(EXTENSIONS):
        image = noise(9, 9) if extension != ".pgm" else noise(9, 9).convert("L")
        add(root, f"test/cat/more{number}{extension}", image)
    add(root, "test/cat/SHOUTED.JPG", noise(9, 9))
    assert len(views(root)) == 6 + len(EXTENSIONS) + 1


def test_images_in_folders_below_a_class_and_behind_links_are_read(root: Path) -> None:
    add(root, "test/cat/deep/er/x.png")
    (root / "test/cat/linked.png").symlink_to(root / "train/cat/0.png")
    assert "test/cat/deep/er/x.png" in opened(root).id_test.ids
    assert "test/cat/linked.png" in opened(root).id_test.ids


def test_a_tree_is_read_once_in_a_process(root: Path) -> None:
    assert opened(root) is opened(root)


# The digest


@pytest.mark.parametrize(
    ("change", "trains"),
    [
        (lambda root: add(root, "train/cat/new.png"), True),
        (lambda root: add(root, "train/cat/0.png", noise(30, 30)), True),
        (
            lambda root: (root / "classes.json").write_text(
                '{"cat": "a cat", "hot_dog": "b", "zebra": "z"}'
            ),
            True,
        ),
        (lambda root: (root / "shifts/art/cat/0.png").unlink(), False),
        (lambda root: (root / "test/cat/0.png").rename(root / "test/cat/renamed.png"), False),
        (lambda root: (root / "shifts/art").rename(root / "shifts/paint"), False),
        (lambda root: shutil.copytree(root / "shifts/art", root / "shifts/new"), False),
    ],
    ids=["added", "resized", "class named", "removed", "renamed", "shift renamed", "new shift"],
)
def test_the_digest_depends_on(root: Path, change: Callable[[Path], object], trains: bool) -> None:
    """That of training only on what trains, so that another test or shift trains nothing again."""
    before = opened(root)
    change(root)
    after = opened_freshly(root)
    assert after.digest != before.digest
    assert (after.digest_of_training != before.digest_of_training) == trains


@pytest.mark.parametrize("where", ["train", "shifts/art"])
def test_an_image_beside_those_of_a_carved_test_is_of_training(root: Path, where: str) -> None:
    """It moves the others' places, by which training views are drawn, whichever part gets it."""
    declaration = Declaration.model_validate(
        {"name": "mine", "test_fraction": 0.3, "shifts": {"art": "shifts/art"}}
    )
    for name in ("cat", "hot_dog", "zebra"):
        add(root, f"train/{name}/third.png")
    config = DataConfig(family="mine", root=str(root))
    before = Declared(declaration, root / "a.yaml", "", {}).open(config)
    add(root, f"{where}/cat/new.png")
    after = Declared(declaration, root / "a.yaml", "", {}).open(config)
    assert after.digest != before.digest
    changed = after.digest_of_training != before.digest_of_training
    assert changed == (where == "train")


# Class names


def test_names_come_from_a_json_mapping(root: Path) -> None:
    names = {"cat": "tabby cat", "hot_dog": ["hotdog", "red hot"], "zebra": "zebra", "cow": "cow"}
    (root / "classes.json").write_text(json.dumps(names))
    assert opened(root).class_names == ("tabby cat", "hotdog", "zebra")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "classes.json: Expecting"),
        ('["cat"]', "must be one mapping"),
        ('{"cat": 3}', "the name of 'cat' must be text"),
        ('{"cat": []}', "the name of 'cat' must be text"),
        (r'{"cat": "a \ud800"}', "the name of 'cat' must be text"),
        ('{"cat": "a", "cat": "b"}', "names 'cat' twice"),
        ('{"cats": "a", "hot_dog": "b", "zebra": "c"}', "'cat'; did you mean 'cats'?"),
        ('{"cat": "same", "hot_dog": "same", "zebra": "c"}', "cat, hot_dog have one name, 'same'"),
    ],
)
def test_a_bad_class_file_is_refused(root: Path, text: str, message: str) -> None:
    (root / "classes.json").write_text(text)
    assert message in refusal(root)


def test_many_folders_without_a_name_are_told_in_few_words(root: Path) -> None:
    for split in SPLITS:
        for number in range(4):
            add(root, f"{split}/more{number}/0.png")
    (root / "classes.json").write_text('{"cat": "cat"}')
    message = refusal(root)
    assert "classes.json has no name for the class folder 'hot_dog'" in message
    assert "classes.json lacks 3 more class folders" in message


# What it refuses


def test_a_missing_root_is_told_with_the_layout() -> None:
    with pytest.raises(RequestError, match=r"data\.root: which folder.*train/<class>/<image>"):
        IMAGE_FOLDER.open(DataConfig(family="image_folder"))


def test_a_root_that_is_not_there_or_no_folder_is_told(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "is not a folder" in refusal(add(tmp_path, "one.png"))


def rename(old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / old).rename(root / new)


def remove(path: str) -> Callable[[Path], object]:
    return lambda root: shutil.rmtree(root / path)


def empty(path: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        for file in (root / path).iterdir():
            file.unlink()

    return change


def create(path: str) -> Callable[[Path], object]:
    return lambda root: add(root, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("train"), "train/ is missing"),
        (remove("test"), "test/ is missing"),
        (rename("train", "training"), "train/ is missing; is it training/?"),
        (rename("test", "Test"), "test/ is missing; is it Test/?"),
        (rename("shifts", "shift"), "shift/ is not read, and there is no shifts/; rename it"),
        (create("validation/cat/0.png"), "validation/ is not read, and there is no val/"),
        (empty("train/cat"), "train/ has class folders without images: cat"),
        (empty("shifts/art/cat"), "shifts/art/ has class folders without images: cat"),
        (remove("test/cat"), "test/ lacks classes that train has: cat"),
        (create("val/cat/0.png"), "val/ lacks classes that train has: hot_dog, zebra"),
        (create("test/horse/0.png"), "test/ has folders that are no class of train: horse"),
        (
            rename("shifts/art/cat", "shifts/art/cats"),
            "shifts/art/ has folders that are no class of train: cats; did you mean 'cat'?; "
            "train has 3: cat, hot_dog, zebra",
        ),
        (create("shifts/flat/0.png"), "shifts/flat/ has no class folders; its images lie outside"),
        (lambda root: (root / "shifts/void").mkdir(), "shifts/void/ has no class folders"),
        (rename("shifts/art", "shifts/mean"), "shifts/mean/ gives its name to the metric"),
        (rename("shifts/art", "shifts/val"), "or 'val', which is for choosing"),
        (rename("shifts/art", "shifts/väte"), "shifts/väte/ gives its name to the metric"),
        (lambda root: (root / "test/cat/0.png").write_bytes(b""), "test/cat/0.png is empty"),
        (
            lambda root: (root / "test/cat/2.png").symlink_to(root / "gone.png"),
            "test/cat/2.png is a link to nothing",
        ),
        (
            lambda root: (root / "test/cat/loop").symlink_to(root / "test"),
            "is a link to a folder that it lies in",
        ),
    ],
)
def test_a_tree_that_cannot_be_used_is_refused(
    root: Path, change: Callable[[Path], object], message: str
) -> None:
    change(root)
    assert message in refusal(root)


@pytest.mark.skipif(sys.platform == "darwin", reason="its file systems refuse such names")
def test_a_name_that_is_not_utf8_is_refused(root: Path) -> None:
    shutil.copy(root / "test/cat/0.png", os.fsdecode(bytes(root / "test/cat") + b"/\xff.png"))
    assert "is not a name in UTF-8" in refusal(root)


def test_a_mended_tree_is_read_again(root: Path) -> None:
    (root / "test/cat/0.png").write_bytes(b"")
    refusal(root)
    add(root, "test/cat/0.png")
    assert len(opened(root).id_test) == 6


def test_a_forbidden_folder_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights themselves would not stop a test that runs as root."""
    scandir = os.scandir

    def forbidding(folder: Path) -> object:
        if Path(folder) == root / "test/cat":
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", forbidding)
    assert f"{root / 'test/cat'} cannot be read: Permission denied" in refusal(root)


# Broken images


def truncated(suffix: str) -> bytes:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, {"jpg": "JPEG", "png": "PNG"}[suffix])
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("half.jpg", truncated("jpg")),
        ("half.png", truncated("png")),
        ("text.jpg", b"this is no image"),
        ("zeros.tif", bytes(500)),
        ("page.png", b"<html>404</html>"),
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_when_its_turn_comes(
    root: Path, name: str, content: bytes, workers: int
) -> None:
    (root / "test/cat" / name).write_bytes(content)
    with pytest.raises(RequestError) as caught:
        list(load(opened(root).id_test, PLAIN, None, workers))
    assert str(caught.value).startswith(f"{root / 'test/cat' / name} cannot be read as an image (")
    assert "Traceback" not in str(caught.value)


def test_an_image_that_went_away_is_named(root: Path) -> None:
    data = opened(root)
    (root / "test/cat/0.png").unlink()
    with pytest.raises(RequestError, match=r"test/cat/0\.png cannot be read"):
        data.id_test.views([0], transform=PLAIN, seed=None, epoch=0)


# Formats


def pixel(file: Path) -> tuple[int, ...]:
    image = read_rgb(file)
    assert image.mode == "RGB"
    value = image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def test_grey_pixels_are_grey(tmp_path: Path) -> None:
    assert pixel(add(tmp_path, "l.png", Image.new("L", (3, 3), 77))) == (77, 77, 77)
    assert pixel(add(tmp_path, "one.png", Image.new("1", (3, 3), 1))) == (255, 255, 255)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_of_grey_keep_their_range(tmp_path: Path, suffix: str) -> None:
    deep = np.array([[0, 257, 32768, 65535]], dtype=np.uint16)
    file = add(tmp_path, f"deep.{suffix}", Image.fromarray(deep))
    assert np.asarray(read_rgb(file))[0].tolist() == [[v] * 3 for v in (0, 1, 128, 255)]


def test_thirty_two_bits_of_grey_are_read_as_sixteen(tmp_path: Path) -> None:
    file = add(
        tmp_path, "deep.tif", Image.fromarray(np.array([[-5, 65535, 99999]], dtype=np.int32))
    )
    assert np.asarray(read_rgb(file))[0, :, 0].tolist() == [0, 255, 255]


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    file = add(tmp_path, "float.tif", Image.fromarray(np.zeros((2, 2), dtype=np.float32)))
    with pytest.raises(RequestError, match="floating-point pixels have no known range"):
        read_rgb(file)


def test_transparent_pixels_are_white_and_opaque_ones_keep_their_colour(tmp_path: Path) -> None:
    for name, colour, expected in [
        ("clear", (10, 20, 30, 0), (255, 255, 255)),
        ("opaque", (10, 20, 30, 255), (10, 20, 30)),
        ("half", (0, 0, 0, 128), (127, 127, 127)),
    ]:
        assert pixel(add(tmp_path, f"{name}.png", Image.new("RGBA", (3, 3), colour))) == expected
    grey = Image.new("LA", (3, 3), (40, 0))
    assert pixel(add(tmp_path, "la.png", grey)) == (255, 255, 255)


def test_a_palette_is_looked_up_and_its_transparency_seen(tmp_path: Path) -> None:
    image = Image.new("P", (3, 3), 1)
    image.putpalette([0, 0, 0, 9, 8, 7])
    assert pixel(add(tmp_path, "p.png", image)) == (9, 8, 7)
    file = tmp_path / "clear.png"
    image.save(file, transparency=1)
    assert pixel(file) == (255, 255, 255)


def test_cmyk_is_read_as_pillow_reads_it(tmp_path: Path) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red, green, blue = pixel(add(tmp_path, "print.jpg", image))
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_is_set_upright(tmp_path: Path, orientation: int) -> None:
    """The same upright picture, stored in each of EXIF's eight ways, is the same picture."""
    upright = noise(6, 4)
    stored_by = {
        1: [],
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }[orientation]
    stored = upright
    for step in stored_by:
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(np.asarray(read_rgb(tmp_path / "turned.png")), np.asarray(upright))


def test_damaged_exif_data_does_not_matter(tmp_path: Path) -> None:
    noise(8, 8).save(tmp_path / "odd.jpg", exif=b"Exif\0\0this is not a TIFF header")
    assert read_rgb(tmp_path / "odd.jpg").size == (8, 8)


# Views


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(24, 24), (100, 61), (61, 100), (25, 300), (7, 9)])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
def test_the_evaluation_view_equals_open_clips_to_the_pixel(
    root: Path, size: tuple[int, int], interpolation: str, resize_mode: str
) -> None:
    add(root, "test/cat/0.png", noise(*size, seed=5))
    transform = Transform(CLIP.size, CLIP.mean, CLIP.std, interpolation, resize_mode)
    theirs = open_clip.image_transform(
        transform.size,
        is_train=False,
        mean=transform.mean,
        std=transform.std,
        interpolation=interpolation,
        resize_mode=resize_mode,
    )
    with Image.open(root / "test/cat/0.png") as image:
        view = transform.normalise(views(root, transform=transform))[0]
        assert torch.equal(view, theirs(image))


def test_a_small_image_is_enlarged(root: Path) -> None:
    add(root, "test/cat/0.png", Image.new("RGB", (1, 1), (51, 102, 204)))
    view = views(root)[0]
    assert view.shape == (3, 8, 8)
    assert view[:, 0, 0].tolist() == [51, 102, 204]


@given(st.integers(1, 60), st.integers(1, 60), st.one_of(st.none(), st.integers(0, 99)))
@settings(deadline=None)
def test_a_batch_is_its_views(width: int, height: int, seed: int | None) -> None:
    transform = replace(CLIP, augmentation=AUGMENTATIONS["domainbed"])
    images = [noise(width, height, seed=index) for index in range(3)]

    class Held(Source):
        def read(self, row: int) -> Image.Image:
            return images[row]

    batch = Held().views(range(3), transform=transform, seed=seed, epoch=1)
    single = [
        evaluation_view(image, transform)
        if seed is None
        else training_view(image, transform, seed=seed, epoch=1, index=index)
        for index, image in enumerate(images)
    ]
    assert torch.equal(batch, torch.stack(single))


def test_a_root_with_a_name_that_no_disk_takes_is_refused() -> None:
    with pytest.raises(RequestError, match=r"data\.root: .* cannot be read: File name too long"):
        IMAGE_FOLDER.open(DataConfig(family="image_folder", root="x" * 300))
