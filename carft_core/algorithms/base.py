"""What an algorithm is: its hyperparameters, and the few decisions in which methods differ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from carft_core.registry import Registered

if TYPE_CHECKING:
    from carft_core.clip import ImageClassifier
    from carft_core.teacher import Teacher


@dataclass(frozen=True)
class Batch:
    """One (micro-)batch as the loss sees it."""

    images: Tensor
    """[B, 3, S, S] normalised views."""
    labels: Tensor
    """[B] int64."""
    label_smoothing: float = 0.0
    teacher_features: Tensor | None = None
    """[B, d] unit-norm features of the same views by the frozen zero-shot model, if asked for."""


@dataclass(frozen=True)
class Term:
    """One named part of the loss: `weight * value` is minimised, `value` is logged.

    With weight 0 the term is left out of the gradient and still logged.
    """

    value: Tensor
    weight: float = 1.0


class Algorithm(Registered):
    """How the weights are trained. The fields of a subclass are its hyperparameters.

    It holds no tensors and no counters: one instance serves many runs.
    """

    trains: ClassVar[bool] = True
    """False: the result is the zero-shot model itself; there is nothing to train and no seed."""
    teacher_quantities: ClassVar[frozenset[str]] = frozenset()
    """What the loss needs of the frozen model for each batch: a subset of {"features"}."""
    loss_depends_on_batch: ClassVar[bool] = False
    """True for contrastive losses: the split into micro-batches is then part of the identity."""

    def student(self, teacher: Teacher) -> nn.Module:
        """The module that is trained; by default a copy of the zero-shot classifier."""
        return teacher.new_classifier()

    def trainable(self, student: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
        """Which parameters the optimiser gets; by default all of them."""
        return student.named_parameters()

    def terms(self, student: nn.Module, batch: Batch, teacher: Teacher) -> Mapping[str, Term]:
        """The parts of the loss on one batch, each a mean over its items."""
        raise NotImplementedError(f"{type(self).__name__} declares no loss")

    def probe(self, batch: Batch, teacher: Teacher) -> Mapping[str, float]:
        """What to log of the teacher before training, by name; by default nothing."""
        del batch, teacher
        return {}

    def warnings(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """What a reader of the result must know, from the metrics of epochs 0, 1, ...; one line
        each."""
        del history
        return []

    def classifier(self, student: nn.Module, teacher: Teacher) -> ImageClassifier:
        """The classifier to evaluate, save and merge; by default the student itself."""
        from carft_core.clip import ImageClassifier

        del teacher  # A method that tunes the text tower rebuilds the head from it here.
        if not isinstance(student, ImageClassifier):
            raise TypeError(f"{type(self).__name__} must say how its student classifies")
        return student
