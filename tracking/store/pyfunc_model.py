"""MLflow's model of an export: it predicts classes and contexts of images in base64.

Nothing in carft-sweep imports this file: MLflow keeps its text beside the weights and runs it
wherever the model is loaded, with open_clip and without carft-sweep.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

COLUMN = "image"
BATCH = 64
MOST_ROWS = 1000
"""Most rows of a request."""
MOST_BYTES = 1 << 28
"""Most bytes of a request's images, in base64."""
# As carft-sweep opens images; its law compares both.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
MEGAPIXELS = 64
LONGEST = 100


class ServedModel(PythonModel):
    """MLflow's Python model of an export, whose folder is the artifact `model`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the exported model, on a GPU if present."""
        import open_clip
        import torch
        from safetensors.torch import load_file

        folder = Path(context.artifacts["model"])
        labels = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
        self._classes, self._contexts = labels["classes"], labels["contexts"]
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model, _, self._preprocess = open_clip.create_model_and_transforms(
            f"local-dir:{folder}", device=self._device
        )
        self._model = model.eval()
        self._head = load_file(folder / "head.safetensors")["weight"].to(self._device)
        contexts = load_file(folder / "contexts.safetensors")
        self._w_ctx = (contexts["logit_scale"] * contexts["w_ctx"]).to(self._device)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Return a row for each image file, in base64, in the column `image` of `model_input`: the
        best class as `label`, its `probability`, and lists of the likeliest classes (`top`) and
        context templates (`contexts`). `params` says how many of both, 5 each by default. Raises
        MlflowException (400 from a server) for wrong `params`, no or too many rows, and, with its
        number, for a row that is no image."""
        del context
        import torch

        top, most_contexts = (int((params or {}).get(name, 5)) for name in ("top", "contexts"))
        if min(top, most_contexts) < 1:
            raise MlflowException.invalid_parameter_value("top and contexts must be at least 1")
        if model_input.empty:
            raise MlflowException.invalid_parameter_value("there is no row: nothing to classify")
        rows = list(enumerate(model_input[COLUMN]))
        _check_amount([text for _, text in rows])
        classes, contexts = [], []
        for first in range(0, len(rows), BATCH):
            # Each image becomes small before the next one is decoded.
            views = torch.stack(
                [
                    self._preprocess(_open_image(text, row))
                    for row, text in rows[first : first + BATCH]
                ]
            )
            with torch.inference_mode():
                images = views.to(self._device)
                features = self._model.encode_image(images, normalize=True).float()
                classes += _best(features @ self._head.T, self._classes, "label", top)
                logits = features @ self._w_ctx.T
                contexts += _best(logits, self._contexts, "context", most_contexts)
        return pd.DataFrame(
            {
                "label": [best[0]["label"] for best in classes],
                "probability": [best[0]["probability"] for best in classes],
                "top": classes,
                "contexts": contexts,
            }
        )


def _check_amount(texts: list[Any]) -> None:
    size = sum(len(text) for text in texts if isinstance(text, str))
    if len(texts) > MOST_ROWS or size > MOST_BYTES:
        raise MlflowException.invalid_parameter_value(
            f"{len(texts):,} rows with {size:,} bytes of images; a request takes at most "
            f"{MOST_ROWS:,} rows and {MOST_BYTES:,} bytes. Send the others in another"
        )


def _open_image(text: Any, row: int) -> Any:
    """Return a decoded image, upright and in RGB, transparency on white. Raises MlflowException."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not isinstance(text, str):
        raise _wrong(row, f"is no text but {type(text).__name__}")
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _wrong(row, f"is not base64 ({error})") from None
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        _check_size(*image.size)
        image.load()
        return _converted(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise _wrong(row, "is no image of a known format") from None
    except Exception as error:  # decoders meet arbitrary bytes, and raise anything
        raise _wrong(row, f"is no readable image ({str(error) or type(error).__name__})") from None


def _check_size(width: int, height: int) -> None:
    size = f"it has {width} x {height} pixels"
    if width * height > MEGAPIXELS * 1_000_000:
        raise ValueError(f"{size}; at most {MEGAPIXELS} million are decoded")
    if max(width, height) > LONGEST * min(width, height):
        raise ValueError(f"{size}; a side is at most {LONGEST} times the other")


def _converted(image: Any) -> Any:
    """Return an image as carft-sweep converts one, so that both give the same prediction."""
    import numpy as np
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):  # sixteen bits of grey
        grey = np.asarray(image).clip(0, 65535).astype(np.uint16)
        rounded = grey // 257 + (grey % 257 > 128)
        return Image.fromarray(rounded.astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA"} or "transparency" in image.info:
        shown = Image.new("RGBA", image.size, "white")
        shown.alpha_composite(image.convert("RGBA"))
        return shown.convert("RGB")
    return image.convert("RGB")


def _wrong(row: int, what: str) -> MlflowException:
    return MlflowException(
        f"row {row}: `{COLUMN}` {what}; it must hold an image file (PNG, JPEG, ...) in base64",
        error_code=INVALID_PARAMETER_VALUE,
    )


def _best(logits: Any, names: list[str], kind: str, count: int) -> list[list[dict[str, Any]]]:
    """Return for each row the `count` most probable names as `{kind: name, "probability": p}`, in
    order; of equal ones the earlier first."""
    probabilities = logits.cpu().double().softmax(dim=1)
    order = probabilities.argsort(dim=1, descending=True, stable=True)[:, :count]
    return [
        [{kind: names[index], "probability": float(row[index])} for index in best]
        for row, best in zip(probabilities, order.tolist(), strict=True)
    ]


set_model(ServedModel())
