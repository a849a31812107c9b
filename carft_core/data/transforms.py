"""Transforms: an image cropped, resized and augmented into the view that the model sees."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from torchvision.transforms import v2

# torchvision is imported where a view is made: with it come torch._dynamo and sympy, 1.3 s and
# 87 MB for whoever only plans runs.


@dataclass(frozen=True)
class Augmentation:
    """What is done to a photograph before it trains, in this order; the default is WiSE-FT's.

    A crop resized to the tower's input, a mirror image, changes of colour in random order, grey.
    """

    crop: Literal["area", "height", "fixed"] = "area"
    """What is drawn evenly: the crop's `area`, as torchvision does, or its `height`, as TensorFlow
    does; `fixed` is the evaluation view."""
    area: tuple[float, float] = (0.9, 1.0)
    """The least and the greatest part of the image that a crop shows."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """The least and the greatest ratio of a crop's width to its height."""
    covered: float = 0.0
    """The least part of the image that a `height` crop must show; a smaller one is drawn again."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.0
    """The chance of the mirror image."""
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """These four are torchvision's `ColorJitter`: a factor of 1 ± so much, a hue of ± so much."""
    grey: float = 0.0
    """The chance that the view is made grey."""


AUGMENTATIONS: Mapping[str, Augmentation] = {
    # `clip/clip.py` of mlfoundations/wise-ft; CAR-FT uses it.
    "wise_ft": Augmentation(),
    # `clip/clip.py` of locuslab/FLYP, which kept WiSE-FT's.
    "flyp": Augmentation(),
    # `src/input_pipeline.py` of cs-giung/lipsum-ft: flax's ImageNet example, by TensorFlow.
    "lipsum": Augmentation(crop="height", area=(0.08, 1.0), covered=0.1, flip=0.5),
    # `domainbed/datasets.py` of facebookresearch/DomainBed.
    "domainbed": Augmentation(
        area=(0.7, 1.0),
        interpolation="bilinear",
        flip=0.5,
        brightness=0.3,
        contrast=0.3,
        saturation=0.3,
        hue=0.3,
        grey=0.1,
    ),
    "none": Augmentation(crop="fixed"),
}


ATTEMPTS = 10
COLOURS = ("brightness", "contrast", "saturation", "hue")
CENTRAL = 224 / 256
"""What lipsum-ft keeps of the shorter side when it finds no crop."""


@dataclass(frozen=True)
class Transform:
    """How an image becomes the input of an image tower; it comes from the opened CLIP.

    `size` is the side of the square input in pixels; `mean` and `std` are per RGB channel, for
    pixels in [0, 1].
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    """How an evaluation view becomes square: `shortest` side resized and cropped, `squash`ed, or
    the `longest` side resized and filled up."""
    augmentation: Augmentation = field(default=Augmentation(), repr=False)
    """What training views draw, in a family that follows `data.augmentation`."""

    def normalise(self, images: Tensor) -> Tensor:
        """Return images [B, 3, S, S], uint8 or float in [0, 1], normalised as the image tower was
        trained: float32 on the same device."""
        # One copy, changed in place: writing to fresh memory is what costs here.
        pixels = images.to(torch.float32, copy=True)
        if images.dtype == torch.uint8:
            pixels.div_(255)
        mean, std = (_per_channel(values, pixels.device) for values in (self.mean, self.std))
        return pixels.sub_(mean).div_(std)


@functools.lru_cache(maxsize=32)  # a copy to a GPU waits for what it computes
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it is kept, and may be trained through later
        return torch.tensor(values, device=device).view(1, 3, 1, 1)


def evaluation_view(image: Image.Image, transform: Transform) -> Tensor:
    """Return pixels [3, S, S] uint8, as `transform.resize_mode` says.

    `shortest`: the shorter side resized to S, then the central square; `squash`: both sides
    resized to S; `longest`: the longer side resized to S, black beside the shorter.
    Source: open_clip's `image_transform(..., is_train=False)`, equal to the pixel.
    """
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    interpolation, side = InterpolationMode(transform.interpolation), transform.size
    if transform.resize_mode == "squash":
        resized = F.resize(image, [side, side], interpolation)
    elif transform.resize_mode == "longest":
        ratio = max(image.width, image.height) / side
        fitting = [max(1, round(length / ratio)) for length in (image.height, image.width)]
        resized = F.resize(image, fitting, interpolation)
    else:
        resized = F.resize(image, side, interpolation)
    pixels: Tensor = F.pil_to_tensor(F.center_crop(resized, side))  # black where smaller
    return pixels


def training_view(
    image: Image.Image, transform: Transform, *, seed: int, epoch: int, index: int
) -> Tensor:
    """Return pixels [3, S, S] uint8 as `transform.augmentation` says: a pure function of (seed,
    epoch, index), which are integers from 0.

    torchvision draws from torch's generator on the CPU, which is seeded by a hash of the three and
    then put back, so that no global random state is used or moved. Not for several threads at once.
    """
    from torchvision.transforms import functional as F

    if transform.augmentation.crop == "fixed":
        return evaluation_view(image, transform)
    with torch.random.fork_rng(devices=[]):
        # Not `torch.manual_seed`, which would seed the GPUs as well.
        torch.default_generator.manual_seed(view_seed(seed, epoch, index))
        pixels: Tensor = F.pil_to_tensor(_recipe(transform.augmentation, transform.size)(image))
    return pixels


def view_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of the generator of a view, below 2**64."""
    digest = hashlib.sha256(f"view/{seed}/{epoch}/{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


@functools.lru_cache(maxsize=8)
def _recipe(augmentation: Augmentation, size: int) -> v2.Compose:
    """Return torchvision's transform that draws and makes a training view of an RGB image."""
    from torchvision.transforms import InterpolationMode, v2

    interpolation = InterpolationMode(augmentation.interpolation)
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if augmentation.crop == "height":
        steps.append(functools.partial(_crop_by_height, augmentation=augmentation, size=size))
    else:
        crop = {"scale": augmentation.area, "ratio": augmentation.ratio}
        steps.append(v2.RandomResizedCrop(size, **crop, interpolation=interpolation))
    if augmentation.flip > 0:
        steps.append(v2.RandomHorizontalFlip(augmentation.flip))
    colours = {name: getattr(augmentation, name) for name in COLOURS}
    if any(colours.values()):
        steps.append(v2.ColorJitter(**colours))
    if augmentation.grey > 0:
        steps.append(v2.RandomGrayscale(augmentation.grey))
    return v2.Compose(steps)


def _crop_by_height(image: Image.Image, *, augmentation: Augmentation, size: int) -> Image.Image:
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    numbers = torch.rand(ATTEMPTS, 4, dtype=torch.float64)
    box = box_by_height(image.width, image.height, numbers, augmentation)
    interpolation = InterpolationMode(augmentation.interpolation)
    cropped: Image.Image = F.resized_crop(image, *box, [size, size], interpolation)
    return cropped


def box_by_height(
    width: int, height: int, numbers: Tensor, augmentation: Augmentation
) -> tuple[int, int, int, int]:
    """Return a crop's top, left, height and width in pixels: its aspect ratio is uniform, then its
    height among those that fit and give the area.

    `numbers` [ATTEMPTS, 4] are uniform in [0, 1), a row an attempt.

    When no attempt fits, or one covers the whole image, the box is the central square of CENTRAL of
    the shorter side. Source: TensorFlow's `sample_distorted_bounding_box` (the whole image its one
    object), and lipsum-ft's `_random_crop` around it.
    """
    least, most = (part * width * height for part in augmentation.area)
    low, high = augmentation.ratio
    for height_draw, ratio_draw, top_draw, left_draw in numbers.tolist():
        ratio = low + (high - low) * ratio_draw
        greatest = min(height, round(math.sqrt(most / ratio)), int((width + 0.5) / ratio))
        smallest = min(round(math.sqrt(least / ratio)), greatest)
        h = smallest + int(height_draw * (greatest - smallest + 1))
        w = round(h * ratio)
        if not 0 < w <= width or w * h < augmentation.covered * width * height:
            continue
        if w * h == width * height:
            break
        return int(top_draw * (height - h)), int(left_draw * (width - w)), h, w
    side = max(1, int(CENTRAL * min(width, height)))
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side
