"""Near copies: sets take over each other's drawings, which must not leak the benchmark that way."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from tools.builtin.render import Pixels

SIDE = 20
SAME = 0.98


def fingerprint(pixels: Pixels) -> npt.NDArray[np.float32]:
    """[400] unit vector of the ink, cropped to its box, so that padding and colour do not count."""
    alpha = pixels[..., 3]
    rows, columns = np.flatnonzero(alpha.max(1) > 32), np.flatnonzero(alpha.max(0) > 32)
    if len(rows) == 0:
        return np.zeros(SIDE * SIDE, dtype=np.float32)
    box = alpha[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    small = np.asarray(Image.fromarray(box).resize((SIDE, SIDE), Image.Resampling.BOX))
    vector = small.astype(np.float32).ravel()
    unit: npt.NDArray[np.float32] = vector / max(float(np.linalg.norm(vector)), 1e-6)
    return unit


def near_copies(
    candidates: npt.NDArray[np.float32], originals: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """[N] whether each candidate's fingerprint is (almost) that of any of the originals."""
    if len(candidates) == 0 or len(originals) == 0:
        return np.zeros(len(candidates), dtype=bool)
    copies: npt.NDArray[np.bool_] = (candidates @ originals.T).max(axis=1) > SAME
    return copies
