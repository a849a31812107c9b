"""The algorithms by name: one file and one line here each; users register their own."""

from __future__ import annotations

from typing import Any

from carft_core.algorithms.base import Algorithm, Batch, Term
from carft_core.algorithms.car_ft import CarFt
from carft_core.algorithms.fine_tune import FineTune
from carft_core.algorithms.zero_shot import ZeroShot
from carft_core.registry import Registry, no_concrete


def _refusal(thing: Any) -> str | None:
    """An algorithm is a class; one that trains says by which loss."""
    wrong = no_concrete(Algorithm, thing)
    if wrong is None and thing.trains and thing.terms is Algorithm.terms:
        return "it lacks terms, the parts of its loss"
    return wrong


ALGORITHMS: Registry[type[Algorithm]] = Registry("algorithm", _refusal)
Algorithm.registry = ALGORITHMS
ALGORITHMS.register(ZeroShot)
ALGORITHMS.register(FineTune)
ALGORITHMS.register(CarFt)

__all__ = ["ALGORITHMS", "Algorithm", "Batch", "Term"]
