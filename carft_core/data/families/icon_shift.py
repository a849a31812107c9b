"""IconShift: the embedded benchmark of icons in designers' styles."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import compress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn import functional

from carft_sweep.carft_core.data.base import (
    DataConfig,
    Family,
    FamilyData,
    Source,
    Split,
    refuse_held_out,
)
from carft_sweep.carft_core.data.images import open_image
from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.errors import RequestError

Keys = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_DRAWS = 12

MAX_ROTATION = 20.0
MIN_SCALE, MAX_SCALE = 0.72, 1.08
MAX_SHIFT = 0.10
DARK_GROUND = 0.3


def _mix(values: Keys) -> Keys:
    """Return the finaliser of splitmix64 of values: a bijection of 64-bit integers whose output
    bits look random."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = values ^ (values >> np.uint64(31))
    return mixed


def view_keys(
    seed: int, split: str, epoch: int, indices: Sequence[int] | npt.NDArray[np.integer]
) -> Keys:
    """Return one uint64 key per index; other seeds, splits or epochs give unrelated keys."""
    name = f"{seed}/{split}/{epoch}".encode()
    start = np.frombuffer(hashlib.sha256(name).digest()[:8], dtype="<u8")[0].astype(np.uint64)
    counters = np.asarray(indices, dtype=np.int64).astype(np.uint64) + np.uint64(1)
    return _mix(start + counters * _GOLDEN)


def uniforms(keys: Keys, count: int) -> npt.NDArray[np.float32]:
    """Return [N, count] numbers in [0, 1), a pure function of each key."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(keys[:, None] + steps[None, :]) >> np.uint64(40)
    numbers: npt.NDArray[np.float32] = bits.astype(np.float32) / np.float32(1 << 24)
    return numbers


@dataclass(frozen=True)
class ViewParameters:
    """What N keys decide: `affine` [N, 2, 3] for grid_sample, colours `ground`, `tint` [N, 3]."""

    affine: Tensor
    ground: Tensor
    tint: Tensor


def view_parameters(keys: Keys) -> ViewParameters:
    """Return geometry and colours of the view of each key."""
    draws = torch.from_numpy(uniforms(keys, _DRAWS))
    scale = MIN_SCALE + (MAX_SCALE - MIN_SCALE) * draws[:, 0]
    angle = torch.deg2rad(MAX_ROTATION * (2 * draws[:, 1] - 1))
    shift = 2 * MAX_SHIFT * (2 * draws[:, 2:4] - 1)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    # grid_sample maps output to input coordinates, hence the inverse of the map that we mean.
    affine = torch.stack(
        [
            torch.stack([cos, sin, -(cos * shift[:, 0] + sin * shift[:, 1])], dim=1),
            torch.stack([-sin, cos, sin * shift[:, 0] - cos * shift[:, 1]], dim=1),
        ],
        dim=1,
    )
    pale, deep = 1.0 - 0.35 * draws[:, 4:7], 0.5 * draws[:, 7:10]
    dark = (draws[:, 10] < DARK_GROUND).unsqueeze(1)
    return ViewParameters(
        affine=affine,
        ground=torch.where(dark, 0.6 * deep, pale),
        tint=torch.where(dark, pale, deep),
    )


def render_views(drawings: Tensor, monochrome: Tensor, keys: Keys, size: int) -> Tensor:
    """Return views of icons on coloured grounds.

    `drawings` uint8 [B, 48, 48, 4] (RGBA, colour not premultiplied), `monochrome` bool [B] (the
    drawing is only a mask and takes the view's tint), `keys` uint64 [B]. Returns float32 [B, 3,
    size, size] in [0, 1].
    """
    views, parameters = torch.empty(len(drawings), 3, size, size), view_parameters(keys)
    # One-colour icons, the majority, need only their mask resampled: a quarter of the work.
    mono = monochrome.nonzero().squeeze(1)
    if len(mono):
        mask = drawings[mono, :, :, 3].unsqueeze(1).float().div_(255)
        mask = _warp(mask, parameters.affine[mono], size)
        ground, tint = parameters.ground[mono, :, None, None], parameters.tint[mono, :, None, None]
        views[mono] = ground + (tint - ground) * mask
    colour = (~monochrome).nonzero().squeeze(1)
    if len(colour):
        pixels = drawings[colour].permute(0, 3, 1, 2).float().div_(255)
        # Interpolation needs premultiplied colour, or transparent pixels would bleed in.
        pixels[:, :3] *= pixels[:, 3:]
        pixels = _warp(pixels, parameters.affine[colour], size)
        ground = parameters.ground[colour, :, None, None]
        views[colour] = pixels[:, :3] + ground * (1 - pixels[:, 3:])
    return views.clamp_(0, 1)


def _warp(pixels: Tensor, affine: Tensor, size: int) -> Tensor:
    """Return pixels resampled at twice the size and averaged, to keep lines of one pixel."""
    grid = functional.affine_grid(
        affine, [len(pixels), pixels.shape[1], 2 * size, 2 * size], align_corners=False
    )
    warped = functional.grid_sample(pixels, grid, align_corners=False, padding_mode="zeros")
    return functional.avg_pool2d(warped, 2)


DATA = Path(__file__).resolve().parents[2] / "builtin" / "icon_shift" / "icon_shift.parquet"

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
TRAIN_VIEWS = 1
EVAL_VIEWS = 2
_EVAL_SEED = 20240229


@dataclass(frozen=True, eq=False)
class Drawings(Source):
    """Drawings, each seen in a fixed number of views; a row is a (drawing, view number)."""

    split: str
    """The split's name; under another name the same drawing has other views."""
    pngs: Sequence[bytes]
    """The PNG files of the D drawings."""
    monochrome: Tensor
    """[D] bool."""
    views_per_drawing: int

    @cached_property
    def pixels(self) -> Tensor:
        """Drawings [D, 48, 48, 4] uint8, decoded when the first view is made."""
        return torch.from_numpy(np.stack([decode(png) for png in self.pngs]))

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Return rendered views [B, 3, S, S], rounded to uint8."""
        items = np.asarray(rows, dtype=np.int64)
        if seed is None:
            keys = view_keys(_EVAL_SEED, f"evaluation/{self.split}", 0, items)
        else:
            keys = view_keys(seed, self.split, epoch, items)
        drawing = torch.from_numpy(items // self.views_per_drawing)
        views = render_views(self.pixels[drawing], self.monochrome[drawing], keys, transform.size)
        return views.mul_(255).round_().byte()


@lru_cache(maxsize=2)
def read_subset(subset: str, path: Path = DATA) -> FamilyData:
    """Return the "report" or "development" half of the packed data; opened once per process."""
    content = path.read_bytes()
    columns = ["id", "class", "split", "unit", "monochrome", "png", "subset"]
    # Not by Arrow's filters, for which it imports pandas.
    packed = pq.ParquetFile(io.BytesIO(content)).read(columns).to_pydict()
    own = [value == subset for value in packed["subset"]]
    table = {name: list(compress(column, own)) for name, column in packed.items()}
    names = tuple(sorted(set(table["class"])))
    number = {name: index for index, name in enumerate(names)}
    monochrome = torch.tensor(table["monochrome"])

    def split(name: str, views: int) -> Split:
        rows = [row for row, value in enumerate(table["split"]) if value == name]
        labels = torch.tensor([number[table["class"][row]] for row in rows], dtype=torch.int64)
        return Split(
            ids=tuple(f"{table['id'][row]}#{view}" for row in rows for view in range(views)),
            units=tuple(table["unit"][row] for row in rows for _ in range(views)),
            labels=labels.repeat_interleave(views),
            source=Drawings(name, [table["png"][row] for row in rows], monochrome[rows], views),
        )

    return FamilyData(
        class_names=names,
        train=split("train", TRAIN_VIEWS),
        val=split("val", EVAL_VIEWS),
        test=split("test", EVAL_VIEWS),
        shifts={name: split(name, EVAL_VIEWS) for name in SHIFTS},
        digest=hashlib.sha256(content + subset.encode()).hexdigest(),
        has_fixed_splits=True,
    )


def decode(png: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Return a drawing's RGBA pixels [48, 48, 4]; of one colour only the mask is stored."""
    image = open_image(io.BytesIO(png))
    if image.mode != "L":
        return np.array(image.convert("RGBA"))
    mask = np.array(image)
    pixels = np.zeros((*mask.shape, 4), dtype=np.uint8)
    pixels[..., 3] = mask
    return pixels


def _family(name: str, subset: str, summary: str) -> Family:
    def open_subset(config: DataConfig) -> FamilyData:
        refuse_held_out(config, "leave the field out: its styles are shifts")
        if config.root is not None:
            raise RequestError(
                f"data.root is {config.root!r}, but {name} lies in the package: leave it out"
            )
        return read_subset(subset)

    return Family(
        name=name,
        summary=summary,
        open=open_subset,
        defaults={
            "optim.lr": 5e-4,
            "optim.epochs": 5,
            "optim.batch_size": 64,
            "prompts.classes": "icon_shift",
            "prompts.contexts": "icon_shift",
        },
        domains=("outline", "duotone", "flat emoji", "3D emoji", "black emoji", "pixel"),
    )


ICON_SHIFT = _family(
    "icon_shift",
    "report",
    "things as icon designers draw them: solid icons, shifted to outlines, emoji, pixels",
)
ICON_SHIFT_DEV = _family(
    "icon_shift_dev",
    "development",
    "IconShift's other classes, for choosing what the report on icon_shift then measures",
)
