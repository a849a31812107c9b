"""The merges by name: one file and one line here each."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from carft_core.merges.base import Merge, MergePoint, State
from carft_core.merges.wise_ft import WiseFt

MERGES: Mapping[str, type[Merge]] = MappingProxyType({cls.name: cls for cls in (WiseFt,)})

__all__ = ["MERGES", "Merge", "MergePoint", "State"]
