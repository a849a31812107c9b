"""Pre-training views, more varied than the benchmark's: mirrored, sheared, thicker, paler, cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from carft_sweep.carft_core.data.families.icon_shift import Keys, draw_views, view_parameters

MIRRORED = 0.5
STRETCH, SHEAR = 0.15, 0.15
"""The most that a side is scaled by, up or down, beside the view's own scale; and slanted by."""
THICKER, THINNER = 0.25, 0.15
"""Shares of one-colour drawings whose strokes gain or lose up to a pixel on each side."""
GREY = 0.2
"""Share of coloured drawings that lose their colour."""
CUT, MAX_CUT = 0.25, 0.4
"""Share of views of which a rectangle is covered, and the most of a side that it takes."""


def strong_views(
    drawings: Tensor, monochrome: Tensor, keys: Keys, draw: np.random.Generator, size: int
) -> Tensor:
    """The views of `render_views` [B, 3, size, size], varied further by what `draw` draws."""
    count = len(drawings)
    drawings = _recoloured(_restroked(drawings, monochrome, draw), monochrome, draw)
    parameters = view_parameters(keys)
    affine = parameters.affine @ _jitter(count, draw)
    views = draw_views(drawings, monochrome, replace(parameters, affine=affine), size)
    return _cut(views, draw)


def _jitter(count: int, draw: np.random.Generator) -> Tensor:
    """[B, 3, 3] maps of output coordinates: mirror, stretch of each side, slant."""
    numbers = torch.from_numpy(draw.random((count, 4), dtype=np.float32))
    spread = 1 + STRETCH * (2 * numbers[:, :2] - 1)
    maps = torch.zeros(count, 3, 3)
    maps[:, 0, 0] = torch.where(numbers[:, 2] < MIRRORED, -1.0, 1.0) * spread[:, 0]
    maps[:, 0, 1] = SHEAR * (2 * numbers[:, 3] - 1)
    maps[:, 1, 1] = spread[:, 1]
    maps[:, 2, 2] = 1
    return maps


def _restroked(drawings: Tensor, monochrome: Tensor, draw: np.random.Generator) -> Tensor:
    kind = torch.from_numpy(draw.random(len(drawings), dtype=np.float32))
    amount = torch.from_numpy(draw.random(len(drawings), dtype=np.float32))[:, None, None]
    rows = (monochrome & (kind < THICKER + THINNER)).nonzero().squeeze(1)
    if len(rows) == 0:
        return drawings
    mask = drawings[rows, :, :, 3].float()
    thick = functional.max_pool2d(mask[:, None], 3, 1, 1)[:, 0]
    thin = -functional.max_pool2d(-mask[:, None], 3, 1, 1)[:, 0]
    # A line of one pixel would vanish whole.
    thicker = (kind[rows] < THICKER)[:, None, None]
    target = torch.where(thicker, thick, mask + (thin - mask) / 2)
    drawings = drawings.clone()
    drawings[rows, :, :, 3] = (mask + amount[rows] * (target - mask)).round().byte()
    return drawings


def _recoloured(drawings: Tensor, monochrome: Tensor, draw: np.random.Generator) -> Tensor:
    grey = torch.from_numpy(draw.random(len(drawings), dtype=np.float32)) < GREY
    order = torch.from_numpy(draw.permutation(3))
    swap = torch.from_numpy(draw.random(len(drawings), dtype=np.float32)) < GREY
    drawings = drawings.clone()
    rows = (~monochrome & grey).nonzero().squeeze(1)
    weights = torch.tensor([0.299, 0.587, 0.114])
    drawings[rows, :, :, :3] = (drawings[rows, :, :, :3].float() @ weights).byte()[..., None]
    rows = (~monochrome & swap & ~grey).nonzero().squeeze(1)
    drawings[rows, :, :, :3] = drawings[rows, :, :, :3][..., order]
    return drawings


def _cut(views: Tensor, draw: np.random.Generator) -> Tensor:
    count, _, height, width = views.shape
    numbers = torch.from_numpy(draw.random((count, 8), dtype=np.float32))
    sides = MAX_CUT * numbers[:, :2]
    corner = numbers[:, 2:4] * (1 - sides)
    rows, columns = torch.arange(height) / height, torch.arange(width) / width
    inside = (
        ((rows >= corner[:, :1]) & (rows < corner[:, :1] + sides[:, :1]))[:, :, None]
        & ((columns >= corner[:, 1:]) & (columns < corner[:, 1:] + sides[:, 1:]))[:, None, :]
        & (numbers[:, 4] < CUT)[:, None, None]
    )
    return torch.where(inside[:, None], numbers[:, 5:, None, None], views)
