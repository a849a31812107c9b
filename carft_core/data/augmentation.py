"""Augmentations by name: what a training view draws, as each recipe declares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Augmentation:
    """What is done to a photograph before it trains, in this order; the default is WiSE-FT's.

    A crop resized to the tower's input, a mirror image, changes of colour in random order, grey.
    """

    crop: Literal["area", "height", "fixed"] = "area"
    """What is drawn evenly: the crop's `area`, as torchvision does, or its `height`, as TensorFlow
    does; `fixed` is the evaluation view."""
    area: tuple[float, float] = (0.9, 1.0)
    """The least and the greatest part of the image."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """The least and the greatest width by height."""
    covered: float = 0.0
    """What of the image a crop must show at least; a smaller one is drawn again."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    flip: float = 0.0
    """The chance of the mirror image."""
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    """These four are torchvision's `ColorJitter`: a factor of 1 ± so much, a hue of ± so much."""
    grey: float = 0.0
    """The chance that colours go."""


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
