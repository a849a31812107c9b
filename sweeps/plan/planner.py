"""The runs of a sweep, with their digests."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from carft_sweep.carft_core.algorithms import Soup
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import FamilyData, open_data
from carft_sweep.carft_core.runs.identity import Identity, identify
from carft_sweep.carft_core.runs.models import models_of
from carft_sweep.carft_core.training.setup import other_data
from carft_sweep.sweeps.engines.resources import Hardware
from carft_sweep.sweeps.ledger.runs import NO_SEED
from carft_sweep.sweeps.space.points import baseline_at
from carft_sweep.sweeps.spec.metrics import check_measured
from carft_sweep.sweeps.spec.settings import After
from carft_sweep.sweeps.spec.spec import BaselinePoint, SweepSpec
from carft_sweep.tracking.comparison.runs import LONGEST, Role, setting, short_label

STEPS_ADVISED = 8
"""Least steps an epoch with the batch size that a note advises."""


@dataclass(frozen=True)
class PlannedRun:
    """One run and its place in the sweep."""

    role: Role
    params: Mapping[str, Any]
    """The varied fields that the run has, dotted."""
    config: TrialConfig
    """With the run's own split seed, and `auto` device and precision resolved."""
    seed: int | None
    identity: Identity
    trial: int | None = None
    point: int | None = None
    """Of a baseline the number of the first trial with its values, for its short label."""

    @property
    def digest(self) -> str:
        """Training digest of the run."""
        return self.identity.digest

    @property
    def algorithm(self) -> str:
        """Name of the run's algorithm."""
        return self.config.algorithm.name

    @property
    def untrained(self) -> bool:
        """Whether the run trains nothing and has its seed only for the split."""
        return self.seed is not None and not self.config.algorithm.trains

    @functools.cached_property
    def setting_label(self) -> str:
        """The run's label in messages without its seed: `car_ft kl_weight=0.3`, or `car_ft #3`."""
        number = self.point if self.trial is None else self.trial
        return run_label(self.algorithm, self.params, number)

    @property
    def is_numbered(self) -> bool:
        """Whether the label has the number of a trial in place of the fields."""
        return self.trial is not None and _is_long(self.algorithm, self.params)

    @functools.cached_property
    def label(self) -> str:
        """The run's label in messages: `car_ft kl_weight=0.3 seed 1`."""
        return self.setting_label if self.seed is None else f"{self.setting_label} seed {self.seed}"


def run_label(algorithm: str, params: Mapping[str, Any], trial: int | None = None) -> str:
    """Return a run's label without its seed: `car_ft kl_weight=0.3`, and with many fields `car_ft
    #3`, where 3 is the number of the trial."""
    if trial is not None and _is_long(algorithm, params):
        return short_label(algorithm, trial)
    return f"{algorithm} {setting(params)}".rstrip()


def _is_long(algorithm: str, params: Mapping[str, Any]) -> bool:
    return len(f"{algorithm} {setting(params)}".rstrip()) > LONGEST


class Planner:
    """Plans a sweep's runs: the config, the seed and the digest of each."""

    def __init__(
        self, spec: SweepSpec, hardware: Hardware, note: Callable[[str], None] | None = None
    ) -> None:
        """Prepare to plan runs. `hardware` is what a run gets, which decides the meaning of `auto`;
        `note` is called once with each message about the data and about values of `auto`."""
        self.spec, self.hardware, self._note = spec, hardware, note
        self._noted: set[str] = set()

    def data(self) -> FamilyData:
        """Return the opened data of a grid's first trial, or of a search's typical trial."""
        spec = self.spec
        if spec.method == "grid":
            config = spec.config_for(spec.points()[0]).for_seed(spec.seeds[0])
        else:
            config = spec.typical_config()
        return open_data(config.data)

    def baselines(self) -> list[list[PlannedRun]]:
        """Return the runs of each baseline at each of its points, a list for each: first those that
        do not train, last soups whose members the file names."""

        def order(point: BaselinePoint) -> tuple[bool, bool]:
            return _role(point.config) == "soup", point.config.algorithm.trains

        return [
            list(self._runs(_role(point.config), point.params, point.config, point=point.number))
            for point in sorted(self.spec.baseline_configs(), key=order)
        ]

    def trial(self, params: Mapping[str, Any], number: int | None = None) -> list[PlannedRun]:
        """Return the runs of the trial `number` at the point `params`, one for each seed."""
        return list(self._runs("trial", params, self.spec.config_for(params), number))

    def confirmation(self, algorithm: str, params: Mapping[str, Any]) -> list[PlannedRun]:
        """Return the runs of a trial's or baseline's setting on fresh seeds, one for each. Raises
        ValueError when the sweep has no such setting any more."""
        points = self.spec.baseline_configs()
        own = (point.config for point in points if point.is_at(algorithm, params))
        config = next(own, None) or self.spec.config_for(params)
        if config.algorithm.name != algorithm:
            raise ValueError(f"{algorithm} at {dict(params)} is no setting of {self.spec.name}")
        return list(self._runs("confirmation", params, config, seeds=self.spec.confirm_seeds))

    def soup(
        self, item: After, params: Mapping[str, Any], members: Sequence[str]
    ) -> list[PlannedRun]:
        """Return the run of one item of `after`, from the digests of its members; `params` are the
        soup's own varied fields. Raises InvalidConfig when no soup can be made of them."""
        own = {**item.algorithm, "members": list(members)}
        config = baseline_at(self.spec.trial, own, params)
        which = {"of": item.of.algorithm}
        which |= {} if item.of.settings == "selected" else {"settings": item.of.settings}
        return list(self._runs("soup", {**params, **which}, config))

    def _runs(
        self,
        role: Role,
        params: Mapping[str, Any],
        config: TrialConfig,
        number: int | None = None,
        seeds: Sequence[int | None] | None = None,
        point: int | None = None,
    ) -> Iterator[PlannedRun]:
        trained = self.spec.seeds if seeds is None else seeds
        has_seeds = config.algorithm.trains or config.follows_seed
        for seed in trained if has_seeds else (None,):
            own = self.hardware.resolve(config.for_seed(seed or 0))
            self._check_goals(params, own)
            identity = identify(own, seed or 0)
            self._note_once(own, (*self._one_step_epochs(own), *self.hardware.notes(config)))
            yield PlannedRun(role, params, own, seed, identity, number, point)

    def _one_step_epochs(self, config: TrialConfig) -> Iterator[str]:
        """Yield a note that an epoch is a single step where a batch holds all images of train."""
        optim = config.optim
        if not config.algorithm.trains or config.algorithm.solves or optim.steps_per_epoch:
            return
        images = len(open_data(config.data).train)
        if optim.steps is None and optim.batch_size > images:
            smaller = 2 ** max(0, (images // STEPS_ADVISED).bit_length() - 1)
            remedy = f"; --set optim.batch_size={smaller} makes it {math.ceil(images / smaller)}"
            is_varied = any(item.name == "optim.batch_size" for item in self.spec.parameters)
            sizes = f"optim.batch_size is {optim.batch_size}, train has {images} images"
            yield f"{sizes}: one step an epoch{'' if is_varied else remedy}"

    def _check_goals(self, params: Mapping[str, Any], config: TrialConfig) -> None:
        data = open_data(config.data)
        for goal in self.spec.goals_at(params):
            check_measured(goal.name, config, data)
        if self.spec.constraint is not None:
            check_measured(self.spec.constraint.name, config, data, "constraint")

    def _note_once(self, config: TrialConfig, more: Iterable[str]) -> None:
        families = (open_data(config.data), *other_data(config.data, config.eval).values())
        for text in (*(text for data in families for text in data.notes), *more):
            if self._note is not None and text not in self._noted:
                self._noted.add(text)
                self._note(text)


def digests(planned: Sequence[PlannedRun]) -> dict[str, str]:
    """Return the digests of one setting's runs, by seed as text (NO_SEED where it has none)."""
    return {NO_SEED if run.seed is None else str(run.seed): run.digest for run in planned}


def setting_record(planned: Sequence[PlannedRun]) -> dict[str, Any]:
    """Return the ledger's record of the setting of the runs `planned`: SettingRecord's fields."""
    algorithm = planned[0].config.algorithm
    return {
        "algorithm": planned[0].algorithm,
        "params": dict(planned[0].params),
        "runs": digests(planned),
        "merges": merge_labels(planned[0].config),
        "result": planned[0].config.keep.result,
        **({"untrained": True} if planned[0].untrained else {}),
        **({"members": list(algorithm.members)} if isinstance(algorithm, Soup) else {}),
    }


def _role(config: TrialConfig) -> Role:
    """Return the role of a baseline's setting in the ledger: `soup` or `baseline`."""
    return "soup" if isinstance(config.algorithm, Soup) else "baseline"


def merge_labels(config: TrialConfig) -> list[str]:
    """Return the labels of the merged models that a run of `config` measures."""
    return [label for label, model in models_of(config).items() if model is not None]
