"""Linear probe: logistic regression on the frozen tower's features, solved to convergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import nn

from carft_sweep.carft_core.algorithms.base import Algorithm
from carft_sweep.carft_core.models.classifier import ImageClassifier, built
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.training.logistic_regression import CONVERGED, Probe, unsolved
from carft_sweep.carft_core.training.optim import Group, OptimConfig, decay_groups


class LinearProbe(Probe, Algorithm):
    """Logistic regression on the frozen tower's unit-norm features f, by L-BFGS.

    The head V [C, d], without bias, minimises over the N training images in their evaluation view

        mean CE(V f, y) + |V - V0|^2 / (2 C N)

    which is scikit-learn's objective for V0 = 0. It is strictly convex: its minimum depends on
    neither seed nor optimiser. Published linear probes of CLIP minimise it too.

    Source: Radford et al. 2021 (arXiv 2103.00020), section 3.2 and appendix A.3; as a baseline of
    robust fine-tuning Kumar et al. 2022 (arXiv 2202.10054). Theirs have a bias, which a head of
    CLIP's has not, and CLIP probes the features before the projection to the texts' space.
    """

    name: ClassVar[str] = "linear_probe"
    summary: ClassVar[str] = "Logistic regression on the frozen tower's features"
    solves: ClassVar[bool] = True

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        """Return the head as the only group of parameters."""
        return decay_groups(built(model, ImageClassifier).head.named_parameters(), optim)

    def solve(self, model: nn.Module, teacher: Teacher) -> Mapping[str, float]:
        """Solve the regression; return objective, cross-entropy, gradient and iterations to log."""
        model = built(model, ImageClassifier)
        labels = teacher.splits["train"].labels
        features = teacher.features("train")
        return self.fit(model.head, teacher.classifier.head, features, labels)

    def warnings(self, history: Sequence[Mapping[str, float]]) -> list[str]:
        """Warn when L-BFGS ended before it had converged."""
        left = history[-1]["train/gradient"] if len(history) > 1 else 0.0
        return [unsolved(left)] if left > CONVERGED else []
