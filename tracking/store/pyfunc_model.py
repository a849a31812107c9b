"""What MLflow serves of an exported model: images in base64 to classes, and to contexts.

Nothing here imports this file: MLflow keeps its text beside the weights and runs it wherever the
model is loaded, with open_clip and without carft-sweep.
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


class ServedModel(PythonModel):
    """Reads the folder of an export, which is the artifact `model`."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the checkpoint; on a GPU if there is one."""
        import open_clip
        import torch
        from safetensors.torch import load_file

        folder = Path(context.artifacts["model"])
        told = json.loads((folder / "classes.json").read_text(encoding="utf-8"))
        self._classes, self._contexts = told["classes"], told["contexts"]
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model, _, self._preprocess = open_clip.create_model_and_transforms(
            f"local-dir:{folder}", device=self._device
        )
        self._model = model.eval()
        self._head = load_file(folder / "head.safetensors")["weight"].to(self._device)
        seen = load_file(folder / "contexts.safetensors")
        self._w_ctx = (seen["logit_scale"] * seen["w_ctx"]).to(self._device)

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """A row for each row of `model_input`, whose column `image` holds image files in base64.

        `params`: `top` classes and `contexts` templates are told of each. Raises MlflowException
        (400 from a server) that names the row which is no image.
        """
        del context
        import torch

        top, contexts = (int((params or {}).get(name, 5)) for name in ("top", "contexts"))
        if min(top, contexts) < 1:
            raise MlflowException.invalid_parameter_value("top and contexts must be at least 1")
        if model_input.empty:
            raise MlflowException.invalid_parameter_value("there is no row: nothing to classify")
        images = [_opened(text, row) for row, text in enumerate(model_input[COLUMN])]
        views = torch.stack([self._preprocess(image) for image in images]).to(self._device)
        with torch.inference_mode():
            features = self._model.encode_image(views, normalize=True).float()
            classes = _best(features @ self._head.T, self._classes, "label", top)
            seen = _best(features @ self._w_ctx.T, self._contexts, "context", contexts)
        return pd.DataFrame(
            {
                "label": [best[0]["label"] for best in classes],
                "probability": [best[0]["probability"] for best in classes],
                "top": classes,
                "contexts": seen,
            }
        )


def _opened(text: Any, row: int) -> Any:
    """Upright and in RGB, transparency on white. Raises MlflowException."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    if not isinstance(text, str):
        raise _wrong(row, f"is no text but {type(text).__name__}")
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    try:
        content = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _wrong(row, f"is not base64 ({error})") from None
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
        return _rgb(ImageOps.exif_transpose(image))
    except UnidentifiedImageError:
        raise _wrong(row, "is no image of a known format") from None
    except Exception as error:  # decoders meet arbitrary bytes, and raise anything
        raise _wrong(row, f"is no readable image ({str(error) or type(error).__name__})") from None


def _rgb(image: Any) -> Any:
    """As carft-sweep reads its images, so that both say the same of one."""
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I"):  # sixteen bits of grey
        grey = np.asarray(image).clip(0, 65535).astype(np.float64) / 257
        return Image.fromarray(np.rint(grey).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
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
    """The most probable first, of equal ones the first."""
    probabilities = logits.cpu().double().softmax(dim=1)
    order = probabilities.argsort(dim=1, descending=True, stable=True)[:, :count]
    return [
        [{kind: names[index], "probability": float(row[index])} for index in best]
        for row, best in zip(probabilities, order.tolist(), strict=True)
    ]


set_model(ServedModel())
