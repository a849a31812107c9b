"""The image_folder family and image files: what is read and refused, and how an image looks."""

from __future__ import annotations

import io
import itertools
import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from carft_sweep.carft_core.data import FamilyData, Source, Transform, images, open_data
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.declaration import Declaration
from carft_sweep.carft_core.data.families.image_folder import IMAGE_FOLDER, Declared
from carft_sweep.carft_core.data.images import read_inside_border, read_plain, read_rgb
from carft_sweep.carft_core.data.listing import EXTENSIONS
from carft_sweep.carft_core.data.transforms import AUGMENTATIONS, evaluation_view, training_view
from tests.carft_core.refusals import refusal, refused
from tests.carft_core.stand_ins import watched
from tests.image_files import claimed_png

PLAIN = Transform(size=8, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
CLIP = Transform(24, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
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


def data_of(root: Path | str) -> FamilyData:
    return IMAGE_FOLDER.open(DataConfig(family="image_folder", root=str(root)))


def test_a_tree_is_read_into_splits_with_classes_in_order(root: Path) -> None:
    data = data_of(root)
    assert data.class_names == ("cat", "hot dog", "zebra")
    assert (data.val, list(data.shifts)) == (None, ["art", "sketch"])
    test = data.id_test
    names = ("cat", "hot_dog", "zebra")
    assert test.ids == tuple(f"test/{name}/{number}.png" for name in names for number in (0, 1))
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (test.units, test.classes) == (test.ids, None)
    assert data_of(root) is data, "a process reads a root once"


def test_an_official_val_and_images_in_deeper_folders_and_links_are_read(root: Path) -> None:
    shutil.copytree(root / "test", root / "val")
    add(root, "test/cat/deep/er/x.png")
    (root / "test/cat/linked.png").symlink_to(root / "train/cat/0.png")
    data = data_of(root)
    assert {"test/cat/deep/er/x.png", "test/cat/linked.png"} < {*data.id_test.ids}
    assert data.id_val.ids[0] == "val/cat/0.png"


def test_hidden_files_and_other_files_are_left_out(root: Path) -> None:
    before = data_of(root)
    for number, folder in enumerate(("train", "shifts/art")):
        (root / folder / f"cat/IMG_{number}.HEIC").write_bytes(b"of a phone")
    add(root, "test/cat/._0.png")
    add(root, "test/.cache/cat/0.png")
    (root / "test/cat/notes.txt").write_text("the cat is asleep")
    (root / "readme.md").write_text("cats")
    (root / "annotations").mkdir()
    after = opened_freshly(root)
    assert (after.id_test.ids, after.digest) == (before.id_test.ids, before.digest)
    assert after.notes[-1] == (
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
    alias = root.parent / f"{root.name}-{len(list(root.parent.iterdir()))}"
    alias.symlink_to(root, target_is_directory=True)
    return data_of(alias)


def test_every_format_of_torchvision_is_read_whatever_the_case_of_its_name(root: Path) -> None:
    assert EXTENSIONS == IMG_EXTENSIONS
    formats = {Image.registered_extensions()[extension] for extension in EXTENSIONS}
    assert formats <= {*images.FORMATS}
    for number, extension in enumerate((*EXTENSIONS, ".JPG")):
        image = noise(9, 9).convert("L" if extension == ".pgm" else "RGB")
        add(root, f"test/cat/more{number}{extension}", image)
    test = data_of(root).id_test
    views = test.views(range(len(test)), transform=PLAIN, seed=None, epoch=0)
    assert len(views) == 6 + len(EXTENSIONS) + 1


NAMED = '{"cat": "a cat", "hot_dog": "b", "zebra": "z"}'


@pytest.mark.parametrize(
    ("change", "trains"),
    [
        (lambda root: add(root, "train/cat/new.png"), True),
        (lambda root: add(root, "train/cat/0.png", noise(30, 30)), True),
        (lambda root: (root / "classes.json").write_text(NAMED), True),
        (lambda root: (root / "shifts/art/cat/0.png").unlink(), False),
        (lambda root: (root / "test/cat/0.png").rename(root / "test/cat/renamed.png"), False),
        (lambda root: (root / "shifts/art").rename(root / "shifts/paint"), False),
        (lambda root: shutil.copytree(root / "shifts/art", root / "shifts/new"), False),
    ],
    ids=["added", "resized", "class named", "removed", "renamed", "shift renamed", "new shift"],
)
def test_the_digest_depends_on(root: Path, change: Callable[[Path], object], trains: bool) -> None:
    """That of training only on what trains, so that another test or shift trains nothing again."""
    before = data_of(root)
    change(root)
    after = opened_freshly(root)
    assert after.digest != before.digest
    assert (after.digest_of_training != before.digest_of_training) == trains


@pytest.mark.parametrize(("where", "trains"), [("train", True), ("shifts/art", False)])
def test_an_image_beside_a_carved_test_is_of_training(root: Path, where: str, trains: bool) -> None:
    """It moves the others' places, by which training views are drawn, whichever part gets it."""
    declaration = Declaration.model_validate(
        {"name": "mine", "test_fraction": 0.3, "shifts": {"art": "shifts/art"}}
    )
    for name in ("cat", "hot_dog", "zebra"):
        add(root, f"train/{name}/third.png")
    config, file = DataConfig(root=str(root)), root / "a.yaml"
    before = Declared(declaration, file, "", {}).open(config)
    add(root, f"{where}/cat/new.png")
    after = Declared(declaration, file, "", {}).open(config)
    assert after.digest != before.digest
    assert (after.digest_of_training != before.digest_of_training) == trains


def test_names_come_from_a_json_mapping(root: Path) -> None:
    names = {"cat": "tabby cat", "hot_dog": ["hotdog", "red hot"], "zebra": "zebra", "cow": "cow"}
    (root / "classes.json").write_text(json.dumps(names))
    assert data_of(root).class_names == ("tabby cat", "hotdog", "zebra")


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
    assert message in refusal(data_of, root)


def test_many_folders_without_a_name_are_told_in_few_words(root: Path) -> None:
    for split, number in itertools.product(SPLITS, range(4)):
        add(root, f"{split}/more{number}/0.png")
    (root / "classes.json").write_text('{"cat": "cat"}')
    message = refusal(data_of, root)
    assert "classes.json has no name for the class folder 'hot_dog'" in message
    assert "classes.json lacks 3 more class folders" in message


def test_a_root_that_is_missing_or_no_folder_is_told(tmp_path: Path) -> None:
    rootless = DataConfig(family="image_folder")
    refused(r"data\.root: which folder.*train/<class>/<image>", IMAGE_FOLDER.open, rootless)
    refused(r"data\.root: .* cannot be read: File name too long", data_of, "x" * 300)
    assert "does not exist" in refusal(data_of, tmp_path / "nowhere")
    assert "is not a folder" in refusal(data_of, add(tmp_path, "one.png"))


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


def link(path: str, to: str) -> Callable[[Path], object]:
    return lambda root: (root / path).symlink_to(root / to)


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
        (rename("shifts/art/cat", "shifts/art/cats"), ": cats; did you mean 'cat'?; train has 3"),
        (create("shifts/flat/0.png"), "shifts/flat/ has no class folders; its images lie outside"),
        (lambda root: (root / "shifts/void").mkdir(), "shifts/void/ has no class folders"),
        (rename("shifts/art", "shifts/mean"), "shifts/mean/ gives its name to the metric"),
        (rename("shifts/art", "shifts/val"), "or 'val', which is for choosing"),
        (rename("shifts/art", "shifts/väte"), "shifts/väte/ gives its name to the metric"),
        (lambda root: (root / "test/cat/0.png").write_bytes(b""), "test/cat/0.png is empty"),
        (link("test/cat/2.png", "gone.png"), "test/cat/2.png is a link to nothing"),
        (link("test/cat/loop", "test"), "is a link to a folder that it lies in"),
        pytest.param(
            rename("test/cat/0.png", os.fsdecode(b"test/cat/\xff.png")),
            "is not a name in UTF-8",
            marks=pytest.mark.skipif(sys.platform == "darwin", reason="no such names there"),
        ),
    ],
)
def test_a_tree_that_cannot_be_used_is_refused(
    root: Path, change: Callable[[Path], object], message: str
) -> None:
    change(root)
    assert message in refusal(data_of, root)


def test_a_mended_tree_is_read_again(root: Path) -> None:
    (root / "test/cat/0.png").write_bytes(b"")
    refusal(data_of, root)
    add(root, "test/cat/0.png")
    assert len(data_of(root).id_test) == 6


def test_a_forbidden_folder_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights themselves would not stop a test that runs as root."""

    def forbid(folder: Path) -> None:
        if Path(folder) == root / "test/cat":
            raise PermissionError(13, "Permission denied", str(folder))

    watched(monkeypatch, os, "scandir", forbid)
    assert f"{root / 'test/cat'} cannot be read: Permission denied" in refusal(data_of, root)


def truncated(kind: str) -> bytes:
    buffer = io.BytesIO()
    noise(64, 64).save(buffer, kind)
    return buffer.getvalue()[: len(buffer.getvalue()) // 2]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("half.jpg", truncated("JPEG")),
        ("half.png", truncated("PNG")),
        ("text.jpg", b"this is no image"),
        ("zeros.tif", bytes(500)),
        ("page.png", b"<html>404</html>"),
        ("gone.png", None),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_broken_image_is_named_at_its_turn(root: Path, name: str, content: bytes | None) -> None:
    file = root / "test/cat" / name
    file.write_bytes(content or b"there at first")
    test = data_of(root).id_test
    if content is None:
        file.unlink()
    message = refusal(test.views, range(len(test)), transform=PLAIN, seed=None, epoch=0)
    assert message.startswith(f"{file} cannot be read as an image (")
    assert "Traceback" not in message


def pixel(mode: str, colour: int | tuple[int, ...]) -> Image.Image:
    return Image.new(mode, (1, 1), colour)


def grey(dtype: type, *values: float) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=dtype))


def shades(*values: int) -> list[tuple[int, ...]]:
    return [(value, value, value) for value in values]


PALETTE = pixel("P", 1)
PALETTE.putpalette([0, 0, 0, 9, 8, 7])
WHITE = (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "options", "expected"),
    [
        (pixel("L", 77), {}, shades(77)),
        (pixel("1", 1), {}, [WHITE]),
        *(
            (grey(np.uint16, 0, 257, 32768, 65535), {"format": kind}, shades(0, 1, 128, 255))
            for kind in ("PNG", "TIFF")
        ),
        (grey(np.int32, -5, 65535, 99999), {"format": "TIFF"}, shades(0, 255, 255)),
        (pixel("RGBA", (10, 20, 30, 0)), {}, [WHITE]),  # transparent pixels are white
        (pixel("RGBA", (10, 20, 30, 255)), {}, [(10, 20, 30)]),
        (pixel("RGBA", (0, 0, 0, 128)), {}, [(127, 127, 127)]),
        (pixel("LA", (40, 0)), {}, [WHITE]),
        (PALETTE, {}, [(9, 8, 7)]),
        (PALETTE, {"transparency": 1}, [WHITE]),
        (pixel("CMYK", (0, 255, 255, 0)), {"format": "JPEG"}, [(255, 0, 0)]),
    ],
)
def test_pixels_of_every_mode_are_read_in_rgb(
    tmp_path: Path, image: Image.Image, options: dict[str, Any], expected: list[tuple[int, ...]]
) -> None:
    image.save(tmp_path / "a", **{"format": "PNG", **options})
    read = read_rgb(tmp_path / "a")
    assert read.mode == "RGB"
    most = 15 if options.get("format") == "JPEG" else 0
    assert np.allclose(np.asarray(read)[0], expected, rtol=0, atol=most)


TURNS = (
    *("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE"),
    *("ROTATE_90", "TRANSVERSE", "ROTATE_270"),
)


def test_a_turned_photo_is_set_upright(tmp_path: Path) -> None:
    upright = noise(6, 4)
    stored = [upright, *(upright.transpose(Image.Transpose[turn]) for turn in TURNS)]
    for orientation, image in enumerate(stored, start=1):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.save(tmp_path / "turned.png", exif=exif)
        assert np.array_equal(np.asarray(read_rgb(tmp_path / "turned.png")), np.asarray(upright))
    upright.save(tmp_path / "odd.jpg", exif=b"Exif\0\0this is not a TIFF header")
    assert read_rgb(tmp_path / "odd.jpg").size == (6, 4)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("resize_mode", ["shortest", "squash", "longest"])
def test_the_evaluation_view_is_open_clips_own_pixels(interpolation: str, resize_mode: str) -> None:
    options = {"interpolation": interpolation, "resize_mode": resize_mode}
    transform = Transform(CLIP.size, CLIP.mean, CLIP.std, **options)  # type: ignore[arg-type]
    theirs = open_clip.image_transform(CLIP.size, False, CLIP.mean, CLIP.std, **options)
    for size in ((24, 24), (100, 61), (61, 100), (25, 300), (7, 9), (1, 1)):
        image = noise(*size, seed=5)
        view = transform.normalise(evaluation_view(image, transform)[None])[0]
        assert torch.equal(view, theirs(image)), size


@given(st.integers(1, 60), st.integers(1, 60), st.one_of(st.none(), st.integers(0, 99)))
@settings(deadline=None)
def test_a_batch_is_its_views(width: int, height: int, seed: int | None) -> None:
    transform = replace(CLIP, augmentation=AUGMENTATIONS["domainbed"])
    images = [noise(width, height, seed=index) for index in range(3)]

    class Held(Source):
        def read(self, row: int) -> Image.Image:
            return images[row]

    def view(row: int) -> torch.Tensor:
        if seed is None:
            return evaluation_view(images[row], transform)
        return training_view(images[row], transform, seed=seed, epoch=1, index=row)

    batch = Held().views(range(3), transform=transform, seed=seed, epoch=1)
    assert torch.equal(batch, torch.stack([view(row) for row in range(3)]))


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


def saved(tmp_path: Path, image: Image.Image, name: str = "a.png") -> Path:
    image.save(tmp_path / name)
    return tmp_path / name


def test_ghostscript_is_never_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = tmp_path / "called"
    stand_in = tmp_path / "gs"
    stand_in.write_text(f"#!/bin/sh\ntouch {called}\n")
    stand_in.chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(POSTSCRIPT)
    for read in (read_rgb, read_plain, read_inside_border):
        refused(r"photo\.jpg .*no image of a known format: JPEG", read, photo)
    assert not called.exists()


@pytest.mark.parametrize("kind", ["ICO", "PCX", "TGA", "PSD", "SGI", "ICNS"])
def test_other_formats_of_pillow_are_none(tmp_path: Path, kind: str) -> None:
    Image.init()
    file = tmp_path / "a.png"
    if kind in Image.SAVE:
        Image.new("RGB", (32, 32)).save(file, kind)
    else:
        file.write_bytes(b"8BPS\0\1" + bytes(60))
    refused("no image of a known format", read_rgb, file)


def test_a_photograph_of_several_frames_is_a_jpeg(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_rgb(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(8001, 8000), (13_300, 13_300), (60_000, 60_000)])
def test_an_image_of_too_many_pixels_is_named(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "large.png").write_bytes(claimed_png(*size))
    for read in (read_rgb, read_plain):
        refused(r"large\.png .* (at most|more than) 64 million", read, tmp_path / "large.png")


def test_a_thread_and_an_image_smaller_than_its_border_are_named(tmp_path: Path) -> None:
    """The thread's shorter side becomes 224 pixels, its longer one 4 million."""
    thread = saved(tmp_path, Image.new("L", (20_000, 1)))
    refused("it has 20000 x 1 pixels; a side is at most 100 times", read_rgb, thread)
    small = saved(tmp_path, Image.new("RGB", (3, 3)))
    refused(r"a\.png cannot be read as an image", read_inside_border, small)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "device.png"):
        refused(rf"{name} .* \(it is not a regular file\)", read_rgb, tmp_path / name)


def test_every_value_of_sixteen_bits_is_rounded_and_floats_are_refused(tmp_path: Path) -> None:
    file = add(tmp_path, "float.tif", grey(np.float32, 0, 0))
    refused("floating-point pixels have no known range", read_rgb, file)
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    read = np.asarray(read_rgb(saved(tmp_path, Image.fromarray(deep))))[:, :, 0]
    assert np.array_equal(read, np.rint(deep / 257).astype(np.uint8))


MEASURED = """
import resource, sys
from collections.abc import Callable
from pathlib import Path
from carft_sweep.carft_core.data.images import read_rgb

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
read_rgb(Path(sys.argv[1]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "I;16", "P"])
def test_a_thread_takes_as_much_memory_as_is_stated(tmp_path: Path, mode: str) -> None:
    file = saved(tmp_path, Image.new(mode, (8000, 8000)))
    command = [sys.executable, "-c", MEASURED, str(file)]
    assert int(subprocess.check_output(command, text=True)) < 600
