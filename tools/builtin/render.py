"""Rendering of SVG icons to 48 x 48 RGBA pixels, on every core."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import numpy.typing as npt
import resvg_py
from PIL import Image

SIDE = 48
Pixels = npt.NDArray[np.uint8]


def render(svg: str) -> Pixels | None:
    """Return an SVG's pixels [48, 48, 4] uint8; None where it is broken or has (almost) no ink."""
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE, skip_system_fonts=True)
    except ValueError:
        return None
    pixels = np.array(Image.open(io.BytesIO(png)).convert("RGBA"))
    if pixels.shape != (SIDE, SIDE, 4) or pixels[..., 3].mean() < 4:
        return None
    return pixels


def render_all(svgs: Sequence[str]) -> list[Pixels | None]:
    """Return `render` of each drawing, in order."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(render, svgs, chunksize=256))


def is_monochrome(pixels: Pixels) -> bool:
    """Return whether all ink is black, so that the drawing is a mask which may take any colour."""
    ink = pixels[pixels[..., 3] > 127]
    return len(ink) == 0 or int(ink[:, :3].max()) <= 8
