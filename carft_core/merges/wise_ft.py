"""WiSE-FT: the straight line in weight space from the zero-shot model to the tuned one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field, field_validator
from torch import Tensor

from carft_core.errors import RequestError
from carft_core.merges.base import Merge, MergePoint, State

Alpha = Annotated[float, Field(ge=0, le=1)]


class WiseFt(Merge):
    """`(1 - alpha) * zero_shot + alpha * tuned` over encoder and head.

    Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv 2109.01903).
    One training run serves every alpha.
    """

    name: ClassVar[str] = "wise_ft"
    summary: ClassVar[str] = "Weight interpolation between the zero-shot and the tuned model"

    point_fields: ClassVar[frozenset[str]] = frozenset({"alphas"})

    alphas: Annotated[tuple[Alpha, ...], Field(strict=False, min_length=1)] = (0.5,)

    @field_validator("alphas")
    @classmethod
    def _each_once(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        steps = [round(1000 * alpha) for alpha in alphas]
        if len(set(steps)) < len(steps):
            raise ValueError(
                "alphas must differ by at least 0.001 (the curve's step is 1000*alpha)"
            )
        return tuple(sorted(alphas))

    def points(self) -> Sequence[MergePoint]:
        """One model an alpha, in ascending order."""
        return tuple(
            MergePoint(f"{self.name}@{alpha:g}", round(1000 * alpha), {"alpha": alpha})
            for alpha in self.alphas
        )

    def state(self, point: MergePoint, zero_shot: State, tuned: State) -> State:
        """The interpolated weights; alpha 0 and 1 are the end points themselves."""
        return interpolate(zero_shot, tuned, point.values["alpha"])


def interpolate(zero_shot: State, tuned: State, alpha: float) -> State:
    """`(1 - alpha) * zero_shot + alpha * tuned` of floating tensors, computed in fp32.

    Batch-norm statistics are interpolated like weights; integer buffers (such as batch counts)
    are the tuned model's. Raises RequestError when the two do not hold the same tensors.
    """
    _same_tensors(zero_shot, tuned)
    if alpha == 0:
        return dict(zero_shot)
    if alpha == 1:
        return dict(tuned)
    return {
        name: _between(zero_shot[name], after, alpha) if after.is_floating_point() else after
        for name, after in tuned.items()
    }


def _between(before: Tensor, after: Tensor, alpha: float) -> Tensor:
    mixed = (1 - alpha) * before.to(torch.float32) + alpha * after.to(torch.float32)
    return mixed.to(after.dtype)


def _same_tensors(zero_shot: State, tuned: State) -> None:
    differing = [
        name
        for name in sorted({*zero_shot, *tuned})
        if name not in zero_shot or name not in tuned or zero_shot[name].shape != tuned[name].shape
    ]
    if differing:
        raise RequestError(
            "wise_ft needs two models of the same shape; these tensors differ: "
            + ", ".join(differing[:10])
            + (f" and {len(differing) - 10} more" if len(differing) > 10 else "")
        )
