"""Which steps wait for a GPU, so that Python cannot be ahead of it: seen without one, on `meta`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_iter

from carft_sweep.carft_core import testing
from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm, loss_and_terms
from carft_sweep.carft_core.algorithms.base import Loss
from carft_sweep.carft_core.models.teacher import Teacher

WAITS: Mapping[str, list[str]] = {"coral": ["_to_copy.default"]}
"""For what the losses of shipped algorithms wait; one that is not here waits for nothing."""
NEED_NUMBERS = ("_local_scalar_dense", "nonzero", "_unique", "unique_", "masked_select")


class Watched(testing._OneDevice):
    """Collects the operations of a loss for which a GPU would be waited for."""

    in_loss = False
    operations: list[str]

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = operation.__name__
        tensors = [item for item in tree_iter((args, kwargs)) if isinstance(item, Tensor)]
        waits = name.startswith(NEED_NUMBERS) and tensors[0].is_meta
        if name.startswith("index.") and any(item.dtype == torch.bool for item in tensors):
            waits = True
        if operation in self.COPIES and not (kwargs or {}).get("non_blocking"):
            to = (kwargs or {}).get("device") or tensors[0].device
            waits = any(item.device != torch.device(to) and item.ndim for item in tensors)
        if waits and self.in_loss:
            self.operations.append(name)
        return super().__torch_dispatch__(operation, types, args, kwargs)


@pytest.mark.parametrize("cls", ALGORITHMS.values(), ids=ALGORITHMS)
def test_no_step_waits_but_where_it_is_known(
    cls: type[Algorithm], teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished = []

    def watched(*args: Any) -> Loss:
        Watched.in_loss = True
        try:
            finished.append(loss_and_terms(*args))
        finally:
            Watched.in_loss = False
        return finished[-1]

    monkeypatch.setattr(Watched, "operations", [], raising=False)
    monkeypatch.setattr(testing, "_OneDevice", Watched)
    monkeypatch.setattr(testing, "loss_and_terms", watched)
    testing.check_devices(cls, teacher)
    assert Watched.operations == WAITS.get(cls.name, [])
    assert len(finished) == 2 * (cls().takes_steps and not Watched.operations)
