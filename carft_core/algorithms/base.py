"""What an algorithm is: which module is trained, by which loss, and how the result classifies."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from carft_core.clip import Classifier
from carft_core.optim import OPTIMISERS, Group, OptimConfig, decay_groups
from carft_core.teacher import Teacher

USES = frozenset({"contexts", "text", "domains"})
"""What an algorithm may say that it uses beside images and labels."""
Loss = tuple[Tensor, Mapping[str, Tensor]]
"""What is minimised, a scalar, and the scalars that are logged beside it, by name."""


@dataclass(frozen=True)
class Batch:
    """One batch as the loss sees it, or a micro-batch of it."""

    images: Tensor
    """[B, 3, S, S] normalised views, on the device."""
    labels: Tensor
    """[B] int64."""
    index: Tensor
    """[B] int64, rows of the training split: for memory banks and generators."""
    domain: Tensor | None = None
    """[B] int64, the number of each image's domain, where the family has domains."""
    step: int = 0
    """Of the optimiser, from 0."""
    steps: int = 1
    """How many the run has."""
    label_smoothing: float = 0.0
    micro_batch: int | None = None
    """How many images fit into memory at once, where the loss gets the whole batch because its
    items are coupled; see `in_parts`."""
    teacher_features: Callable[[Tensor], Tensor] | None = None

    def zero_shot(self) -> Tensor:
        """The frozen tower's unit-norm features [B, d] of the same views; computed once a batch.

        Raises ValueError in a batch that was made without the teacher.
        """
        if self.teacher_features is None:
            raise ValueError("this batch was made without the teacher's features")
        return self._zero_shot

    @functools.cached_property
    def _zero_shot(self) -> Tensor:
        assert self.teacher_features is not None  # zero_shot has looked
        return self.teacher_features(self.images)

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """The batch's mean cross-entropy of logits [B, C], with the run's label smoothing."""
        return F.cross_entropy(logits, self.labels, label_smoothing=self.label_smoothing)

    def in_parts(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """`function(inputs)` in parts of `micro_batch` rows, each computed again on the way back.

        Memory then holds the activations of one part. For a loss that couples the items of a
        batch, which sees all outputs at once; where the function treats each row by itself, the
        gradient is that of the whole. Source: Gao et al. 2021, "Scaling Deep Contrastive Learning
        Batch Size under Memory Limited Setup" (GradCache); here by activation checkpointing.
        """
        if self.micro_batch is None or len(inputs) <= self.micro_batch:
            return function(inputs)
        parts = inputs.split(self.micro_batch)
        return torch.cat([checkpoint(function, part, use_reentrant=False) for part in parts])


class Algorithm(BaseModel):
    """How the weights are trained. The fields of a subclass are its hyperparameters.

    It holds no tensors and no counters: one instance serves many runs. What outlives a step
    (averages, encoders, prototypes) is a submodule or buffer of the module that `build` returns, so
    that checkpoints, resuming and `.to(device)` are PyTorch's business.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: ClassVar[str]
    summary: ClassVar[str]
    trains: ClassVar[bool] = True
    """False: the result is there without a step (the zero-shot model, a soup); no seed either."""
    solves: ClassVar[bool] = False
    """Whether `solve` finds the weights at once, in place of steps along a gradient of batches. The
    run then has one epoch of one step, and `optim` has no part in it."""
    couples_items: ClassVar[bool] = False
    """Whether the loss is no mean over images (contrastive losses, covariances). It then gets whole
    batches, and `optim.micro_batch` is a part of the run's identity."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """What it needs beside images and labels, of USES; "text" is the text tower. What it does not
    use is not in the identity of its runs."""
    starts_at_zero_shot: ClassVar[bool] = True
    """Whether its classifier is the teacher's before the first step."""
    keeps_shape: ClassVar[bool] = True
    """Whether its classifier has the teacher's tensors, so that weights can be interpolated."""

    def build(self, teacher: Teacher) -> nn.Module:
        """The module that is trained; by default a copy of the zero-shot classifier.

        Called under the run's seed, and again without it before saved weights are read.
        """
        return teacher.new_classifier()

    def start(self, model: nn.Module, teacher: Teacher) -> None:
        """Set what depends on the training data, such as a probe's head, before the first step."""

    def solve(self, model: nn.Module, teacher: Teacher) -> Mapping[str, float]:
        """Set the parameters of the groups to the solution, and give what to log of it.

        Called once, under the run's seed, where `solves` says so.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it solves its problem")

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        """The parameters that train, in groups with `lr_scale`; what is in none is frozen."""
        return decay_groups(model.named_parameters(), optim)

    def optimiser(self, groups: list[Group], optim: OptimConfig) -> Optimizer:
        """The optimiser of these groups, by default that of `optim.name`."""
        return OPTIMISERS[optim.name](groups, optim)

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """What to minimise and what to log, all means over the batch."""
        raise NotImplementedError(f"{type(self).__name__} declares no loss")

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Change the module after the 0-based `step` of `steps`, under `no_grad`."""

    def after_epoch(self, model: nn.Module, metrics: Mapping[str, float]) -> None:
        """Change the module after an epoch, knowing what was measured."""

    def classifier(self, model: nn.Module, teacher: Teacher) -> Classifier:
        """What is evaluated and merged; by default the module itself.

        Raises TypeError when the module is none and the algorithm does not say how it classifies.
        """
        if not isinstance(model, Classifier):
            raise TypeError(f"{type(self).__name__} must say how its module classifies")
        return model

    def warnings(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """What a reader of the result must know, one line each, from the metrics of epochs 0, 1,
        ..."""
        return []

    def identity(self) -> dict[str, Any]:
        """Its part of a run's identity: by default its fields. An algorithm that reads files puts
        their digests here in place of their paths."""
        return self.model_dump(mode="json")


class Soup(Algorithm):
    """A model made of other runs of the same home, each of the same model and classes.

    It is a run of its own: evaluated, merged with the zero-shot model and compared like any.
    """

    trains: ClassVar[bool] = False
    starts_at_zero_shot: ClassVar[bool] = False

    members: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """The digests of the runs; in a sweep file `after:` puts them here."""

    def combine(self, teacher: Teacher, members: Sequence[Classifier]) -> Classifier:
        """The soup of the members' classifiers, which are on the device and stay as they are."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it combines its members")
