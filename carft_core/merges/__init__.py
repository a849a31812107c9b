"""The merges by name: one file and one `register` line each; users register their own."""

from __future__ import annotations

from carft_sweep.carft_core.algorithms.base import State
from carft_sweep.carft_core.config.registry import Registry
from carft_sweep.carft_core.merges.base import Merge, MergePoint, Model
from carft_sweep.carft_core.merges.dawin import Dawin
from carft_sweep.carft_core.merges.lines import Lines
from carft_sweep.carft_core.merges.logit_ensemble import LogitEnsemble
from carft_sweep.carft_core.merges.vrf import Vrf
from carft_sweep.carft_core.merges.wise_ft import WiseFt

MERGES: Registry[type[Merge]] = Registry("merge", Merge)
Merge.registry = MERGES
MERGES.register(WiseFt)
MERGES.register(Lines)
MERGES.register(LogitEnsemble)
MERGES.register(Vrf)
MERGES.register(Dawin)

__all__ = ["MERGES", "Merge", "MergePoint", "Model", "State"]
