"""The algorithms by name: one file and one `register` line each; users register their own."""

from __future__ import annotations

from carft_sweep.carft_core.algorithms.autoft import AutoFt
from carft_sweep.carft_core.algorithms.base import (
    ALGORITHMS,
    USES,
    Algorithm,
    Batch,
    Loss,
    Soup,
    Wrapper,
    blame_own_code,
    loss_and_terms,
)
from carft_sweep.carft_core.algorithms.car_ft import CarFt
from carft_sweep.carft_core.algorithms.carot import CaRot
from carft_sweep.carft_core.algorithms.clip_adapter import ClipAdapter
from carft_sweep.carft_core.algorithms.clipood import ClipOod
from carft_sweep.carft_core.algorithms.coral import Coral
from carft_sweep.carft_core.algorithms.ema import Ema
from carft_sweep.carft_core.algorithms.feature_distillation import FeatureDistillation
from carft_sweep.carft_core.algorithms.fine_tune import FineTune
from carft_sweep.carft_core.algorithms.flyp import Flyp
from carft_sweep.carft_core.algorithms.from_checkpoint import FromCheckpoint
from carft_sweep.carft_core.algorithms.greedy_soup import GreedySoup
from carft_sweep.carft_core.algorithms.l2_sp import L2Sp
from carft_sweep.carft_core.algorithms.ldifs import Ldifs
from carft_sweep.carft_core.algorithms.linear_probe import LinearProbe
from carft_sweep.carft_core.algorithms.lipsum_ft import LipsumFt
from carft_sweep.carft_core.algorithms.lora import Lora
from carft_sweep.carft_core.algorithms.lp_ft import LpFt
from carft_sweep.carft_core.algorithms.mask_fill import MaskFill
from carft_sweep.carft_core.algorithms.miro import Miro
from carft_sweep.carft_core.algorithms.model_stock import ModelStock
from carft_sweep.carft_core.algorithms.r_adapter import RAdapter
from carft_sweep.carft_core.algorithms.starft import StarFt
from carft_sweep.carft_core.algorithms.swad import Swad
from carft_sweep.carft_core.algorithms.tracer import Tracer
from carft_sweep.carft_core.algorithms.uniform_soup import UniformSoup
from carft_sweep.carft_core.algorithms.zero_shot import ZeroShot

ALGORITHMS.register(ZeroShot)
ALGORITHMS.register(FineTune)
ALGORITHMS.register(CarFt)
ALGORITHMS.register(LinearProbe)
ALGORITHMS.register(LpFt)
ALGORITHMS.register(ClipAdapter)
ALGORITHMS.register(Flyp)
ALGORITHMS.register(Ema)
ALGORITHMS.register(Swad)
ALGORITHMS.register(Lora)
ALGORITHMS.register(Coral)
ALGORITHMS.register(L2Sp)
ALGORITHMS.register(Ldifs)
ALGORITHMS.register(FeatureDistillation)
ALGORITHMS.register(MaskFill)
ALGORITHMS.register(LipsumFt)
ALGORITHMS.register(CaRot)
ALGORITHMS.register(Tracer)
ALGORITHMS.register(StarFt)
ALGORITHMS.register(ClipOod)
ALGORITHMS.register(Miro)
ALGORITHMS.register(RAdapter)
ALGORITHMS.register(AutoFt)
ALGORITHMS.register(FromCheckpoint)
ALGORITHMS.register(UniformSoup)
ALGORITHMS.register(GreedySoup)
ALGORITHMS.register(ModelStock)

__all__ = [
    "ALGORITHMS",
    "USES",
    "Algorithm",
    "Batch",
    "Loss",
    "Soup",
    "Wrapper",
    "blame_own_code",
    "loss_and_terms",
]
