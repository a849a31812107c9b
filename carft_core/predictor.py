"""An exported model at work: images to classes, and to the contexts that it sees them in."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional as F

from carft_core.clip import FOLDER, ImageClassifier, open_model
from carft_core.data import Transform
from carft_core.data.transforms import evaluation_view, read_rgb, upright_rgb
from carft_core.device import resolve_device
from carft_core.errors import RequestError
from carft_core.export import CLASSES, CONTEXTS, FACTS, HEAD, read_facts
from carft_core.files import read_json
from carft_core.run import load_weights
from carft_core.teacher import linear_head

BATCH = 64
Picture = Path | bytes | Image.Image


class Guess(NamedTuple):
    """A class or a context, and how probable it is, in [0, 1]."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image, the most probable first."""

    classes: tuple[Guess, ...]
    contexts: tuple[Guess, ...]


@dataclass(frozen=True, eq=False)
class Predictor:
    """The classifier of an export. Needs its folder and nothing of what it was trained on."""

    facts: Mapping[str, Any]
    """`carft.json`: the run's digest, the label, the config, the metrics."""
    class_names: tuple[str, ...]
    contexts: tuple[str, ...]
    """Templates."""
    _classifier: ImageClassifier
    _w_ctx: Tensor
    _scale: float
    _transform: Transform
    _device: torch.device

    @classmethod
    def load(cls, folder: Path, device: str = "auto") -> Self:
        """Raises RequestError when the folder holds no export, or one that is damaged."""
        facts = read_facts(folder)
        if facts is None:
            raise RequestError(f"{folder} holds no exported model: there is no {FACTS}")
        place = resolve_device(device)
        texts = read_json(folder / CLASSES)
        if texts is None:
            raise RequestError(f"{folder} is not whole: there is no {CLASSES}")
        head, contexts = (_tensors(folder / name) for name in (HEAD, CONTEXTS))
        clip = open_model(f"{FOLDER}{folder}")
        classifier = ImageClassifier(clip.model.visual, linear_head(head["weight"]))  # type: ignore[arg-type]
        return cls(
            facts=facts,
            class_names=tuple(texts["classes"]),
            contexts=tuple(texts["contexts"]),
            _classifier=classifier.eval().to(place),
            _w_ctx=contexts["w_ctx"].to(place),
            _scale=float(contexts["logit_scale"]),
            _transform=clip.transform,
            _device=place,
        )

    def predict(
        self, images: Sequence[Picture], *, top: int = 5, contexts: int = 3
    ) -> list[Prediction]:
        """The `top` classes and `contexts` templates of each image, fewer where there are fewer.

        An image is a path, the bytes of a file, or opened. Raises RequestError for one that cannot
        be read.
        """
        predictions: list[Prediction] = []
        for first in range(0, len(images), BATCH):
            opened = [read_image(image) for image in images[first : first + BATCH]]
            predictions += self._of_batch(opened, top, contexts)
        return predictions

    @torch.inference_mode()
    def _of_batch(
        self, images: Sequence[Image.Image], top: int, contexts: int
    ) -> Iterator[Prediction]:
        views = torch.stack([evaluation_view(image, self._transform) for image in images])
        features = self._classifier.features(self._transform.normalise(views.to(self._device)))
        in_classes = self._classifier.logits(features)
        in_contexts = self._scale * features @ self._w_ctx.T
        both = (
            _best(in_classes, self.class_names, top),
            _best(in_contexts, self.contexts, contexts),
        )
        return (Prediction(classes, seen) for classes, seen in zip(*both, strict=True))


def read_image(image: Picture) -> Image.Image:
    """Upright and in RGB, as the images of a family are read. Raises RequestError."""
    if isinstance(image, Path):
        return read_rgb(image)
    try:
        opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
        opened.load()
        return upright_rgb(opened)
    except UnidentifiedImageError:
        raise RequestError("these bytes are no image of a known format") from None
    except Exception as error:  # as in read_rgb: decoders raise anything
        raise RequestError(
            f"this image cannot be read ({str(error) or type(error).__name__})"
        ) from error


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_weights(file)
    except FileNotFoundError:
        raise RequestError(f"{file.parent} is not whole: there is no {file.name}") from None


def _best(logits: Tensor, names: Sequence[str], count: int) -> Iterator[tuple[Guess, ...]]:
    """Of equal ones the first, as in the metric top1."""
    probabilities = F.softmax(logits.cpu().double(), dim=1)
    order = probabilities.argsort(dim=1, descending=True, stable=True)[:, :count]
    for row, best in zip(probabilities, order.tolist(), strict=True):
        yield tuple(Guess(names[index], float(row[index])) for index in best)
