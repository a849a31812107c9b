"""Images in class folders, with two shifts of the test: out of focus, and at night."""

from io import BytesIO
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

from carft_sweep.carft_core.data.families.icon_shift import DATA

CLASSES = ["airplane", "bug", "bus", "cake", "calendar", "camera", "car", "fire"]
noise = np.random.default_rng(0)


def night(image: Image.Image) -> Image.Image:
    """A third of the light, and the noise of a sensor."""
    dark = np.asarray(image, dtype=float) * 0.3 + noise.normal(0, 16, (*image.size, 1))
    return Image.fromarray(dark.clip(0, 255).astype("uint8"))


def save(image: Image.Image, folder: str, row: dict[str, str]) -> None:
    path = Path("photos", folder, row["class"], row["id"].replace(":", "_") + ".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


for row in pq.read_table(DATA).to_pylist():
    if row["class"] in CLASSES and row["split"] in ("train", "val", "test"):
        image = Image.open(BytesIO(row["png"])).convert("RGB")
        if row["split"] == "train":
            save(image, "train", row)
        else:
            save(image, "test", row)
            save(image.filter(ImageFilter.GaussianBlur(2)), "shifts/blur", row)
            save(night(image), "shifts/night", row)
