"""The optimiser, its learning rate over a run, and how long a run trains."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer

from carft_sweep.carft_core.config.fields import NonNegative, Positive, PositiveInt, Section
from carft_sweep.carft_core.config.registry import Registry
from carft_sweep.carft_core.data import Split

Group = dict[str, Any]
"""A parameter group of torch's; `lr_scale` (by default 1) multiplies the learning rate."""


class OptimConfig(Section):
    """The optimiser, with warm-up and cosine decay.

    The defaults are WiSE-FT's recipe, at the learning rate of FLYP's and LDIFS' scripts; WiSE-FT's
    own, 3e-5, is that of `sweeps/imagenet.yaml`. CAR-FT's was not found.
    """

    name: str = "adamw"
    """`adamw`, `sgd`, `sam`, `spd`, or one of your own. `sgd` has a momentum of 0.9; `sam` takes
    AdamW's steps by the gradient at the sharpest point nearby; `spd` decays towards the weights
    before training."""
    rho: Positive | None = None
    """How far `sam` looks; left out, 0.05."""
    lr: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 1e-5
    """The learning rate at its highest, after warm-up; left out, 5e-4 for a built-in model."""
    weight_decay: NonNegative = 0.1
    """Decoupled in `adamw` and `sam`, as AdamW has it; in `spd` how strong its projection is."""
    decay_norms_and_biases: bool = True
    """Whether norms and biases decay too, as WiSE-FT has it."""
    epochs: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Passes over train; left out, without `steps`: the family's (20 for your own images) or 10."""
    steps: Annotated[int, Field(ge=1, le=100_000_000)] | None = None
    """Steps of the optimiser, instead of `epochs`."""
    steps_per_epoch: PositiveInt | None = None
    """With `steps`: how many make an epoch, after which `id/val` is measured; left out, a pass."""
    batch_size: PositiveInt = 512
    """Images a step; left out, the family's: 32 for images of your own."""
    micro_batch: PositiveInt | None = None
    """The part of a batch that is computed at once; left out, the whole batch, or on a GPU that
    does not hold it the largest half, quarter, ... that fits, where that changes no result."""
    grad_checkpointing: bool = False
    """Keep only the activations between the tower's blocks and compute the others again: less
    memory, about a third more time, equal gradients."""
    warmup: NonNegative = 0.1
    """Below 1 the fraction of all steps, from 1 on a number of steps."""
    clip: Positive | None = 1.0
    """The greatest norm of a gradient; greater ones are scaled down to it; null: none is."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share of each label that is spread over all classes."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Whether batch norms keep the statistics of pre-training, or train."""

    @field_validator("name")
    @classmethod
    def _registered(cls, name: str) -> str:
        if name not in OPTIMISERS:
            raise ValueError(OPTIMISERS.unknown(name))
        return name

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("give epochs or steps, not both")
        if self.steps is None and self.steps_per_epoch is not None:
            raise ValueError("steps_per_epoch needs steps, the number of all")
        if self.rho is not None and self.name != "sam":
            raise ValueError(f"rho is for sam, and the optimiser is {self.name}")
        return self


@dataclass(frozen=True)
class Optimiser:
    """How a run's optimiser is made, as registered in OPTIMISERS."""

    name: str
    summary: str
    make: Callable[[list[Group], OptimConfig], Optimizer]
    """Returns the torch optimiser of parameter groups. Its source is part of a run's identity. What
    the optimiser keeps is in its `state_dict`; the loop sets each group's `lr`."""


OPTIMISERS: Registry[Optimiser] = Registry("optimiser", Optimiser, function="make")
"""The optimisers by `optim.name`."""


def decay_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], optim: OptimConfig, *, lr_scale: float = 1.0
) -> list[Group]:
    """Return the named parameters that require a gradient, in groups with their weight decay.

    WiSE-FT decays all of them; with `decay_norms_and_biases` false, vectors (norms, biases) and
    scalars are left out of the decay.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for _, parameter in parameters:
        if parameter.requires_grad:
            vector = parameter.ndim <= 1
            (plain if vector and not optim.decay_norms_and_biases else decayed).append(parameter)
    groups: list[Group] = [
        {"params": decayed, "weight_decay": optim.weight_decay, "lr_scale": lr_scale},
        {"params": plain, "weight_decay": 0.0, "lr_scale": lr_scale},
    ]
    return [group for group in groups if group["params"]]


def freeze_all_but(model: nn.Module, groups: list[Group]) -> list[nn.Parameter]:
    """Make only the parameters of the groups trainable; return these parameters."""
    trained = [parameter for group in groups for parameter in group["params"]]
    model.requires_grad_(False)
    for parameter in trained:
        parameter.requires_grad_(True)
    return trained


def _adamw(groups: list[Group], optim: OptimConfig) -> Optimizer:
    fused = all(p.device.type in {"cpu", "cuda"} for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=optim.lr, fused=fused)


def _sgd(groups: list[Group], optim: OptimConfig) -> Optimizer:
    return torch.optim.SGD(groups, lr=optim.lr, momentum=0.9)


def _sam(groups: list[Group], optim: OptimConfig) -> Optimizer:
    return Sam(_adamw(groups, optim), rho=optim.rho or 0.05)


class Sam(Optimizer):
    """Sharpness-aware minimisation: another optimiser's step, by the gradient at `w + e(w)`.

    `e(w) = rho * g / ||g||` over all parameters together, and g is the gradient at w. Source: Foret
    et al. 2021, "Sharpness-Aware Minimization for Efficiently Improving Generalization" (arXiv
    2010.01412), equation 2 for p = 2. Two passes a step.
    """

    def __init__(self, base: Optimizer, *, rho: float) -> None:
        super().__init__(base.param_groups, {})
        self.base, self.rho = base, rho
        # The same objects, so that a rate set here is the base's too.
        self.param_groups, self.state = base.param_groups, base.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of the base optimiser, which holds all state."""
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state

    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor:  # type: ignore[override]
        """Take a step and return the loss at w; `closure` computes loss and gradients anew. Raises
        ValueError without a closure."""
        if closure is None:
            raise ValueError("sam needs a closure that computes the gradients again")
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            trained = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
            norm = torch.stack([p.grad.norm() for p in trained if p.grad is not None]).norm()
            before = [p.clone() for p in trained]
            for p in trained:
                if p.grad is not None:
                    p.add_(p.grad * (self.rho / (norm + 1e-12)))
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for p, value in zip(trained, before, strict=True):
                p.copy_(value)
        self.base.step()
        return loss


def _spd(groups: list[Group], optim: OptimConfig) -> Optimizer:
    return Spd(groups, lr=optim.lr)


class Spd(Optimizer):
    """Selective projection decay: Adam, drawn towards the weights before training, selectively.

    For each tensor with the weights w before a step, w' after Adam's step, w0 before training, and
    the gradient g at w: where <g, w - w0> > 0, thus where descent and the offset disagree, and only
    as far as the step led away from w0,

        w' <- w' - weight_decay * clip((|w' - w0| - |w - w0|) / |w' - w0|, 0, 1) * (w' - w0)

    Source: Tian et al. 2024, "Rethinking Weight Decay for Robust Fine-Tuning of Foundation Models"
    (arXiv 2411.01713), and AdamSPD of GT-RIPL/Selective-Projection-Decay, whose README gives no
    strength. A head, which starts at the zero-shot one here, is drawn there too.
    """

    def __init__(self, groups: list[Group], *, lr: float) -> None:
        super().__init__(groups, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-8})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:  # type: ignore[override]
        """Take a step, after the gradients of a closure if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, p.grad, group)
        return loss

    def _move(self, p: Tensor, gradient: Tensor, group: Group) -> None:
        state, (beta1, beta2) = self.state[p], group["betas"]
        if not state:
            state["step"] = torch.zeros(())  # on the CPU, also when it is loaded: torch knows it
            state["start"] = p.clone()
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
        state["step"] += 1
        steps = float(state["step"])
        offset = p - state["start"]
        before, disagree = offset.norm(), (gradient * offset).sum() > 0
        state["exp_avg"].lerp_(gradient, 1 - beta1)
        state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
        size = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt_().add_(group["eps"])
        p.addcdiv_(state["exp_avg"], size, value=-group["lr"] / (1 - beta1**steps))
        offset = p - state["start"]
        share = ((offset.norm() - before) / offset.norm()).clamp(0, 1).nan_to_num()
        p.sub_(group["weight_decay"] * share * disagree * offset)


OPTIMISERS.register(Optimiser("adamw", "AdamW", _adamw))
OPTIMISERS.register(Optimiser("sgd", "SGD with a momentum of 0.9", _sgd))
OPTIMISERS.register(Optimiser("sam", "AdamW's steps by the gradient at the sharpest point", _sam))
OPTIMISERS.register(Optimiser("spd", "Adam with selective decay to the first weights", _spd))


def learning_rate(step: int, *, steps: int, warmup: int, peak: float) -> float:
    """Return the rate of the 0-based `step` of `steps`: linear warm-up, then half a cosine to 0.

    Source: WiSE-FT's `cosine_lr`: `peak * (step + 1) / warmup`, then
    `peak * (1 + cos(pi * (step - warmup) / (steps - warmup))) / 2`.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return 0.5 * peak * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def warmup_steps(warmup: float, steps: int) -> int:
    """Return `optim.warmup` in steps: a fraction of all below 1, else a number; under `steps`."""
    rising = round(warmup * steps) if warmup < 1 else round(warmup)
    return min(rising, steps - 1)


@dataclass(frozen=True)
class Schedule:
    """How long a run trains: steps counted from 0, in epochs counted from 1."""

    steps: int
    per_epoch: int

    @property
    def epochs(self) -> int:
        """The number of epochs; the last may be shorter."""
        return math.ceil(self.steps / self.per_epoch)

    def of_epoch(self, epoch: int) -> range:
        """Return the steps of one epoch."""
        return range((epoch - 1) * self.per_epoch, min(epoch * self.per_epoch, self.steps))


def schedule_of(optim: OptimConfig, train: Split, *, balanced: bool) -> Schedule:
    """Return the schedule of a run on `train`: an epoch has `optim.steps_per_epoch` steps, else as
    many as a pass; with `data.balanced`, as many as show the number of images of a pass."""
    images = images_of_step(optim, train, balanced=balanced)
    per_epoch = optim.steps_per_epoch or math.ceil(len(train) / images)
    return Schedule(optim.steps or (optim.epochs or 1) * per_epoch, per_epoch)


def images_of_step(optim: OptimConfig, train: Split, *, balanced: bool) -> int:
    """Return how many images a step has: with `data.balanced` a batch of each group."""
    groups = len(set(train.groups)) if balanced and train.groups else 1
    return optim.batch_size * groups
