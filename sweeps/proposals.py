"""Which point comes next: of a grid the next in order, else a draw, or what a sampler proposes."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, assert_never

import optuna

from sweeps.draws import drawn, hashed, sobol
from sweeps.ledger import Ledger
from sweeps.space import POPULATION, distributions, encode, sampler, suggest

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

    from sweeps.spec import SweepSpec

GENERATION = "NSGAIISampler:generation"
"""Where NSGA-II notes a trial's generation, among the trial's system attributes."""


@dataclass(frozen=True)
class Proposal:
    """A point in the sweep's words and in Optuna's."""

    params: Mapping[str, Any]
    stored: Mapping[str, Any]
    distributions: Mapping[str, BaseDistribution]
    system_attrs: Mapping[str, Any] = field(default_factory=dict)
    """What the sampler must find with the trial when it is asked again."""


def proposal(spec: SweepSpec, params: Mapping[str, Any]) -> Proposal:
    """A point that is known already."""
    return Proposal(params, encode(spec.parameters, params), distributions(spec.parameters))


def propose(spec: SweepSpec, ledger: Ledger, point: int) -> Proposal:
    """The point of that number, by nothing but the sweep, what its ledger knows, and the number.

    The first points of a search are those of `try_first`; what one leaves out is proposed. A
    setting that runs on several tasks is drawn once for all of them.
    """
    setting, cell = spec.setting_of(point)
    given = {**(spec.try_first[setting] if setting < len(spec.try_first) else {}), **cell}
    names = [dimension.name for dimension in spec.parameters]
    match spec.method:
        case "grid":
            return proposal(spec, spec.points()[point])
        case "random":
            params = drawn(spec.parameters, lambda name: hashed(spec.seed, setting, name), given)
            return proposal(spec, {**params, **cell})
        case "qmc":
            numbers = sobol(spec.seed, point, names)
            return proposal(spec, drawn(spec.parameters, numbers.__getitem__, given))
        case "tpe" | "gp" | "nsga2":
            return _asked(spec, spec.method, ledger, point, given)
        case _:
            assert_never(spec.method)


def _asked(
    spec: SweepSpec,
    method: Literal["tpe", "gp", "nsga2"],
    ledger: Ledger,
    point: int,
    given: Mapping[str, Any],
) -> Proposal:
    """What a new sampler proposes, looking at a copy of the study in memory.

    So a crash while it thinks leaves nothing behind, and a restart changes nothing.
    """
    study = optuna.create_study(
        directions=[goal.goal for goal in spec.goals], sampler=sampler(method, spec.seed, point)
    )
    study.add_trials(_known(ledger))
    if given:
        study.enqueue_trial(encode(spec.parameters, given))
    trial = study.ask()
    params = suggest(spec.parameters, trial)
    notes = study.get_trials(deepcopy=False)[trial.number].system_attrs
    kept = {GENERATION: notes[GENERATION]} if GENERATION in notes else {}
    return replace(proposal(spec, params), system_attrs=kept)


def _known(ledger: Ledger) -> Iterator[FrozenTrial]:
    """The trials of the ledger, each with its generation.

    One that was tried again has that of its point; the points of an earlier ledger and those of
    `try_first`, which no sampler has seen, are counted off.
    """
    trials = [
        trial for trial in ledger.study.get_trials(deepcopy=False) if "point" in trial.user_attrs
    ]
    noted = {
        trial.user_attrs["point"]: trial.system_attrs[GENERATION]
        for trial in trials
        if GENERATION in trial.system_attrs
    }
    for trial in trials:
        point = trial.user_attrs["point"]
        counted = copy.copy(trial)
        generation = noted.get(point, point // POPULATION)
        counted.system_attrs = {**trial.system_attrs, GENERATION: generation}
        yield counted
