"""Linear probe: logistic regression on the frozen tower's features, solved to convergence."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_core.algorithms.base import Algorithm
from carft_core.clip import ImageClassifier
from carft_core.fields import Positive, PositiveInt
from carft_core.optim import Group, OptimConfig, decay_groups
from carft_core.teacher import Teacher

CONVERGED = 1e-6
"""The largest absolute gradient of a solution; scikit-learn's own default is 1e-4."""
LOGITS_AT_ONCE = 2**25
"""How many logits are in memory together, in float64."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Solution:
    """The minimum of a regularised logistic regression, and how it was reached."""

    weight: Tensor
    """[C, d] float64."""
    loss: float
    """Mean cross-entropy and penalty together."""
    cross_entropy: float
    gradient: float
    """The largest absolute gradient of the loss."""
    iterations: int


class Probe(Algorithm):
    """What a linear probe asks, for the algorithms that have one."""

    C: Positive = 10.0
    """The inverse strength of the penalty, as scikit-learn's `C`: the penalty weighs less the more
    images there are. It is for features of unit norm: CLIP's own 0.316 is for features of a norm
    near 10, for which 100 times as much has the same solution here."""
    init: Literal["zeros", "zero_shot"] = "zeros"
    """Where the head starts and what the penalty pulls it to: zeros, as in scikit-learn, or the
    zero-shot head, which a small `C` then leaves as it is."""
    max_iter: PositiveInt = 1000
    """At most so many iterations of L-BFGS."""

    def probe(self, model: nn.Module, teacher: Teacher) -> Solution:
        """Solve for the head on the cached features of the training split's fixed views, and put
        the solution into the model's.

        Raises TypeError when the model is no image tower with a head.
        """
        if not isinstance(model, ImageClassifier):
            raise TypeError(f"{self.name} trains an image tower with a linear head")
        centre = teacher.classifier.head.weight
        solution = logistic_regression(
            teacher.features("train").to(teacher.device),
            teacher.splits["train"].labels.to(teacher.device),
            centre if self.init == "zero_shot" else torch.zeros_like(centre),
            c=self.C,
            max_iter=self.max_iter,
        )
        if solution.gradient > CONVERGED:
            _LOG.warning("%s: %s", self.name, _unsolved(solution.gradient))
        with torch.no_grad():
            model.head.weight.copy_(solution.weight)
        return solution


class LinearProbe(Probe):
    """Logistic regression on the frozen tower's unit-norm features f, by L-BFGS.

    The head V [C, d], without bias, minimises over the N training images in their evaluation view

        mean CE(V f, y) + |V - V0|^2 / (2 C N)

    which is scikit-learn's objective for V0 = 0. It is strictly convex: the solution depends on
    neither seed nor optimiser, and is the one that linear probes of CLIP are published with.

    Source: Radford et al. 2021 (arXiv 2103.00020), section 3.2 and appendix A.3; as a baseline of
    robust fine-tuning Kumar et al. 2022 (arXiv 2202.10054). Theirs have a bias, which a head of
    CLIP's has not, and CLIP probes the features before the projection to the texts' space.
    """

    name: ClassVar[str] = "linear_probe"
    summary: ClassVar[str] = "Logistic regression on the frozen tower's features"
    solves: ClassVar[bool] = True

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        """The head."""
        named = [(name, it) for name, it in model.named_parameters() if name.startswith("head.")]
        return decay_groups(named, optim)

    def solve(self, model: nn.Module, teacher: Teacher) -> Mapping[str, float]:
        """Logs the objective, its cross-entropy, the gradient that is left, and the iterations."""
        solution = self.probe(model, teacher)
        return {
            "loss": solution.loss,
            "cross_entropy": solution.cross_entropy,
            "gradient": solution.gradient,
            "iterations": solution.iterations,
        }

    def warnings(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """Says so when L-BFGS ended before it had converged."""
        left = history[-1]["train/gradient"] if len(history) > 1 else 0.0
        return [_unsolved(left)] if left > CONVERGED else []


def logistic_regression(
    features: Tensor, labels: Tensor, centre: Tensor, *, c: float, max_iter: int
) -> Solution:
    """Minimise `mean CE(V f, y) + |V - centre|^2 / (2 c N)` over V [C, d] from `centre` [C, d].

    By L-BFGS in float64, in which it converges where float32 would stall, of features [N, d] and
    labels [N] on one device. Source: Liu and Nocedal 1989, "On the limited memory BFGS method for
    large scale optimization"; 10 pairs, and steps that meet the strong Wolfe conditions.
    """
    if features.device.type == "mps":  # it has no float64
        features, labels, centre = features.cpu(), labels.cpu(), centre.cpu()
    count, classes = len(labels), len(centre)
    rows = max(1, LOGITS_AT_ONCE // classes)
    parts = list(zip(features.split(rows), labels.split(rows), strict=True))
    centre = centre.detach().double()
    weight = centre.clone().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [weight],
        max_iter=max_iter,
        tolerance_grad=CONVERGED,
        tolerance_change=0.0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )

    def cross_entropy() -> Tensor:
        """Its gradient is added to the weight's, part by part."""
        total = weight.new_zeros(())
        for some, targets in parts:
            logits = some.double() @ weight.T
            part = F.cross_entropy(logits, targets, reduction="sum") / count
            part.backward()
            total += part.detach()
        return total

    def penalty() -> Tensor:
        value = (weight - centre).square().sum() / (2 * c * count)
        value.backward()
        return value.detach()

    def closure() -> Tensor:
        optimiser.zero_grad()
        return cross_entropy() + penalty()

    optimiser.step(closure)
    optimiser.zero_grad()
    fit, cost = float(cross_entropy()), float(penalty())
    assert weight.grad is not None
    gradient = float(weight.grad.abs().max())
    iterations = int(optimiser.state[weight]["n_iter"])
    return Solution(weight.detach(), fit + cost, fit, gradient, iterations)


def _unsolved(gradient: float) -> str:
    return (
        f"the linear probe was not solved to the end: its gradient is {gradient:.1e}, not "
        f"{CONVERGED:g}; raise algorithm.max_iter, or lower algorithm.C"
    )
