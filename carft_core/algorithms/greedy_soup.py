"""A greedy soup: the mean of the runs that do not lower its accuracy on the validation split."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import ClassVar

import torch

from carft_sweep.carft_core.algorithms.base import Soup
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.teacher import Teacher

_LOG = logging.getLogger(__name__)


class GreedySoup(Soup):
    """The mean of the weights of some of N runs, which are taken by falling accuracy on `id/val`:
    a run stays in the soup if the soup's own accuracy there is no lower with it than without.

    Source: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models
    improves accuracy without increasing inference time" (arXiv 2203.05482), recipe 1. The authors'
    code (mlfoundations/model-soups) keeps a run only if the accuracy rises.
    """

    name: ClassVar[str] = "greedy_soup"
    summary: ClassVar[str] = "The mean of the runs that do not lower its validation accuracy"

    def combine(self, teacher: Teacher, members: Sequence[Classifier]) -> Classifier:
        """Return the greedy soup of the members; each is validated alone and in the soup."""
        states = self.states(teacher, members)
        alone = [accuracy(member, teacher) for member in members]
        first, *others = sorted(range(len(members)), key=lambda number: -alone[number])
        soup, best, chosen = copy.deepcopy(members[first]), alone[first], [first]
        soup.load_state_dict(dict(states[first]))  # `states` refuses one of another shape
        state = soup.state_dict()
        for number in others:
            before = {name: tensor.clone() for name, tensor in state.items()}
            for name, tensor in states[number].items():
                if tensor.is_floating_point():
                    mean = torch.lerp(before[name].float(), tensor.float(), 1 / (len(chosen) + 1))
                    state[name].copy_(mean)
            together = accuracy(soup, teacher)
            if together >= best:
                best, chosen = together, [*chosen, number]
            else:
                soup.load_state_dict(before)
        runs = ", ".join(self.members[number][:12] for number in chosen)
        _LOG.info("%s of %d runs: %s, id/val %.4f", self.name, len(members), runs, best)
        return soup


def accuracy(classifier: Classifier, teacher: Teacher) -> float:
    """Return the top-1 accuracy of a classifier on `id/val`."""
    (features,) = teacher.encode([classifier], "id/val")
    labels = teacher.splits["id/val"].labels.to(features.device)
    with torch.no_grad():
        return float((classifier.logits(features).argmax(dim=1) == labels).double().mean())
