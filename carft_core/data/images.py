"""Image files: the one place that opens them, in known formats and within bounds."""

from __future__ import annotations

import contextlib
import hashlib
import io
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from carft_sweep.carft_core.errors import RequestError

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Pillow's names of the formats in `listing.EXTENSIONS`, and GIF, which published data sets have
under such names; JPEG includes MPO. Pillow goes by a file's content, whatever its name: of its
other formats one starts Ghostscript."""
MEGAPIXELS = 64
"""The most pixels that an image may have, in millions; a camera's largest have about 60."""
LONGEST = 100
"""The longer side is at most so many times the shorter side, which becomes the model's image size:
the longer one grows in proportion before it is cropped."""
THREADS, STATED = 8, 1000
"""How many threads list and look at files (they mostly wait for the disk), and how many files one
takes at a time."""
BORDER = 2
"""Pixels of ObjectNet's border. Source: wise-ft's `src/datasets/objectnet.py`."""

# Ours is stricter, and says what is wrong.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def state_of(files: Sequence[Path]) -> str:
    """Return a digest of the sizes and times of files, which changes when a file is replaced: no
    program can set a file's ctime. A missing file counts as empty; whoever reads it raises the
    error."""
    parts = [files[first : first + STATED] for first in range(0, len(files), STATED)]
    digest = hashlib.sha256()
    with ThreadPoolExecutor(THREADS) as pool:  # network storage takes its time for each
        for numbers in pool.map(_sizes_and_times, parts):
            digest.update(numbers)
    return digest.hexdigest()


def _sizes_and_times(files: Sequence[Path]) -> bytes:
    numbers = np.zeros((len(files), 3), np.int64)
    for row, file in enumerate(files):
        with contextlib.suppress(OSError):
            status = file.stat()
            numbers[row] = status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return numbers.tobytes()


def open_image(file: Path | io.BytesIO) -> Image.Image:
    """Open an image file; as with Pillow's own function its pixels are decoded on demand. Raises
    ValueError for a pipe or another irregular file and for an image with too many pixels, and any
    error of Pillow's decoders."""
    if isinstance(file, Path) and not stat.S_ISREG(file.stat().st_mode):
        raise ValueError("it is not a regular file")
    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(f"it has more than {MEGAPIXELS} million pixels") from None
    except UnidentifiedImageError:
        raise ValueError(f"no image of a known format: {', '.join(FORMATS)}") from None
    width, height = image.size
    wrong = ""
    if width * height > MEGAPIXELS * 1_000_000:
        wrong = f"at most {MEGAPIXELS} million are decoded"
    elif max(width, height) > LONGEST * min(width, height):
        wrong = f"a side is at most {LONGEST} times the other"
    if wrong:
        image.close()
        raise ValueError(f"it has {width} x {height} pixels; {wrong}")
    return image


def read_rgb(path: Path) -> Image.Image:
    """Return the first frame of an image file, upright and in 8-bit RGB, transparency on white.
    Raises RequestError naming a file that is too large or cannot be decoded to its end."""
    with image_errors(path), open_image(path) as image:
        image.load()
        return upright_rgb(image)


def read_plain(path: Path) -> Image.Image:
    """Return the first frame of an image file as torchvision's own loader does, with which
    published numbers were measured: not turned by EXIF data, transparency dropped. Raises
    RequestError as `read_rgb` does."""
    with image_errors(path), open_image(path) as image:
        return image.convert("RGB")


def read_inside_border(path: Path) -> Image.Image:
    """Return an image as `read_plain`, without ObjectNet's red border of 2 pixels."""
    image = read_plain(path)
    with image_errors(path):
        return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))


UNREADABLE = "cannot be read as an image"
"""A part of the message on each broken image."""


@contextlib.contextmanager
def image_errors(named: object) -> Iterator[None]:
    """Turn every error with an image within the context into a RequestError that names it."""
    try:
        yield
    except RequestError:
        raise
    # Decoders meet arbitrary bytes here, and Pillow's raise whatever those lead to: OSError,
    # SyntaxError, ValueError, struct.error, zlib.error, IndexError, ...
    except Exception as error:
        raise RequestError(
            f"{named} {UNREADABLE} ({str(error) or type(error).__name__}); "
            "replace it or take it out"
        ) from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Return a loaded image as `read_rgb` does: upright, in RGB, transparency on white; the same
    object if it is that already."""
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        # Sixteen bits of grey (32 hold what older Pillows read of such a PNG). Pillow's own
        # conversion cuts values off at 255, which leaves a white image.
        grey = np.asarray(image).clip(0, 65535).astype(np.uint16)
        rounded = grey // 257 + (grey % 257 > 128)
        return Image.fromarray(rounded.astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        # Dropping alpha would show whatever colour lies under transparent pixels, often black.
        shown = Image.new("RGBA", image.size, "white")
        shown.alpha_composite(image.convert("RGBA"))
        return shown.convert("RGB")
    return image.convert("RGB")
