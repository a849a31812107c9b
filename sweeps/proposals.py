"""Which point comes next: of a grid the next in order, else what Optuna's sampler proposes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna

from sweeps.ledger import Ledger
from sweeps.space import distributions, encode, sampler, suggest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

    from sweeps.spec import SweepSpec


@dataclass(frozen=True)
class Proposal:
    """A point in the sweep's words and in Optuna's."""

    params: Mapping[str, Any]
    stored: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]


def proposal(spec: SweepSpec, params: Mapping[str, Any]) -> Proposal:
    """A point that is known already."""
    return Proposal(params, encode(spec.parameters, params), distributions(spec.parameters))


def propose(spec: SweepSpec, ledger: Ledger, point: int) -> Proposal:
    """The point of that number, the same after any restart.

    The sampler sees a copy of the study in memory, so that a crash while it thinks leaves nothing
    behind.
    """
    if spec.method == "grid":
        return proposal(spec, spec.points()[point])
    study = optuna.create_study(
        direction=spec.metric.goal, sampler=sampler(spec.method, spec.seed, point)
    )
    study.add_trials(
        trial for trial in ledger.study.get_trials(deepcopy=False) if "point" in trial.user_attrs
    )
    return proposal(spec, suggest(spec.parameters, study.ask()))
