"""A view of an icon is a pure function of the drawing and of one integer key.

The key seeds a counter-based generator (splitmix64), so a view depends neither on the batch that it
is rendered in, nor on the order of calls, nor on any global random state. There are no flips: some
names (undo, redo) differ by nothing else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

Keys = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_DRAWS = 12

MAX_ROTATION = 20.0
MIN_SCALE, MAX_SCALE = 0.72, 1.08
MAX_SHIFT = 0.10
DARK_GROUND = 0.3


def _mix(values: Keys) -> Keys:
    """The finaliser of splitmix64: a bijection of 64-bit integers; the output bits look random."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Keys = values ^ (values >> np.uint64(31))
    return mixed


def view_keys(
    seed: int, split: str, epoch: int, indices: Sequence[int] | npt.NDArray[np.integer]
) -> Keys:
    """One uint64 key per index; other seeds, splits or epochs give unrelated keys."""
    name = f"{seed}/{split}/{epoch}".encode()
    start = np.frombuffer(hashlib.sha256(name).digest()[:8], dtype="<u8")[0].astype(np.uint64)
    counters = np.asarray(indices, dtype=np.int64).astype(np.uint64) + np.uint64(1)
    return _mix(start + counters * _GOLDEN)


def uniforms(keys: Keys, count: int) -> npt.NDArray[np.float32]:
    """[N, count] numbers in [0, 1), a pure function of each key."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    bits = _mix(keys[:, None] + steps[None, :]) >> np.uint64(40)
    numbers: npt.NDArray[np.float32] = bits.astype(np.float32) / np.float32(1 << 24)
    return numbers


@dataclass(frozen=True)
class ViewParameters:
    """What the keys decide: `affine` [N, 2, 3] for grid_sample, colours `ground`, `tint` [N, 3]."""

    affine: Tensor
    ground: Tensor
    tint: Tensor


def view_parameters(keys: Keys) -> ViewParameters:
    """Geometry and colours of each view."""
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
    """Views of icons on coloured grounds.

    `drawings` uint8 [B, 48, 48, 4] (RGBA, colour not premultiplied), `monochrome` bool [B] (the
    drawing is only a mask and takes the view's tint), `keys` uint64 [B]. Returns float32
    [B, 3, size, size] in [0, 1]; raises ValueError when the three are not as many.
    """
    if not len(drawings) == len(monochrome) == len(keys):
        raise ValueError(
            f"{len(drawings)} drawings, {len(monochrome)} flags, {len(keys)} keys: "
            "they must be as many"
        )
    parameters = view_parameters(keys)
    views = torch.empty(len(drawings), 3, size, size)
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
    """Resample at twice the size and average, which keeps one-pixel lines when they shrink."""
    grid = functional.affine_grid(
        affine, [len(pixels), pixels.shape[1], 2 * size, 2 * size], align_corners=False
    )
    warped = functional.grid_sample(pixels, grid, align_corners=False, padding_mode="zeros")
    return functional.avg_pool2d(warped, 2)
