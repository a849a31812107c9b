"""Image files that no camera makes."""

from __future__ import annotations

import io
import zlib

from PIL import Image


def claimed_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header says that it has so many pixels."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)
