"""Model Stock: two or more runs, pulled towards the zero-shot model by the angle between them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from carft_sweep.carft_core.algorithms.base import Soup, State


class ModelStock(Soup):
    """`w = t * mean(w_1, ..., w_N) + (1 - t) * w_0`, tensor by tensor, with
    `t = N cos / (1 + (N - 1) cos)`.

    `w_0` is the zero-shot model and `cos` the cosine of the angle between the members' offsets
    `w_i - w_0` of the tensor. On the plane through `w_0` and the members this point is nearest to
    the centre of the runs' distribution: t is 1 where all agree and 0 where their offsets are
    orthogonal, thus noise.

    Source: Jang et al. 2024, "Model Stock: All we need is just a few fine-tuned models" (arXiv
    2403.19522), the interpolation ratio of section 4 and its form for N members. The official
    repository holds no code. Where the paper leaves it open: a layer is a tensor; of more than two
    members `cos` is the mean over the pairs, as in mergekit; and a negative one, where the formula
    would step away from the members, counts as 0.
    """

    name: ClassVar[str] = "model_stock"
    summary: ClassVar[str] = "The mean of a few runs, pulled to the zero-shot model by their angle"
    least_members: ClassVar[int] = 2

    def state(self, zero_shot: State, members: Sequence[State]) -> State:
        """Return the members interpolated towards the zero-shot model, each floating tensor in
        fp32; integer buffers are the first member's."""
        return {
            name: _stock(zero_shot[name], [member[name] for member in members])
            if tensor.is_floating_point()
            else tensor
            for name, tensor in members[0].items()
        }


def _stock(before: Tensor, tuned: Sequence[Tensor]) -> Tensor:
    start = before.float()
    offsets = torch.stack([tensor.float() - start for tensor in tuned])
    ratio = interpolation_ratio(offsets.flatten(start_dim=1))
    return (start + ratio * offsets.mean(dim=0)).to(before.dtype)


def interpolation_ratio(offsets: Tensor) -> Tensor:
    """Return the scalar t in [0, 1] for the members' offsets [N, P] from the zero-shot weights."""
    count = len(offsets)
    pairs = itertools.combinations(offsets, 2)
    cosines = torch.stack([F.cosine_similarity(one, two, dim=0) for one, two in pairs])
    cosine = cosines.mean().clamp(0, 1)
    return count * cosine / (1 + (count - 1) * cosine)
