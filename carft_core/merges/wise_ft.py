"""WiSE-FT: the straight line in weight space from the zero-shot model to the tuned one."""

from __future__ import annotations

from typing import ClassVar

from carft_sweep.carft_core.algorithms.base import State, check_same_tensors
from carft_sweep.carft_core.merges.base import Line, MergePoint, between


class WiseFt(Line):
    """`(1 - alpha) * zero_shot + alpha * tuned` over encoder and head.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903).
    One training run serves every alpha.
    """

    name: ClassVar[str] = "wise_ft"
    summary: ClassVar[str] = "Weight interpolation between the zero-shot and the tuned model"

    def state(self, point: MergePoint, zero_shot: State, tuned: State) -> State:
        """Return the floating tensors interpolated in fp32; at alpha 0 and 1 the inputs themselves.
        Batch-norm statistics are interpolated like weights; integer buffers (such as batch counts)
        are the tuned model's. Raises RequestError when names or shapes of the tensors differ."""
        alpha = point.values["alpha"]
        check_same_tensors(zero_shot, tuned, "wise_ft needs two models of the same shape")
        if alpha in (0, 1):
            return dict(tuned if alpha else zero_shot)
        return {
            name: between(zero_shot[name], after, alpha) if after.is_floating_point() else after
            for name, after in tuned.items()
        }
