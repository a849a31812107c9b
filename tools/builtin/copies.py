"""Near copies: designers take over each other's drawings, under any name, thinner or thicker.

The measure compares edges rather than ink, so that two line drawings of different stroke width
agree, and blurs them, so that they need not lie on the same pixel. `copy_labels.csv` holds the
pairs that were judged by eye to set the threshold; docs/icon-shift.md says what it misses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from tools.builtin.manifest import Item, select_items
from tools.builtin.render import Pixels, is_monochrome

SIDE = 32
NEAR_COPY = 0.75
"""Pairs of greater correlation are near copies."""

LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
"""Weights of red, green and blue (ITU-R BT.601)."""

_CHUNK = 4096
Fingerprints = npt.NDArray[np.float32]


def fingerprint(pixels: Pixels) -> npt.NDArray[np.float32]:
    """Return the blurred edges [1024], of mean 0 and norm 1, of a drawing [48, 48, 4] uint8.

    The ink is cropped to its bounding box and scaled with its proportions kept, so that padding
    and size do not count; a coloured drawing counts by its darkness on white.
    """
    alpha = np.divide(pixels[..., 3], 255, dtype=np.float32)
    ink = alpha
    if not is_monochrome(pixels):
        luminance = pixels[..., :3].astype(np.float32) @ LUMINANCE / 255
        ink = alpha * (1 - luminance)
    gradient = ndimage.gaussian_gradient_magnitude(_cropped(ink, alpha), 1.0)
    edges = ndimage.gaussian_filter(gradient, 0.7).ravel()
    edges -= edges.mean()
    unit: npt.NDArray[np.float32] = edges / max(float(np.linalg.norm(edges)), 1e-6)
    return unit


def fingerprints(drawings: Sequence[Pixels] | Pixels) -> Fingerprints:
    """Return the fingerprint of each drawing, [N, 1024]."""
    rows = [fingerprint(np.asarray(pixels)) for pixels in drawings]
    return np.stack(rows) if rows else np.zeros((0, SIDE * SIDE), dtype=np.float32)


def mirrored(prints: Fingerprints) -> Fingerprints:
    """Return the fingerprints of the drawings with left and right exchanged."""
    return prints.reshape(-1, SIDE, SIDE)[:, :, ::-1].reshape(-1, SIDE * SIDE)


def nearest(
    candidates: Fingerprints, originals: Fingerprints
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.intp]]:
    """Return each candidate's largest correlation [N] with an original or its mirror, and which."""
    if len(originals) == 0:
        return np.full(len(candidates), -1, np.float32), np.zeros(len(candidates), np.intp)
    both = np.concatenate([originals, mirrored(originals)]).T
    correlation = np.empty(len(candidates), dtype=np.float32)
    which = np.empty(len(candidates), dtype=np.intp)
    for start in range(0, len(candidates), _CHUNK):
        rows = slice(start, start + _CHUNK)
        products = candidates[rows] @ both
        best = products.argmax(axis=1)
        correlation[rows] = products[np.arange(len(best)), best]
        which[rows] = best % len(originals)
    return correlation, which


def near_copies(candidates: Fingerprints, originals: Fingerprints) -> npt.NDArray[np.bool_]:
    """Return [N] whether each candidate is a near copy of any of the originals."""
    copies: npt.NDArray[np.bool_] = nearest(candidates, originals)[0] > NEAR_COPY
    return copies


def choose_items(
    items: Sequence[Item], drawings: Sequence[Pixels] | Pixels, plan: Mapping[str, Any]
) -> list[Item]:
    """Return the benchmark: no training drawing is a near copy of another split's."""
    prints = fingerprints(drawings)
    training = np.array([item.split == "train" for item in items], dtype=bool)
    copies = np.zeros(len(items), dtype=bool)
    copies[training] = near_copies(prints[training], prints[~training])
    return select_items([item for item, copy in zip(items, copies, strict=True) if not copy], plan)


def _cropped(
    ink: npt.NDArray[np.float32], alpha: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    rows, columns = np.flatnonzero(alpha.max(1) > 0.12), np.flatnonzero(alpha.max(0) > 0.12)
    if len(rows) == 0:
        return np.zeros((SIDE, SIDE), dtype=np.float32)
    box = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = box.shape
    side = max(height, width)
    square = np.zeros((side, side), dtype=np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = box
    method = Image.Resampling.BOX if side > SIDE else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(square).resize((SIDE, SIDE), method))
