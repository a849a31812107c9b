"""In mixed precision no tower computes its large products in float32, whatever the algorithm."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.testing import batch_for, loss_of, started

PRODUCTS = ("mm.", "addmm.", "bmm.", "baddbmm.", "convolution", "_scaled_dot_product")
KNOWN = {"lora": {"mm.default"}}
"""By algorithm: of LoRA the changes are made in float32, for each layer and not each image."""
STEPPED = [name for name, cls in ALGORITHMS.items() if cls().takes_steps]


class LargeProducts(TorchDispatchMode):
    """Collects the types in which products over all tokens of a batch are computed."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.by_type: dict[torch.dtype, set[str]] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name, tensors = operation.__name__, [x for x in tree_iter(args) if isinstance(x, Tensor)]
        if name.startswith(PRODUCTS) and any(
            tensor.numel() // tensor.shape[-1] >= self.tokens for tensor in tensors
        ):
            self.by_type.setdefault(tensors[0].dtype, set()).add(name)
        return operation(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", STEPPED)
def test_products_over_the_tokens_of_a_batch_are_in_bf16(name: str, teacher: Teacher) -> None:
    algorithm, batch = ALGORITHMS[name](), batch_for(teacher)
    model = started(algorithm, teacher)
    # As many as a tower has at least: the classes, contexts and images of a loss are fewer.
    with LargeProducts(tokens=16 * len(batch.labels)) as products:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss, _ = loss_of(algorithm, model, batch, teacher)
        loss.backward()
    assert products.by_type[torch.bfloat16]
    assert products.by_type.get(torch.float32, set()) == KNOWN.get(name, set())
