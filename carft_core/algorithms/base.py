"""What an algorithm is: which module is trained, by which loss, and how the result classifies."""

from __future__ import annotations

import contextlib
import copy
import functools
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self, TypeVar

import torch
from pydantic import BaseModel, Field, field_validator, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from carft_sweep.carft_core.config.registry import Registered, Registry
from carft_sweep.carft_core.config.user_code import is_own, own_lines, reason
from carft_sweep.carft_core.errors import NonFinite, RequestError
from carft_sweep.carft_core.models.averages import Averaged
from carft_sweep.carft_core.models.classifier import Classifier, ImageClassifier, built
from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.models.contrastive import ContrastiveClip, contrastive_clip
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.towers import (
    attention_layers,
    projection,
    quarters,
    residual_blocks,
)
from carft_sweep.carft_core.training.numerics import to_device
from carft_sweep.carft_core.training.optim import OPTIMISERS, Group, OptimConfig, decay_groups

PARTS: Mapping[str, Callable[[OpenedClip], object]] = {
    "attention": lambda clip: attention_layers(clip.image_tower),
    "blocks": lambda clip: [*map(residual_blocks, (clip.image_tower, clip.model))],
    "layers": lambda clip: quarters(clip.image_tower),
    "projections": lambda clip: [*map(projection, (clip.image_tower, clip.model))],
    "random_texts": lambda clip: clip.random_texts(1, 1, torch.Generator()),
}
"""Parts of a model that an algorithm may use, each with a function that looks for it before
training: it raises RequestError for a model (opened without weights) that lacks the part."""
USES = frozenset({"contexts", "text", "domains", *PARTS})
"""The values that `Algorithm.uses` may hold: what is used beside images and labels."""
Loss = tuple[Tensor, Mapping[str, Tensor]]
"""The scalar that is minimised, and the scalars that are logged beside it, by name."""
T = TypeVar("T")
State = Mapping[str, Tensor]
"""A state dict of a classifier: encoder and head, parameters and buffers."""


def _without_teacher(_: Tensor) -> Tensor:
    raise ValueError("this batch was made without the teacher's features")


@dataclass(frozen=True)
class Batch:
    """A batch, or a part of a batch (a micro-batch), as the loss gets it."""

    images: Tensor
    """[B, 3, S, S] normalised views, on the device."""
    labels: Tensor
    """[B] int64."""
    index: Tensor
    """[B] int64, rows of the training split: for memory banks and generators."""
    domain: Tensor | None = None
    """[B] int64, the number of each image's domain, where the family has domains."""
    step: int = 0
    """The number of the optimiser's step, from 0."""
    steps: int = 1
    """How many steps the run has."""
    label_smoothing: float = 0.0
    micro_batch: int | None = None
    """How many images fit into memory at once, where the loss gets the whole batch because its
    items are coupled; see `in_parts`."""
    teacher_features: Callable[[Tensor], Tensor] = _without_teacher
    """Returns the frozen tower's features [B, d] of images, the batch's own or others."""

    def zero_shot(self) -> Tensor:
        """Return the frozen zero-shot tower's unit-norm features [B, d] of the batch's views: read
        from the bank if a run stored them there, else computed; once a batch. Raises ValueError for
        a batch made without the teacher."""
        return self._zero_shot

    @functools.cached_property
    def _zero_shot(self) -> Tensor:
        return self.teacher_features(self.images)

    def generator(self) -> torch.Generator:
        """Return a generator of random numbers for this step, seeded by the run's seed and the step
        alone.

        Not the global stream, so that `sam`, which computes a step's loss twice, has one problem,
        and micro-batches have the same draws; on the CPU, so that every device has the same ones.
        """
        return torch.Generator().manual_seed(torch.initial_seed() + self.step)

    def captions(self, tokens: Tensor) -> Tensor:
        """Return the tokens [B, L] of a caption for each image: of the K templates and C classes in
        `tokens` [K, C, L], a drawn template with the image's class."""
        drawn = torch.randint(len(tokens), self.labels.shape, generator=self.generator())
        return tokens[to_device(drawn, self.labels.device), self.labels]

    def pairs(self, clip: ContrastiveClip) -> tuple[Tensor, Tensor]:
        """Return unit-norm features [B, d] of the images, and of a drawn caption for each."""
        captions = self.captions(clip.tokens)
        images = self.in_parts(clip.image_features, self.images)
        return images, self.in_parts(clip.text_features, captions)

    def cross_entropy(self, logits: Tensor) -> Tensor:
        """Return the batch's mean cross-entropy of logits [B, C], with label smoothing."""
        return F.cross_entropy(logits, self.labels, label_smoothing=self.label_smoothing)

    def part(self, rows: slice) -> Batch:
        """Return the given rows of the batch, as a micro-batch."""
        images = self.images[rows]
        return replace(
            self,
            images=images,
            labels=self.labels[rows],
            index=self.index[rows],
            domain=None if self.domain is None else self.domain[rows],
            teacher_features=functools.partial(self._features_of_part, images, rows),
        )

    def _features_of_part(self, part: Tensor, rows: slice, images: Tensor) -> Tensor:
        # Computed once for the whole batch, however often its parts are passed.
        return self.zero_shot()[rows] if images is part else self.teacher_features(images)

    def in_parts(self, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Return `function(inputs)` in parts of `micro_batch` rows, each computed again in the
        backward pass.

        Memory then holds the activations of one part. A loss that couples the items of a batch sees
        all outputs at once. Where `function` treats each row by itself, the gradient is that of the
        whole batch. Source: Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size under
        Memory Limited Setup" (GradCache); here by activation checkpointing.
        """
        if self.micro_batch is None or len(inputs) <= self.micro_batch:
            return function(inputs)
        parts = inputs.split(self.micro_batch)
        return torch.cat([checkpoint(function, part, use_reentrant=False) for part in parts])


class Algorithm(Registered):
    """How the weights are trained. The fields of a subclass are its hyperparameters.

    It holds no tensors and no counters: one instance serves many runs. What outlives a step
    (averages, encoders, prototypes) is a submodule or buffer of the module that `build` returns, so
    that checkpoints, resuming and `.to(device)` are PyTorch's business.
    """

    trains: ClassVar[bool] = True
    """False: the result exists without training (the zero-shot model, a soup), and has no seed."""
    solves: ClassVar[bool] = False
    """Whether `solve` finds the weights at once, in place of steps along a gradient of batches. The
    run then has one epoch of one step, and `optim` has no part in it."""
    couples_items: ClassVar[bool] = False
    """Whether the loss is no mean over images (contrastive losses, covariances), or its own modules
    draw at random (dropout). It then gets whole batches, and `optim.micro_batch` is in a run's
    identity."""
    uses: ClassVar[frozenset[str]] = frozenset()
    """Which of USES it needs beside images and labels: "text" is the text tower, and a model must
    have what is in PARTS. What it does not use is not in the identity of its runs."""
    starts_at_zero_shot: ClassVar[bool] = True
    """Whether its classifier is the teacher's before the first step."""
    keeps_shape: ClassVar[bool] = True
    """Whether its classifier has the teacher's tensors, so that weights can be interpolated."""
    needs_last_epoch: ClassVar[bool] = False
    """Whether only the last epoch has its result, so that `keep.result: best_val` is refused."""
    needs_plain_tower: ClassVar[bool] = False
    """Whether `lora` cannot wrap it: it looks at the image tower's own weights, in whose place
    `lora` trains others, or it trains no tower."""

    @property
    def copies(self) -> int:
        """How many copies of the model the module of `build` holds, averages included: the files of
        a run are that many times as large."""
        return 1

    @property
    def takes_steps(self) -> bool:
        """Whether it trains by steps along a gradient."""
        return self.trains and not self.solves

    def build(self, teacher: Teacher) -> nn.Module:
        """Return the module that is trained; by default a copy of the zero-shot classifier.

        Called under the run's seed, and again, without a seed, to load saved weights into.
        """
        return teacher.new_classifier()

    def start(self, model: nn.Module, teacher: Teacher) -> None:
        """Set what depends on the training data (the head of a probe) before the first step."""

    def solve(self, model: nn.Module, teacher: Teacher) -> Mapping[str, float]:
        """Set the trained parameters to the problem's solution, and return the values to log.
        Called once, under the run's seed, if `solves` is true."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it solves its problem")

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        """Return torch parameter groups, with `lr_scale`, of what trains; the rest is frozen."""
        return decay_groups(model.named_parameters(), optim)

    def optimiser(self, groups: list[Group], optim: OptimConfig) -> Optimizer:
        """Return the optimiser of these groups, by default that of `optim.name`."""
        return OPTIMISERS[optim.name].make(groups, optim)

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        """Return the loss, and terms to log by name, all of them means over the batch."""
        raise NotImplementedError(f"{type(self).__name__} declares no loss")

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Change the module after the 0-based `step` of `steps`, under `no_grad`."""

    def after_epoch(self, model: nn.Module, metrics: Mapping[str, float]) -> None:
        """Change the module after an epoch, given the epoch's metrics."""

    def classifier(self, model: nn.Module, teacher: Teacher) -> Classifier:
        """Return the classifier that is evaluated and merged; by default the module itself. Raises
        TypeError when the module is no Classifier and this method is not overridden."""
        if not isinstance(model, Classifier):
            raise TypeError(f"{type(self).__name__} must say how its module classifies")
        return model

    def warnings(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """Return warnings for readers of the result; `history` has each epoch's metrics."""
        return []

    def identity(self) -> dict[str, Any]:
        """Return what identifies the algorithm in a run's digest: by default its fields. An
        algorithm that reads files puts their digests here in place of their paths."""
        return self.model_dump(mode="json")


def loss_and_terms(algorithm: Algorithm, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
    """Return a batch's loss and its logged terms, as tensors. Raises RequestError for other
    results."""
    returned: object = algorithm.loss(model, batch, teacher)
    match returned:
        case (Tensor() as loss, Mapping() as terms):
            return loss, {
                name: torch.as_tensor(term, device=loss.device) for name, term in terms.items()
            }
    raise RequestError(
        f"loss of {algorithm.name} must return (loss, dict of terms), two things, and not "
        f"a {type(returned).__name__}; without terms: return loss, {{}}"
    )


def penalised(
    cross_entropy: Tensor, weight: float, penalty: Callable[[], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return `cross_entropy + weight * penalty()`, and the penalty.

    With weight 0 the penalty gets no gradient: training is fine_tune's bit for bit.
    """
    with torch.set_grad_enabled(weight > 0 and torch.is_grad_enabled()):
        value = penalty()
    return cross_entropy + weight * value if weight > 0 else cross_entropy, value


def classes_of(value: object) -> Iterator[type]:
    """Yield the class of the algorithm or merge `value`, and the classes of the algorithms in its
    fields, also in lists, such as the one that it wraps."""
    if isinstance(value, Registered):
        yield type(value)
    if isinstance(value, (BaseModel, Mapping)):
        value = tuple(dict(value).values())
    if isinstance(value, (tuple, list, set, frozenset)):
        for part in value:
            yield from classes_of(part)


@contextlib.contextmanager
def blame_own_code(algorithm: Algorithm) -> Iterator[None]:
    """Turn exceptions of a user's own algorithm within the context into RequestErrors that name the
    line. Errors that may pass, such as a lack of memory, pass unchanged."""
    try:
        yield
    except (RequestError, NonFinite, OSError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever their code raises
        for cls in classes_of(algorithm):
            if is_own(cls) and any(own_lines(error, cls.__module__)) and "CUDA" not in str(error):
                mistake = reason(error, cls.__module__)
                raise RequestError(f"algorithm.name: {algorithm.name}: {mistake}") from error
        raise


@dataclass(frozen=True)
class Loaded(Sequence[T]):
    """A sequence of `length` items, each loaded by `load(index)` when it is taken, and not kept."""

    load: Callable[[int], T]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        numbers = range(self.length)[index]
        return self.load(numbers) if isinstance(numbers, int) else [*map(self.load, numbers)]


class Soup(Algorithm):
    """A model made of other runs of the same home, each of the same model, classes and data.

    It is a run of its own: evaluated, merged with the zero-shot model and compared like any. A soup
    of weights overrides `state`; one whose result is another module overrides `combine`.
    """

    trains: ClassVar[bool] = False
    starts_at_zero_shot: ClassVar[bool] = False
    least_members: ClassVar[int] = 1

    members: tuple[str, ...] = ()
    """The digests of the runs, in any order; in a sweep file `after` fills it in."""

    @field_validator("members")
    @classmethod
    def _canonical(cls, members: tuple[str, ...]) -> tuple[str, ...]:
        """Check the members and sort them, so that the same runs are the same soup."""
        for member in members:
            if not re.fullmatch("[0-9a-f]{64}", member):
                raise ValueError(
                    f"{member[:80]!r} is no digest of a run, 64 digits from 0 to f, which are the "
                    "name of its folder in the home; to name runs of this sweep, use after:"
                )
        if len(set(members)) < len(members):
            raise ValueError("a run is in the list twice")
        if 0 < len(members) < cls.least_members:
            raise ValueError(f"{cls.name} is made of {cls.least_members} runs or more")
        return tuple(sorted(members))

    def combine(self, teacher: Teacher, members: Sequence[Classifier]) -> Classifier:
        """Return the soup of the members' classifiers, which are on the device and must not change.

        A member is loaded each time it is taken from `members`, so that taking one after another
        needs the memory of one. By default a classifier with the weights of `state`. Raises
        RequestError when a member has other tensors than the zero-shot model.
        """
        soup = copy.deepcopy(members[0])
        zero_shot = teacher.classifier.state_dict()
        soup.load_state_dict(dict(self.state(zero_shot, self.states(teacher, members))))
        return soup

    def states(self, teacher: Teacher, members: Sequence[Classifier]) -> Sequence[State]:
        """Return the members' weights, each loaded when it is taken. Taking one raises RequestError
        when it has other tensors than the zero-shot model."""
        zero_shot = teacher.classifier.state_dict()

        def state_of(number: int) -> State:
            state = members[number].state_dict()
            digest = self.members[number][:12]
            message = f"{self.name} needs runs of the zero-shot model's shape, and run {digest} has"
            check_same_tensors(zero_shot, state, f"{message} another")
            return state

        return Loaded(state_of, len(members))

    def state(self, zero_shot: State, members: Sequence[State]) -> State:
        """Return the soup's weights, made of the members' weights, which must not change."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it combines its members")


def check_same_tensors(one: State, two: State, message: str) -> None:
    """Raise RequestError, with `message` and the tensors that differ, unless two state dicts have
    tensors of the same names and shapes."""
    differing = [
        name
        for name in sorted({*one, *two})
        if name not in one or name not in two or one[name].shape != two[name].shape
    ]
    if differing:
        more = f" and {len(differing) - 10} more" if len(differing) > 10 else ""
        raise RequestError(f"{message}; these tensors differ: {', '.join(differing[:10])}{more}")


def _lacks(cls: type[Algorithm]) -> str | None:
    """Return which of `loss` and `solve` an algorithm that trains lacks; None if neither."""
    if cls.trains and cls.solves and cls.solve is Algorithm.solve:
        return "it lacks `solve`"
    if cls.trains and not cls.solves and cls.loss is Algorithm.loss:
        return "it lacks `loss`, what it minimises"
    return None


ALGORITHMS: Registry[type[Algorithm]] = Registry("algorithm", Algorithm, lacks=_lacks)
"""The algorithms by `algorithm.name`."""
Algorithm.registry = ALGORITHMS


class Contrastive(Algorithm):
    """An algorithm that trains both towers of a CLIP, by the images and captions of a batch."""

    couples_items: ClassVar[bool] = True
    uses: ClassVar[frozenset[str]] = frozenset({"text"})

    def build(self, teacher: Teacher) -> nn.Module:
        """Return a trainable copy of the teacher's whole CLIP."""
        return contrastive_clip(teacher)

    def classifier(self, model: nn.Module, teacher: Teacher) -> ImageClassifier:
        """Return the tuned image tower with a zero-shot head made by the tuned text tower."""
        return built(model, ContrastiveClip).classifier(teacher)


class AnchoredContrastive(Contrastive):
    """A contrastive algorithm with a running average of both towers; the trained towers
    classify."""

    uses: ClassVar[frozenset[str]] = frozenset({"text", "projections"})
    copies: ClassVar[int] = 2

    def build(self, teacher: Teacher) -> nn.Module:
        """Return a trainable copy of the teacher's CLIP, and its average."""
        return Averaged(super().build(teacher))

    def classifier(self, model: nn.Module, teacher: Teacher) -> ImageClassifier:
        """Return the classifier of the trained weights, not of their average."""
        return super().classifier(built(model, Averaged).model, teacher)


class Wrapper(Algorithm):
    """An algorithm around another one, `of`, whose methods it has unless a subclass overrides them.

    A subclass whose module holds more than that of `of` overrides `build` and `inner`.
    """

    of: Algorithm = Field(default="fine_tune")  # type: ignore[assignment]
    """The algorithm that trains, with its own fields."""

    @model_validator(mode="after")
    def _of_trains(self) -> Self:
        if not self.of.takes_steps:
            raise ValueError(f"of: {self.of.name} takes no steps; name an algorithm that does")
        return self

    def inner(self, model: nn.Module) -> nn.Module:
        """Return the wrapped algorithm's module, by default the one that `build` returned."""
        return model

    def build(self, teacher: Teacher) -> nn.Module:
        return self.of.build(teacher)

    def start(self, model: nn.Module, teacher: Teacher) -> None:
        self.of.start(self.inner(model), teacher)

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        return self.of.groups(self.inner(model), optim)

    def optimiser(self, groups: list[Group], optim: OptimConfig) -> Optimizer:
        return self.of.optimiser(groups, optim)

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        return self.of.loss(self.inner(model), batch, teacher)

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        self.of.after_step(self.inner(model), step, steps)

    def after_epoch(self, model: nn.Module, metrics: Mapping[str, float]) -> None:
        self.of.after_epoch(self.inner(model), metrics)

    def classifier(self, model: nn.Module, teacher: Teacher) -> Classifier:
        return self.of.classifier(self.inner(model), teacher)

    def warnings(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        return self.of.warnings(history)

    def identity(self) -> dict[str, Any]:
        """Return the wrapper's own fields, and the identity of the wrapped algorithm."""
        return {**super().identity(), "of": {"name": self.of.name, **self.of.identity()}}


for _claim in (
    *("couples_items", "uses", "starts_at_zero_shot", "keeps_shape", "copies"),
    *("needs_last_epoch", "needs_plain_tower"),
):  # a wrapper's are those of its own `of`
    setattr(Wrapper, _claim, property(operator.attrgetter(f"of.{_claim}")))
