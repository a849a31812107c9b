"""The algorithms by name: one file and one line here each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from carft_core.algorithms.base import Algorithm, Batch, Term
from carft_core.algorithms.car_ft import CarFt
from carft_core.algorithms.fine_tune import FineTune
from carft_core.algorithms.zero_shot import ZeroShot

ALGORITHMS: Mapping[str, type[Algorithm]] = MappingProxyType(
    {cls.name: cls for cls in (ZeroShot, FineTune, CarFt)}
)

__all__ = ["ALGORITHMS", "Algorithm", "Batch", "Term"]
