"""An exported model at work: images to classes, and to the contexts that it sees them in."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from carft_sweep.carft_core.data import Transform
from carft_sweep.carft_core.data.images import image_errors, open_image, read_rgb, upright_rgb
from carft_sweep.carft_core.data.transforms import evaluation_view
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.export.export import CONTEXTS, FACTS, HEAD, NAMES, read_facts
from carft_sweep.carft_core.files import read_json
from carft_sweep.carft_core.models.classifier import ImageClassifier, linear_head
from carft_sweep.carft_core.models.clip import open_image_tower
from carft_sweep.carft_core.runs.folder import load_weights
from carft_sweep.carft_core.training.numerics import resolve_device

BATCH = 64
Picture = str | Path | bytes | Image.Image


@dataclass(frozen=True)
class Texts:
    """The lists that are read of an export's `classes.json`."""

    classes: list[str]
    contexts: list[str]

    def __post_init__(self) -> None:
        """Raise ValueError for an empty list of names."""
        if not self.classes or not self.contexts:
            raise ValueError("there are no classes, or no contexts")


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
    """The templates of the contexts."""
    _classifier: ImageClassifier
    _w_ctx: Tensor
    _scale: float
    _transform: Transform
    _device: torch.device

    @classmethod
    def load(cls, folder: str | Path, device: str = "auto") -> Self:
        """Open an export. Raises RequestError if the folder holds no export or a damaged one."""
        folder = Path(folder)
        facts = read_facts(folder)
        if facts is None:
            raise RequestError(f"{folder} holds no exported model: there is no {FACTS}")
        place = resolve_device(device)
        texts = read_json(folder / NAMES, Texts, follow=True)
        if texts is None:
            raise RequestError(f"{folder} is not whole: there is no {NAMES}")
        weight, w_ctx, scale = (
            _tensor(folder / file, name)
            for file, name in ((HEAD, "weight"), (CONTEXTS, "w_ctx"), (CONTEXTS, "logit_scale"))
        )
        rows = [*weight.shape[:1], *w_ctx.shape[:1]]
        names = [len(texts["classes"]), len(texts["contexts"])]
        if rows != names:
            raise RequestError(
                f"{folder}: {NAMES} has {names} classes and contexts, {HEAD} and {CONTEXTS} "
                f"have {rows}"
            )
        tower, transform = open_image_tower(folder)
        side = transform.size
        try:
            model = cls(
                facts=facts,
                class_names=tuple(texts["classes"]),
                contexts=tuple(texts["contexts"]),
                _classifier=ImageClassifier(tower, linear_head(weight)).eval().to(place),
                _w_ctx=w_ctx.to(place),
                _scale=float(scale),
                _transform=transform,
                _device=place,
            )
            (prediction,) = model.predict([Image.new("RGB", (side, side))])
        except (RuntimeError, ValueError) as error:  # shapes that do not go together
            reason = str(error).partition("\n")[0]
            raise RequestError(f"{folder}: its files do not fit together: {reason}") from None
        guesses = (*prediction.classes, *prediction.contexts)
        if not all(math.isfinite(guess.probability) for guess in guesses):
            raise RequestError(f"{folder}: the model gives NaN: its weights are too large")
        return model

    def predict(
        self, images: Sequence[Picture], *, top: int = 5, contexts: int = 3
    ) -> list[Prediction]:
        """Return for each image its `top` classes and `contexts` templates, or all where there are
        fewer. An image is a path, a file's bytes, or a Pillow image. Raises RequestError for an
        unreadable one."""
        predictions = []
        for outcome in self.attempt(images, top=top, contexts=contexts):
            if isinstance(outcome, RequestError):
                raise outcome
            predictions.append(outcome)
        return predictions

    def attempt(
        self, images: Iterable[Picture], *, top: int = 5, contexts: int = 3
    ) -> Iterator[Prediction | RequestError]:
        """Yield for each image in turn its prediction, or for an unreadable image the error. Memory
        holds one image at a time, and the small views of a batch."""
        rest = iter(images)
        while batch := list(itertools.islice(rest, BATCH)):
            outcomes = [self._view(image) for image in batch]
            views = [view for view in outcomes if isinstance(view, Tensor)]
            predictions = iter(self._of_views(views, top, contexts))
            for view in outcomes:
                yield view if isinstance(view, RequestError) else next(predictions)

    def _view(self, image: Picture) -> Tensor | RequestError:
        try:
            return evaluation_view(read_image(image), self._transform)
        except RequestError as error:
            return error

    @torch.inference_mode()
    def _of_views(self, views: Sequence[Tensor], top: int, contexts: int) -> Iterable[Prediction]:
        if not views:
            return ()
        images = self._transform.normalise(torch.stack([*views]).to(self._device))
        features = self._classifier.features(images)
        in_classes = self._classifier.logits(features)
        in_contexts = self._scale * features @ self._w_ctx.T
        both = (
            _best(in_classes, self.class_names, top),
            _best(in_contexts, self.contexts, contexts),
        )
        return (Prediction(classes, seen) for classes, seen in zip(*both, strict=True))


def read_image(image: Picture) -> Image.Image:
    """Return an image upright and in RGB, as a family's images are read. Raises RequestError."""
    if isinstance(image, (str, Path)):
        return read_rgb(Path(image))
    with image_errors("this image"):
        picture = open_image(io.BytesIO(image)) if isinstance(image, bytes) else image
        picture.load()
        return upright_rgb(picture)


def _tensor(file: Path, name: str) -> Tensor:
    """Return a tensor of a file. Raises RequestError where the file or the tensor is missing."""
    try:
        tensors = load_weights(file, follow=True)
    except FileNotFoundError:
        raise RequestError(f"{file.parent} is not whole: there is no {file.name}") from None
    if name not in tensors:
        raise RequestError(f"{file} is not whole: there is no {name} in it")
    return tensors[name]


def _best(logits: Tensor, names: Sequence[str], count: int) -> Iterator[tuple[Guess, ...]]:
    """Yield the most probable names of each row; of equal ones the first, as for top1."""
    probabilities = F.softmax(logits.cpu().double(), dim=1)
    order = probabilities.argsort(dim=1, descending=True, stable=True)[:, :count]
    for row, best in zip(probabilities, order.tolist(), strict=True):
        yield tuple(Guess(names[index], float(row[index])) for index in best)
