"""IconShift: things as designers draw them; solid icons are in distribution, other styles shifts.

The data lies in the package; `carft_core.builtin.build.icon_shift` makes it.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from carft_core.data.base import Family, FamilyData, Split, Transform
from carft_core.data.held_out import refuse_held_out
from carft_core.data.icon_views import render_views, view_keys
from carft_core.errors import RequestError

if TYPE_CHECKING:
    from carft_core.config_sections import DataConfig

DATA = Path(__file__).resolve().parents[1] / "builtin" / "icon_shift" / "icon_shift.parquet"

STYLE_TEMPLATES: dict[str, tuple[str, ...]] = {
    "solid": ("a solid icon of a {}", "a filled glyph of a {}"),
    "outline": ("an outline icon of a {}", "a line drawing of a {}"),
    "duotone": ("a duotone icon of a {}", "a two-tone icon of a {}"),
    "colour": ("a colour icon of a {}", "a colourful illustration of a {}"),
    "flat": ("a flat emoji of a {}", "a flat colour emoji of a {}"),
    "3d": ("a 3D emoji of a {}", "a shaded emoji of a {}"),
    "black": ("a black emoji of a {}", "a black and white emoji of a {}"),
    "hand": ("a hand-drawn icon of a {}", "a sketch of a {}"),
    "pixel": ("a pixel icon of a {}", "pixel art of a {}"),
}
"""How captions speak of each style; the pre-training of the tiny CLIP draws from these."""

PLAIN_TEMPLATES: tuple[str, ...] = ("an icon of a {}", "a picture of a {}", "{}")
"""Captions that say nothing of the style."""

ICON_TEMPLATES: tuple[str, ...] = tuple(
    template for templates in STYLE_TEMPLATES.values() for template in templates
)
"""The template set `icon_shift`: every style's templates."""

SHIFTS = ("outline", "duotone", "flat-emoji", "3d-emoji", "black-emoji", "pixel")
TRAIN_VIEWS = 2
EVAL_VIEWS = 2
_EVAL_SEED = 20240229


class IconSplit(Split):
    """Drawings, each seen in a fixed number of views; an item is a (drawing, view number)."""

    def __init__(
        self,
        name: str,
        drawings: Sequence[str],
        labels: Sequence[int],
        pixels: Tensor,
        monochrome: Tensor,
        views_per_drawing: int,
    ) -> None:
        """`pixels` uint8 [D, 48, 48, 4], `monochrome` bool [D] belong to `drawings`, `labels`."""
        self.name = name
        self.ids = tuple(
            f"{drawing}#{view}" for drawing in drawings for view in range(views_per_drawing)
        )
        self.units = tuple(drawing for drawing in drawings for _ in range(views_per_drawing))
        self.labels = torch.tensor(labels, dtype=torch.int64).repeat_interleave(views_per_drawing)
        self._pixels = pixels
        self._monochrome = monochrome
        self._views_per_drawing = views_per_drawing

    def views(
        self, indices: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Normalised views [B, 3, S, S]; see `Split.views`."""
        items = np.asarray(indices, dtype=np.int64)
        if seed is None:
            keys = view_keys(_EVAL_SEED, f"evaluation/{self.name}", 0, items)
        else:
            keys = view_keys(seed, self.name, epoch, items)
        rows = torch.from_numpy(items // self._views_per_drawing)
        pixels = render_views(self._pixels[rows], self._monochrome[rows], keys, transform.size)
        return transform.normalise(pixels)


@lru_cache(maxsize=2)
def read_subset(subset: str, path: Path = DATA) -> FamilyData:
    """The "report" or "development" half of the packed data; opened once per process."""
    content = path.read_bytes()
    columns = ["id", "class", "split", "unit", "monochrome", "png"]
    table = pq.read_table(
        io.BytesIO(content), columns=columns, filters=[("subset", "==", subset)]
    ).to_pydict()
    names = tuple(sorted(set(table["class"])))
    number = {name: index for index, name in enumerate(names)}
    pixels = torch.from_numpy(np.stack([_decoded(png) for png in table["png"]]))
    monochrome = torch.tensor(table["monochrome"])

    def split(name: str, views_per_drawing: int) -> IconSplit:
        rows = [row for row, value in enumerate(table["split"]) if value == name]
        return IconSplit(
            name,
            [table["unit"][row] for row in rows],
            [number[table["class"][row]] for row in rows],
            pixels[rows],
            monochrome[rows],
            views_per_drawing,
        )

    return FamilyData(
        class_names=names,
        train=split("train", TRAIN_VIEWS),
        val=split("val", EVAL_VIEWS),
        test=split("test", EVAL_VIEWS),
        shifts={name: split(name, EVAL_VIEWS) for name in SHIFTS},
        digest=hashlib.sha256(content + subset.encode()).hexdigest(),
    )


def _decoded(png: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """RGBA [48, 48, 4]; a one-colour drawing is stored as its mask alone."""
    image = Image.open(io.BytesIO(png))
    if image.mode != "L":
        return np.array(image.convert("RGBA"))
    mask = np.array(image)
    pixels = np.zeros((*mask.shape, 4), dtype=np.uint8)
    pixels[..., 3] = mask
    return pixels


def _open(subset: str, config: DataConfig) -> FamilyData:
    refuse_held_out(config, "leave the field out: its styles are shifts")
    if config.root is not None:
        raise RequestError(
            f"data.root is {config.root!r}, but {config.family} lies in the package: leave it out"
        )
    return read_subset(subset)


def _open_report(config: DataConfig) -> FamilyData:
    return _open("report", config)


def _open_development(config: DataConfig) -> FamilyData:
    return _open("development", config)


_DEFAULTS: dict[str, object] = {
    "optim.lr": 5e-4,
    "optim.epochs": 6,
    "optim.batch_size": 64,
    "prompts.classes": "icon_shift",
    "prompts.contexts": "icon_shift",
}
_DOMAINS = ("outline", "duotone", "flat emoji", "3D emoji", "black emoji", "pixel")

ICON_SHIFT = Family(
    name="icon_shift",
    summary="things as icon designers draw them: solid icons, shifted to outlines, emoji, pixels",
    open=_open_report,
    defaults=_DEFAULTS,
    domains=_DOMAINS,
)
ICON_SHIFT_DEV = Family(
    name="icon_shift_dev",
    summary="IconShift's other classes, for choosing what the report on icon_shift then measures",
    open=_open_development,
    defaults=_DEFAULTS,
    domains=_DOMAINS,
)
