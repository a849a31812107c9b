"""What a merge is: a step in weight space after training, without a gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from carft_core.registry import Registered

State = Mapping[str, Tensor]
"""A state dict of an image classifier: encoder and head, parameters and buffers."""


@dataclass(frozen=True)
class MergePoint:
    """One model that a merge yields, such as WiSE-FT at one alpha."""

    label: str
    """Its name in files, tables and `metric.merge`, such as `wise_ft@0.5`."""
    step: int
    """Where it stands on the merge's curve in the tracker: round(1000 * alpha) for WiSE-FT."""
    values: Mapping[str, float]
    """What distinguishes it, such as {"alpha": 0.5}."""


class Merge(Registered):
    """A frozen model whose fields are the merge's hyperparameters."""

    @abstractmethod
    def points(self) -> Sequence[MergePoint]:
        """The models that this merge yields, known before anything is trained."""

    @abstractmethod
    def state(self, point: MergePoint, zero_shot: State, tuned: State) -> State:
        """The merged weights at `point`; the inputs are left as they are."""
