"""Small pictures of a split's items as the image tower sees them, for pages."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from PIL import Image
from torch import Tensor

from carft_sweep.carft_core.clip import find_model
from carft_sweep.carft_core.config import TrialConfig
from carft_sweep.carft_core.data import FamilyData, Split, Transform, open_data
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.errors import RequestError

SIDE = 96
"""Most pixels of a side."""
DEFAULT_SIZE = 224
"""open_clip's image size where an architecture names none."""
RESIZING = ("interpolation", "resize_mode")


def thumbnails(
    config: TrialConfig, items: Mapping[str, Sequence[str]], *, data_digest: str
) -> dict[tuple[str, str], bytes]:
    """PNG files by (split, item): of each split (`id/test`, `ood/<shift>`) the items by their ids.

    The evaluation view at the model's own size, at most `SIDE` pixels; the model's weights are
    not opened. Raises RequestError when the data cannot be opened, lacks an item, or is not that
    of `data_digest`, which the runs' identities hold.
    """
    data = _opened(config.data, items)
    if data.digest_of_training != data_digest:
        raise RequestError(f"the data of {config.data.family} is not what the runs were made on")
    splits = data.measured()
    transform = _plain_transform(config)
    pictures: dict[tuple[str, str], bytes] = {}
    for name, ids in items.items():
        pixels = _pixels(splits[name], ids, transform)
        pictures |= {(name, item): _png(view) for item, view in zip(ids, pixels, strict=True)}
    return pictures


def _opened(config: DataConfig, names: Collection[str]) -> FamilyData:
    """The data with the splits of these names."""
    # A run measured the items, so they can be read: looking for unreadable ones would cost time.
    config = config.model_copy(update={"bad_files": "refuse"})
    with contextlib.suppress(RequestError):
        data = open_data(config)
        if set(names) <= set(data.measured()):
            return data
    # The runs may have been measured on other shifts than this config names.
    shifts = tuple(name.removeprefix("ood/") for name in names if name.startswith("ood/"))
    return open_data(config.model_copy(update={"shifts": shifts}))


def _plain_transform(config: TrialConfig) -> Transform:
    """The model's, but for the normalisation, which views do not have."""
    source = find_model(config.model.name, config.model.pretrained)
    size = source.architecture["vision_cfg"].get("image_size", DEFAULT_SIZE)
    resized = {key: source.preprocess[key] for key in RESIZING if key in source.preprocess}
    return Transform(
        size if isinstance(size, int) else max(size),
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        **resized,
    )


def _pixels(split: Split, items: Sequence[str], transform: Transform) -> Tensor:
    """[B, 3, S, S] uint8."""
    place = {item: index for index, item in enumerate(split.ids)}
    gone = [item for item in items if item not in place]
    if gone:
        raise RequestError(f"{gone[0]} is not among the images any more")
    return split.views([place[item] for item in items], transform=transform, seed=None, epoch=0)


def _png(view: Tensor) -> bytes:
    image = Image.fromarray(np.ascontiguousarray(view.permute(1, 2, 0).numpy()))
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()
