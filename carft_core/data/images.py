"""Image files: the one place that opens them, in known formats and within bounds."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from carft_sweep.carft_core.errors import RequestError

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
"""Pillow's names of the formats in `folders.EXTENSIONS`, and GIF, which published data sets have
behind such names; its JPEG includes MPO. It goes by a file's content whatever the name: of its
other formats one starts Ghostscript."""
VARIABLE = "CARFT_MAX_MEGAPIXELS"
"""Raises or lowers `MEGAPIXELS`."""
MEGAPIXELS = 64
"""So many million pixels are decoded at most. A camera's largest photographs have about 60."""
BYTES_PER_PIXEL = 8
"""Of a file: sixteen bits in each of four channels, not compressed. A larger one holds something
else than an image."""
LONGEST = 100
"""Times the shorter side. The shorter one becomes the model's image size, and the longer one what
follows from that, before the rest is cut off."""
STRIP = 1 << 22
"""So many pixels are converted at a time, beside the image itself."""
THREADS, STATED = 8, 1000
"""So many threads list and look at files, since that mostly waits for the disk; so many files at a
time."""
BORDER = 2
"""Pixels. Source: wise-ft's `src/datasets/objectnet.py`."""

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Ours is stricter, and what it says is an error.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def state_of(files: Sequence[Path]) -> str:
    """Digest the sizes and times of files: it differs where another file took the place of one.

    The time of a file's last change of state cannot be set. A file that is not there is one of no
    bytes: whoever reads it says so.
    """
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


def most_pixels() -> int:
    """How many pixels of an image are decoded. Raises RequestError for a wrong `VARIABLE`."""
    text = os.environ.get(VARIABLE) or str(MEGAPIXELS)
    if not re.fullmatch("[1-9][0-9]{0,5}", text):
        raise RequestError(f"{VARIABLE} must be a whole number of million pixels, got {text!r}")
    return int(text) * 1_000_000


def open_image(file: Path | io.BytesIO) -> Image.Image:
    """Open an image file; as with Pillow's own function its pixels are decoded on demand.

    Raises ValueError for a file that is none, or is larger than `most_pixels`, and whatever
    Pillow's decoders make of arbitrary bytes.
    """
    limit = most_pixels()
    _check_size(file, limit * BYTES_PER_PIXEL)
    if Image.MAX_IMAGE_PIXELS is not None and limit > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit  # that of the whole process, where the user raised ours
    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(_too_large("more pixels than that", limit)) from None
    except UnidentifiedImageError:
        raise ValueError(f"no image of a known format: {', '.join(FORMATS)}") from None
    width, height = image.size
    if width * height > limit:
        image.close()
        raise ValueError(_too_large(f"{width} x {height} pixels", limit))
    if max(width, height) > LONGEST * min(width, height):
        image.close()
        raise ValueError(
            f"it has {width} x {height} pixels; a side is at most {LONGEST} times the other"
        )
    return image


def _too_large(size: str, limit: int) -> str:
    return (
        f"it has {size}, and at most {limit // 1_000_000} million are decoded; {VARIABLE} "
        "sets how many million"
    )


def _check_size(file: Path | io.BytesIO, most: int) -> None:
    """Raises ValueError for what is no regular file, such as a pipe, or is too large for one."""
    if isinstance(file, io.BytesIO):
        size = file.getbuffer().nbytes
    else:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a regular file")
        size = status.st_size
    if size > most:
        raise ValueError(f"it has {size:,} bytes, and an image at most {most:,}")


def read_rgb(path: Path) -> Image.Image:
    """Read the first frame of an image file, upright and in 8-bit RGB, transparency on white.

    Raises RequestError naming the file when it cannot be decoded to its end, or is too large.
    """
    with image_errors(path), open_image(path) as image:
        image.load()
        return upright_rgb(image)


def read_plain(path: Path) -> Image.Image:
    """Read the first frame of an image file as torchvision's own loader gives it, which published
    numbers were measured with: not turned by its EXIF data, transparency dropped.

    Raises RequestError as `read_rgb` does.
    """
    with image_errors(path), open_image(path) as image:
        return image.convert("RGB")


def read_inside_border(path: Path) -> Image.Image:
    """Read the same without 2 pixels at each edge, where ObjectNet's images have a red border."""
    image = read_plain(path)
    with image_errors(path):
        return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))


UNREADABLE = "cannot be read as an image"
"""In the message of each image that is broken."""


@contextlib.contextmanager
def image_errors(named: object) -> Iterator[None]:
    """Raise RequestError, which names the image, for all that goes wrong with it meanwhile."""
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
    """A loaded image as `read_rgb` gives one."""
    method = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    return _rgb(image if method is None else image.transpose(method))


def _rgb(image: Image.Image) -> Image.Image:
    """The image itself where it is in RGB already."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    rows = max(1, STRIP // image.width)
    if image.height <= rows:
        return _converted(image)
    shown = Image.new("RGB", image.size)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        shown.paste(_converted(image.crop(box)), box)
    return shown


def _converted(image: Image.Image) -> Image.Image:
    """Pixel by pixel, so that a part of an image is converted as the whole is."""
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
