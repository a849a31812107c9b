"""An image file is opened in one place: in known formats, and no larger than can be held."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from carft_sweep.carft_core.data import images
from carft_sweep.carft_core.data.images import read_inside_border, read_plain, read_rgb
from carft_sweep.carft_core.data.listing import EXTENSIONS
from carft_sweep.carft_core.errors import RequestError
from tests.image_files import claimed_png

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
        with pytest.raises(RequestError, match=r"photo\.jpg .*no image of a known format: JPEG"):
            read(photo)
    assert not called.exists()


@pytest.mark.parametrize("kind", ["ICO", "PCX", "TGA", "PSD", "SGI", "ICNS"])
def test_other_formats_of_pillow_are_none(tmp_path: Path, kind: str) -> None:
    Image.init()
    file = tmp_path / "a.png"
    if kind in Image.SAVE:
        Image.new("RGB", (32, 32)).save(file, kind)
    else:
        file.write_bytes(b"8BPS\0\1" + bytes(60))
    with pytest.raises(RequestError, match="no image of a known format"):
        read_rgb(file)


def test_every_promised_extension_has_its_format() -> None:
    formats = {Image.registered_extensions()[extension] for extension in EXTENSIONS}
    assert formats <= {*images.FORMATS}


def test_a_photograph_of_several_frames_is_a_jpeg(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_rgb(tmp_path / "a.jpg").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("size", [(8001, 8000), (13_300, 13_300), (60_000, 60_000)])
def test_an_image_of_too_many_pixels_is_named(tmp_path: Path, size: tuple[int, int]) -> None:
    (tmp_path / "large.png").write_bytes(claimed_png(*size))
    for read in (read_rgb, read_plain):
        with pytest.raises(RequestError, match=r"large\.png .* (at most|more than) 64 million"):
            read(tmp_path / "large.png")


def test_a_thread_and_an_image_smaller_than_its_border_are_named(tmp_path: Path) -> None:
    """The thread's shorter side becomes 224 pixels, its longer one 4 million."""
    with pytest.raises(RequestError, match="it has 20000 x 1 pixels; a side is at most 100 times"):
        read_rgb(saved(tmp_path, Image.new("L", (20_000, 1))))
    with pytest.raises(RequestError, match=r"a\.png cannot be read as an image"):
        read_inside_border(saved(tmp_path, Image.new("RGB", (3, 3))))


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "device.png").symlink_to("/dev/zero")
    for name in ("pipe.png", "device.png"):
        with pytest.raises(RequestError, match=rf"{name} .* \(it is not a regular file\)"):
            read_rgb(tmp_path / name)


def test_every_value_of_sixteen_bits_is_rounded(tmp_path: Path) -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    file = saved(tmp_path, Image.fromarray(deep))
    expected = np.rint(deep / 257).astype(np.uint8)
    assert np.array_equal(np.asarray(read_rgb(file))[:, :, 0], expected)


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
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 600
