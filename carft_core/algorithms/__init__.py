"""The algorithms by name: one file and one line here each; users register their own."""

from __future__ import annotations

from typing import Any

from carft_core.algorithms.base import USES, Algorithm, Batch, Loss, Soup
from carft_core.algorithms.car_ft import CarFt
from carft_core.algorithms.clip_adapter import ClipAdapter
from carft_core.algorithms.fine_tune import FineTune
from carft_core.algorithms.flyp import Flyp
from carft_core.algorithms.linear_probe import LinearProbe
from carft_core.algorithms.lp_ft import LpFt
from carft_core.algorithms.zero_shot import ZeroShot
from carft_core.registry import Registry, no_concrete


def _refusal(thing: Any) -> str | None:
    """An algorithm is a class; one that trains says by which loss, or how it solves."""
    wrong = no_concrete(Algorithm, thing)
    if wrong is not None or not thing.trains:
        return wrong
    if thing.solves:
        return "it lacks `solve`" if thing.solve is Algorithm.solve else None
    return "it lacks `loss`, what it minimises" if thing.loss is Algorithm.loss else None


ALGORITHMS: Registry[type[Algorithm]] = Registry("algorithm", _refusal)
ALGORITHMS.register(ZeroShot)
ALGORITHMS.register(FineTune)
ALGORITHMS.register(CarFt)
ALGORITHMS.register(LinearProbe)
ALGORITHMS.register(LpFt)
ALGORITHMS.register(ClipAdapter)
ALGORITHMS.register(Flyp)

__all__ = ["ALGORITHMS", "USES", "Algorithm", "Batch", "Loss", "Soup"]
