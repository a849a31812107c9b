"""Logistic regression: the solver of linear probes."""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.config.fields import Positive, PositiveInt, Section

CONVERGED = 1e-6
"""The greatest absolute entry of a solution's gradient; scikit-learn's default is 1e-4."""
LOGITS_AT_ONCE = 2**25
"""How many logits a probe has in memory together, in float64."""
PAIRS = 10
"""How many steps L-BFGS keeps, each with the change of its gradient."""
_LOG = logging.getLogger(__name__)


class Probe(Section):
    """The fields of a linear probe, for the algorithms that have one."""

    C: Positive = 10.0
    """The inverse strength of the penalty, as scikit-learn's `C`: the penalty weighs less the more
    images there are. It is for features of unit norm: CLIP's own 0.316 is for features of a norm
    near 10, for which 100 times as much has the same solution here."""
    init: Literal["zeros", "zero_shot"] = "zeros"
    """Where the head starts and what the penalty pulls it to: zeros, as in scikit-learn, or the
    zero-shot head, which a small `C` then leaves as it is."""
    max_iter: PositiveInt = 1000
    """At most so many iterations of L-BFGS."""

    def fit(
        self, head: nn.Linear, zero_shot: nn.Linear, features: Tensor, labels: Tensor
    ) -> dict[str, float]:
        """Put the solution for features [N, d] and labels [N] into the head, computed on the head's
        device; return its values to log. Missing convergence is logged."""
        centre, device = zero_shot.weight, head.weight.device
        weight, values = logistic_regression(
            features.to(device),
            labels.to(device),
            centre if self.init == "zero_shot" else torch.zeros_like(centre),
            c=self.C,
            max_iter=self.max_iter,
        )
        if values["gradient"] > CONVERGED:
            _LOG.warning(unsolved(values["gradient"]))
        with torch.no_grad():
            head.weight.copy_(weight)
        return values


def logistic_regression(
    features: Tensor, labels: Tensor, centre: Tensor, *, c: float, max_iter: int
) -> tuple[Tensor, dict[str, float]]:
    """Return V [C, d] float64 that minimises `mean CE(V f, y) + |V - centre|^2 / (2 c N)`, from
    `centre` [C, d]; and of it the objective as `loss`, its `cross_entropy`, the greatest absolute
    entry of its `gradient`, and the `iterations`.

    By L-BFGS in float64, in which it converges where float32 would stall, of features [N, d] and
    labels [N] on one device. Source: Liu and Nocedal 1989, "On the limited memory BFGS method for
    large scale optimization"; 10 pairs, and steps that meet the strong Wolfe conditions.
    """
    if features.device.type == "mps":  # it has no float64
        features, labels, centre = features.cpu(), labels.cpu(), centre.cpu()
    count = len(labels)
    centre = centre.detach().double()
    weight = centre.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weight],
        max_iter=max_iter,
        tolerance_grad=CONVERGED,
        tolerance_change=0.0,
        history_size=PAIRS,
        line_search_fn="strong_wolfe",
    )

    def penalty() -> Tensor:
        value = (weight - centre).square().sum() / (2 * c * count)
        value.backward()
        return value.detach()

    def closure() -> Tensor:
        optimiser.zero_grad()
        return cross_entropy(weight, features, labels) + penalty()

    optimiser.step(closure)
    optimiser.zero_grad()
    fit, cost = float(cross_entropy(weight, features, labels)), float(penalty())
    assert weight.grad is not None
    return weight.detach(), {
        "loss": fit + cost,
        "cross_entropy": fit,
        "gradient": float(weight.grad.abs().max()),
        "iterations": int(optimiser.state[weight]["n_iter"]),
    }


def cross_entropy(weight: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross-entropy of logits `features @ weight.T` in float64, and add its
    gradient to `weight.grad`; LOGITS_AT_ONCE logits are in memory at a time."""
    total, rows = weight.new_zeros(()), max(1, LOGITS_AT_ONCE // len(weight))
    for images, targets in zip(features.split(rows), labels.split(rows), strict=True):
        logits = images.double() @ weight.T
        part = F.cross_entropy(logits, targets, reduction="sum") / len(labels)
        part.backward()
        total += part.detach()
    return total


def unsolved(gradient: float) -> str:
    """Return a warning that the solver did not converge; `gradient` is that of its solution."""
    return (
        f"the linear probe was not solved to the end: its gradient is {gradient:.1e}, not "
        f"{CONVERGED:g}; raise algorithm.max_iter, or lower algorithm.C"
    )
