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
        """Set the average to `decay * average + (1 - decay) * weights`; copy buffers of no float
        type."""
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
    """Return the decay with which the 0-based `step` updates an average of the weights after t = 0,
    1, ..., `steps` steps, weighted by Beta(beta, beta)'s density at (t + 1/2) / (steps + 1)."""
    times = (torch.arange(step + 2, dtype=torch.float64) + 0.5) / (steps + 1)
    logarithms = (beta - 1) * (times * (1 - times)).log()  # of densities too small for a number
    return float(1 - logarithms.softmax(0)[-1])


def state_tensors(module: nn.Module) -> list[Tensor]:
    """Return a module's parameters and persistent buffers; others, such as an attention's mask with
    its infinities, have no average."""
    state = module.state_dict()
    return [*module.parameters(), *(b for name, b in module.named_buffers() if name in state)]
