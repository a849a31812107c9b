"""A uniform soup: the mean of the weights of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from carft_sweep.carft_core.algorithms.base import Soup, State


class UniformSoup(Soup):
    """`w = (w_1 + ... + w_N) / N` over encoder and head of N runs.

    Floating tensors, batch-norm statistics included, are averaged in fp32; integer buffers (batch
    counts) are those of the first member.

    Source: Wortsman et al. 2022, "Model soups: averaging weights of multiple fine-tuned models
    improves accuracy without increasing inference time" (arXiv 2203.05482), section 2, "uniform
    soup". Its code adds up half-precision weights as they are; here the sum is in fp32.
    """

    name: ClassVar[str] = "uniform_soup"
    summary: ClassVar[str] = "The mean of the weights of several runs"

    def state(self, zero_shot: State, members: Sequence[State]) -> State:
        """Return the mean of the members' weights, adding one member after another."""
        del zero_shot
        soup: dict[str, Tensor] = {}
        dtypes: dict[str, torch.dtype] = {}
        for member in members:
            for name, tensor in member.items():
                if name not in soup:
                    dtypes[name] = tensor.dtype
                    soup[name] = tensor.float() if tensor.is_floating_point() else tensor
                elif tensor.is_floating_point():
                    soup[name] = soup[name] + tensor
        return {
            name: (tensor / len(members)).to(dtypes[name]) if tensor.is_floating_point() else tensor
            for name, tensor in soup.items()
        }
