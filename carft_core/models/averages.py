"""Running averages of the weights of a module that trains."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Averaged(nn.Module):
    """A module that trains, and a running average of its weights."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.average = copy.deepcopy(model).requires_grad_(False)

    def update(self, decay: float) -> None:
        """Leave `decay` of the average, and add the rest of the weights; buffers that are no
        floats are copied."""
        averages, weights = [], []
        for average, weight in zip(
            state_tensors(self.average), state_tensors(self.model), strict=True
        ):
            if average.is_floating_point():
                averages.append(average)
                weights.append(weight)
            else:
                average.copy_(weight)
        get_ema_multi_avg_fn(decay)(averages, weights, None)


def beta_decay(step: int, steps: int, beta: float) -> float:
    """Return how much of an average the 0-based `step` leaves, where the weights w_t behind
    t = 0, 1, ..., steps steps are weighted by the density of Beta(beta, beta) at
    (t + 1/2) / (steps + 1), and the average so far holds those before."""
    times = (torch.arange(step + 2, dtype=torch.float64) + 0.5) / (steps + 1)
    density = (times * (1 - times)) ** (beta - 1)
    return float(1 - density[-1] / density.sum())


def state_tensors(module: nn.Module) -> list[Tensor]:
    """Return parameters, and the buffers that are state: an attention's mask, which is not, has
    infinities, and no average."""
    state = module.state_dict()
    return [*module.parameters(), *(it for name, it in module.named_buffers() if name in state)]


def averaged(model: nn.Module) -> Averaged:
    """Return the module as one with an average. Raises TypeError when it is none."""
    if not isinstance(model, Averaged):
        raise TypeError("an average is of the module that was built for it")
    return model
