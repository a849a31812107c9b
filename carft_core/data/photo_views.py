"""A view of an image file: RGB whatever the format, cropped as CLIP and WiSE-FT do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as F

from carft_core.data.base import Transform
from carft_core.errors import RequestError

AREA = (0.9, 1.0)
RATIO = (3 / 4, 4 / 3)
ATTEMPTS = 10
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


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def read_rgb(path: Path) -> Image.Image:
    """The first frame of an image file, upright and in 8-bit RGB, transparency shown on white.

    Raises RequestError naming the file when it cannot be decoded to its end.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return _rgb(_upright(image))
    # Decoders meet arbitrary bytes here, and Pillow's raise whatever those lead to: OSError,
    # SyntaxError, ValueError, struct.error, zlib.error, IndexError, ...
    except Exception as error:
        raise _unreadable(path, error) from error


def read_plain(path: Path) -> Image.Image:
    """The first frame of an image file as torchvision's own loader gives it, which published
    numbers were measured with: not turned by its EXIF data, transparency dropped.

    Raises RequestError naming the file when it cannot be decoded to its end.
    """
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except Exception as error:
        raise _unreadable(path, error) from error


def read_inside_border(path: Path) -> Image.Image:
    """The same without 2 pixels at each edge, where ObjectNet's images have a red border."""
    image = read_plain(path)
    return image.crop((BORDER, BORDER, image.width - BORDER, image.height - BORDER))


def evaluation_view(image: Image.Image, transform: Transform) -> Tensor:
    """Pixels [3, S, S] in [0, 1], as `transform.resize_mode` says.

    `shortest`: the shorter side resized to S, then the central square; `squash`: both sides
    resized to S; `longest`: the longer side resized to S, black beside the shorter.
    Source: open_clip's `image_transform(..., is_train=False)`, equal to the pixel.
    """
    interpolation, side = InterpolationMode(transform.interpolation), transform.size
    if transform.resize_mode == "squash":
        resized = F.resize(image, [side, side], interpolation)
    elif transform.resize_mode == "longest":
        ratio = max(image.width, image.height) / side
        fitting = [round(image.height / ratio), round(image.width / ratio)]
        resized = F.resize(image, fitting, interpolation)
    else:
        resized = F.resize(image, side, interpolation)
    pixels: Tensor = F.to_tensor(F.center_crop(resized, side))  # pads with black where smaller
    return pixels


def training_view(
    image: Image.Image, transform: Transform, *, seed: int, epoch: int, index: int
) -> Tensor:
    """Pixels [3, S, S] in [0, 1] of a random crop, a pure function of (seed, epoch, index).

    Source: WiSE-FT's `RandomResizedCrop(S, scale=(0.9, 1.0), interpolation=bicubic)`, no flip.
    """
    box = random_box(image.width, image.height, draws(seed, epoch, index))
    size = [transform.size, transform.size]
    pixels: Tensor = F.to_tensor(F.resized_crop(image, *box, size, InterpolationMode.BICUBIC))
    return pixels


def draws(seed: int, epoch: int, index: int) -> Tensor:
    """[ATTEMPTS, 4] numbers in [0, 1), float64, a pure function of the three integers.

    Raw output of Philox, a counter-based generator whose stream numpy keeps fixed over versions.
    """
    # Arrays of uint64, since a list of both small and large integers would go through float64.
    key = np.array([seed, 1], dtype=np.uint64)
    stream = np.random.Philox(key=key, counter=np.array([0, 0, epoch, index], dtype=np.uint64))
    bits = stream.random_raw(ATTEMPTS * 4).reshape(ATTEMPTS, 4) >> np.uint64(11)
    return torch.from_numpy(bits.astype(np.float64) * 2.0**-53)


def random_box(width: int, height: int, numbers: Tensor) -> Box:
    """A crop of 0.9 to 1.0 of the area and of ratio 3:4 to 4:3, log-uniform, anywhere inside.

    `numbers` [ATTEMPTS, 4] as of `draws`. When no attempt fits, as with a panorama, the greatest
    central crop of an allowed ratio. Source: torchvision's `RandomResizedCrop.get_params`.
    """
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    for area_draw, ratio_draw, top_draw, left_draw in numbers.tolist():
        area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * area_draw)
        ratio = math.exp(low + (high - low) * ratio_draw)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(top_draw * (height - h + 1)), int(left_draw * (width - w + 1)), h, w)
    h, w = height, width
    if width / height < RATIO[0]:
        h = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        w = round(height * RATIO[1])
    return Box((height - h) // 2, (width - w) // 2, h, w)


def _unreadable(path: Path, error: Exception) -> RequestError:
    return RequestError(
        f"{path} cannot be read as an image ({str(error) or type(error).__name__}); "
        "replace it or take it out"
    )


def _upright(image: Image.Image) -> Image.Image:
    """Turned as the camera's EXIF orientation says."""
    method = _UPRIGHT.get(image.getexif().get(_EXIF_ORIENTATION, 1))
    return image if method is None else image.transpose(method)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Sixteen bits of grey (32 hold what older Pillows read of such a PNG). Pillow's own
        # conversion cuts values off at 255, which leaves a white image.
        grey = np.asarray(image).clip(0, 65535).astype(np.float64) / 257
        return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        # Dropping alpha would show whatever colour lies under transparent pixels, often black.
        shown = Image.new("RGBA", image.size, "white")
        shown.alpha_composite(image.convert("RGBA"))
        return shown.convert("RGB")
    return image.convert("RGB")
