"""What a merge is: a model made after training, without a gradient step over the data."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, field_validator
from torch import Tensor

from carft_sweep.carft_core.algorithms import Algorithm
from carft_sweep.carft_core.algorithms.base import State
from carft_sweep.carft_core.config.fields import UnitInterval
from carft_sweep.carft_core.config.registry import Registered
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.result import check_label

Mark = Literal["sample-wise", "transductive"]
"""`sample-wise`: each image has its own mix of models; `transductive`: the mix depends on the other
images of a split, not on labels."""


@dataclass(frozen=True)
class MergePoint:
    """One model that a merge yields, such as WiSE-FT at one alpha."""

    label: str
    """Its name in files, tables and `metric.merge`, such as `wise_ft@0.5`."""
    step: int
    """Where it stands on the merge's curve in the tracker: round(1000 * alpha) for WiSE-FT."""
    values: Mapping[str, float]
    """The parameters of this point, such as {"alpha": 0.5}."""

    def __post_init__(self) -> None:
        check_label(self.label)


class Merge(Registered):
    """How a model is made after training. The fields of a subclass are its hyperparameters.

    A merge in weight space overrides `state`; one whose result is another module overrides `model`.
    """

    point_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that only list the points; an evaluation's digest has the point's values instead."""
    mark: ClassVar[Mark | None] = None
    """How tables mark rows of merged models, see `Mark`; None: not at all."""
    needs_shape: ClassVar[bool] = True
    """Whether it works on the weights of both classifiers, which then must have one shape."""

    @abstractmethod
    def points(self) -> Sequence[MergePoint]:
        """Return the labels and parameters of the merged models, known before training."""

    def model(self, point: MergePoint, teacher: Teacher, tuned: Classifier) -> Classifier:
        """Return the merged classifier at `point`, on the device of `tuned`; the inputs are not
        changed.

        By default this is the tuned classifier with the weights of `state`; where `state` returns
        the teacher's own weights, the teacher's classifier itself; where it returns the tuned
        weights, the tuned classifier.
        """
        device = next(tuned.parameters()).device
        after = tuned.state_dict()
        before = {key: tensor.to(device) for key, tensor in teacher.classifier.state_dict().items()}
        state = self.state(point, before, after)
        for classifier, own in ((tuned, after), (teacher.classifier, before)):
            if state.keys() == own.keys() and all(state[key] is own[key] for key in own):
                return classifier
        merged = copy.deepcopy(tuned)
        merged.load_state_dict(dict(state))
        return merged

    def state(self, point: MergePoint, zero_shot: State, tuned: State) -> State:
        """Return the merged weights at `point`; the inputs must not change."""
        raise NotImplementedError(f"{type(self).__name__} is no merge in weight space")

    def refuses(self, algorithm: Algorithm) -> str | None:
        """Return why the merge cannot use what the algorithm trains; None when it can."""
        if algorithm.keeps_shape or not self.needs_shape:
            return None
        return (
            f"{algorithm.name} gives a model of another shape than the zero-shot one, and "
            f"{self.name} works on the weights of both"
        )


class Line(Merge):
    """A merge with points between the zero-shot model, at alpha 0, and the tuned one, at 1."""

    point_fields: ClassVar[frozenset[str]] = frozenset({"alphas"})

    alphas: Annotated[tuple[UnitInterval, ...], Field(min_length=1)] = (0.5,)
    """Where on the line models are made; each is evaluated, and none trains anything."""

    @field_validator("alphas")
    @classmethod
    def _each_once(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        steps = [round(1000 * alpha) for alpha in alphas]
        if len(set(steps)) < len(steps):
            raise ValueError(
                "alphas must differ by at least 0.001 (the curve's step is 1000*alpha)"
            )
        return tuple(sorted(alphas))

    def points(self) -> Sequence[MergePoint]:
        """Return one merged model for each alpha, in ascending order."""
        return tuple(
            MergePoint(f"{self.name}@{_text(alpha)}", round(1000 * alpha), {"alpha": alpha})
            for alpha in self.alphas
        )


def _text(alpha: float) -> str:
    """Return an alpha with all the digits that it has: `0.5`, `1`, `0.9999999`."""
    short = f"{alpha:g}"
    return short if float(short) == alpha else repr(alpha)


Model = tuple[Merge, MergePoint] | None
"""One of a run's models: a point of a merge; None is the run's own."""


def between(before: Tensor, after: Tensor, alpha: float) -> Tensor:
    """Return `(1 - alpha) * before + alpha * after`, computed in fp32, in the type of `after`."""
    mixed = (1 - alpha) * before.to(torch.float32) + alpha * after.to(torch.float32)
    return mixed.to(after.dtype)
