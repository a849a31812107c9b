"""From a checkpoint: weights that somebody tuned already, measured and merged like a run's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor

from carft_sweep.carft_core.algorithms.base import Algorithm
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import path_or_none
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.weights import file_digest, fit, read_state

OTHER_NAMES = {"image_encoder.model.": "", "classification_head.": "head."}
"""How tensors' names begin in checkpoints of WiSE-FT's code -> how they begin here."""


class FromCheckpoint(Algorithm):
    """The weights of a file; nothing is trained. They are evaluated and merged like a run's own.

    The file is safetensors, or what torch.save wrote of tensors alone, with the state dict of

    * an image tower and a head, as the runs here keep theirs: `visual.*` and `head.weight` [C, d],
      the rows scaled by CLIP's logit scale and in the order of the family's classes;
    * the same in WiSE-FT's names, `image_encoder.model.visual.*` and `classification_head.*`;
    * a CLIP of open_clip's or OpenAI's: its image tower, with the zero-shot head of this config's
      prompts, by the model's own text tower; the file's text tower is not used.

    Source: the names of Wortsman et al. 2022 (arXiv 2109.01903), its code; the others are ours and
    open_clip's.
    """

    name: ClassVar[str] = "from_checkpoint"
    summary: ClassVar[str] = "Weights that were tuned elsewhere, from a file"
    trains: ClassVar[bool] = False
    starts_at_zero_shot: ClassVar[bool] = False

    weights: str = ""
    """The file's path, required. A run's identity has the file's content, not its path."""

    def build(self, teacher: Teacher) -> ImageClassifier:
        """Return the classifier with the file's weights. Raises RequestError where there is no such
        file, where reading it would run code, and where tensors are missing, unexpected or of
        another shape."""
        path = self._path()
        classifier = teacher.new_classifier()
        texts = teacher.clip.model.state_dict().keys() - classifier.state_dict().keys()
        state = {
            name: tensor
            for name, tensor in _renamed(read_state(path), path).items()
            if name not in texts
        }
        state.setdefault("head.weight", classifier.head.weight.detach())
        fit(classifier, state, name=f"{teacher.clip.name} with a head", path=path)
        return classifier

    def identity(self) -> dict[str, Any]:
        """Return the fields, `weights` as the file's sha256. Raises RequestError for a missing
        file."""
        return {**super().identity(), "weights": file_digest(self._path())}

    def _path(self) -> Path:
        if not self.weights:
            raise RequestError("algorithm.weights: which file? Give the path of tuned weights")
        path = path_or_none(self.weights)
        if path is None or not path.is_file():
            raise RequestError(f"algorithm.weights: there is no file {self.weights}")
        return path


def _renamed(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return a state dict in WiSE-FT's names with the names of this package. Raises RequestError
    for a head with a bias other than 0, since heads here have none."""
    named = {}
    for name, tensor in state.items():
        old = next((old for old in OTHER_NAMES if name.startswith(old)), "")
        named[OTHER_NAMES.get(old, "") + name.removeprefix(old)] = tensor
    bias = named.pop("head.bias", None)
    if bias is not None and bias.any():
        raise RequestError(
            f"{path} has a head with a bias, and heads here have none: tune it without, or with "
            "the head frozen"
        )
    return named
