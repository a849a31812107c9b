"""The algorithms by name: one file and one line here each; users register their own."""

from __future__ import annotations

from typing import Any

from carft_core.algorithms.base import USES, Algorithm, Batch, Loss, Soup
from carft_core.algorithms.car_ft import CarFt
from carft_core.algorithms.fine_tune import FineTune
from carft_core.algorithms.model_stock import ModelStock
from carft_core.algorithms.uniform_soup import UniformSoup
from carft_core.algorithms.zero_shot import ZeroShot
from carft_core.registry import Registry, no_concrete


def _refusal(thing: Any) -> str | None:
    """An algorithm is a class; one that trains says by which loss."""
    wrong = no_concrete(Algorithm, thing)
    if wrong is None and thing.trains and thing.loss is Algorithm.loss:
        return "it lacks `loss`, what it minimises"
    return wrong


ALGORITHMS: Registry[type[Algorithm]] = Registry("algorithm", _refusal)
ALGORITHMS.register(ZeroShot)
ALGORITHMS.register(FineTune)
ALGORITHMS.register(CarFt)
ALGORITHMS.register(UniformSoup)
ALGORITHMS.register(ModelStock)

__all__ = ["ALGORITHMS", "USES", "Algorithm", "Batch", "Loss", "Soup"]
