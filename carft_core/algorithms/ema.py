"""EMA: an exponential moving average of the weights of any algorithm."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from carft_sweep.carft_core.algorithms.base import Wrapper
from carft_sweep.carft_core.config.fields import Share
from carft_sweep.carft_core.models.averages import Averaged
from carft_sweep.carft_core.models.classifier import Classifier, built
from carft_sweep.carft_core.models.teacher import Teacher


class Ema(Wrapper):
    """Any algorithm, evaluated at the exponential moving average of the weights it goes through.

    After step t = 1, 2, ... of the optimiser, with w_t the weights and a_0 = w_0,

        a_t = d_t a_(t-1) + (1 - d_t) w_t,    d_t = min(decay, (1 + t) / (10 + t))

    so that in a short run the average is of about the last tenth of the steps, instead of being
    held near the initial weights, of which `decay^t` would be left (0.82 after 200 steps of 0.999).
    Floating buffers, such as a batch norm's statistics, are averaged as weights are; others are
    copied. The loss and the optimiser see the weights, the classifier is the average.

    Source: Polyak and Juditsky 1992, "Acceleration of Stochastic Approximation by Averaging";
    Tarvainen and Valpola 2017, "Mean teachers are better role models" (arXiv 1703.01780), equation
    of section 2; the decay's start is that of TensorFlow's `ExponentialMovingAverage` with
    `num_updates`, and buffers as in timm's `ModelEmaV3`.
    """

    name: ClassVar[str] = "ema"
    summary: ClassVar[str] = "The exponential moving average of another algorithm's weights"

    decay: Share = 0.999
    """How much of the average a step leaves; the average is over about 1 / (1 - decay) steps."""

    @property
    def copies(self) -> int:
        """Twice the copies of `of`: what trains, and its average."""
        return 2 * self.of.copies

    def inner(self, model: nn.Module) -> nn.Module:
        return built(model, Averaged).model

    def build(self, teacher: Teacher) -> Averaged:
        """Return the wrapped algorithm's module, with a copy of it for the average."""
        return Averaged(super().build(teacher))

    def start(self, model: nn.Module, teacher: Teacher) -> None:
        """Start the wrapped algorithm; the average begins at the weights that it sets."""
        super().start(model, teacher)
        model = built(model, Averaged)
        model.average.load_state_dict(model.model.state_dict())

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        """Call `after_step` of the wrapped algorithm, then update the average."""
        super().after_step(model, step, steps)
        built(model, Averaged).update(min(self.decay, (2 + step) / (11 + step)))

    def classifier(self, model: nn.Module, teacher: Teacher) -> Classifier:
        """Return the wrapped algorithm's classifier, with the averaged weights."""
        return self.of.classifier(built(model, Averaged).average, teacher)
