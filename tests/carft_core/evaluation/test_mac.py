"""Metrics on a device without float64, as a Mac's GPU is: a tensor here that refuses it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from carft_sweep.carft_core.evaluation.measure import context_probe, split_metrics
from carft_sweep.carft_core.evaluation.predictions import Predictions


class MacTensor(Tensor):
    """Says that it lies on MPS; `cpu` gives what does not. Nothing of it is ever in float64."""

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function == Tensor.device.__get__:
            return torch.device("mps")
        if function is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        # A tensor that is made beside it lies on MPS too.
        kwargs = {key: it for key, it in (kwargs or {}).items() if key != "device"}
        out = super().__torch_function__(function, types, args, kwargs)
        if isinstance(out, Tensor) and out.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return out


def on_mac(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(MacTensor)


def predictions(place: Callable[[Tensor], Tensor]) -> Predictions:
    generator = torch.Generator().manual_seed(0)
    names = [str(number) for number in range(6)]
    return Predictions(
        split="id/test",
        ids=names,
        units=names,
        labels=place(torch.tensor([0, 1, 2, 0, 1, 2])),
        logits=place(torch.randn(6, 3, generator=generator)),
        features=place(torch.zeros(6, 1)),
        groups=list("aabbcc"),
    )


def test_every_metric_is_that_of_the_cpu() -> None:
    further = ("macro_f1", "mean_per_class_top1", "mean_group_top1", "worst_group_top1")
    expected = split_metrics(predictions(lambda tensor: tensor), further)
    assert len(expected) == 8
    assert split_metrics(predictions(on_mac), further) == expected


def test_contexts_are_probed() -> None:
    generator = torch.Generator().manual_seed(0)
    given = [torch.randn(4, 8, generator=generator) for _ in range(3)]
    assert context_probe(*map(on_mac, given), 100.0) == context_probe(*given, 100.0)
    with pytest.raises(TypeError, match="float64"):
        on_mac(torch.ones(2)).double()
