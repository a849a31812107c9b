"""The effect of each varied field on OOD and ID: the question of a sweep file itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from carft_sweep.tracking.comparison.hits import KeptHits
from carft_sweep.tracking.comparison.runs import Arm, Scalar, number_of, params_key, value_key
from carft_sweep.tracking.comparison.selection import SWEEP
from carft_sweep.tracking.comparison.spec import SEEDS_FOR_CLAIM, Endpoint
from carft_sweep.tracking.comparison.statistics import ALPHA, Interval, PairedTest, mean

_NAMES = ("algorithm.name", SWEEP)
"""Fields that are no effects: algorithms are compared by themselves, sweeps are told apart."""


class Level(NamedTuple):
    """One value of a field, with means over seeds and over the settings of the other fields."""

    value: Scalar
    endpoint: float
    id: float | None


@dataclass(frozen=True)
class Effect:
    """The effect of a field: its highest value against its lowest, or of categories the best
    against the worst. Compared are settings that differ in this field alone, paired by seed."""

    parameter: str
    """The dotted name."""
    algorithm: str
    numeric: bool
    levels: tuple[Level, ...]
    """Its values in rising order; of categories, by rising endpoint."""
    settings: int
    """How many settings of the other fields each level is averaged over."""
    difference: PairedTest
    """Test of the endpoint's difference: the last level minus the first."""
    id_difference: PairedTest | None
    """Likewise of ID; None where the endpoint is ID or ID was not measured."""
    selected: Scalar
    """The value of the selected setting."""

    @property
    def low(self) -> Level:
        """The first level of the field."""
        return self.levels[0]

    @property
    def high(self) -> Level:
        """The last level of the field."""
        return self.levels[-1]

    @property
    def level(self) -> float:
        """The confidence level of the difference's interval: 95 %, and for categories by
        Bonferroni's rule over all pairs, since the best and the worst are picked by their means."""
        return 0.95 if self.numeric else 1 - ALPHA / math.comb(len(self.levels), 2)

    @property
    def interval(self) -> Interval | None:
        """Confidence interval of `difference` at `level`; None where the test has none."""
        return self.difference.interval(self.level)

    @property
    def has_seeds(self) -> bool:
        """Whether there are enough seeds for a claim."""
        return len(self.difference.differences) >= SEEDS_FOR_CLAIM


def measure_effects(
    arms: Sequence[Arm], selected: Arm, endpoint: Endpoint, seeds: Sequence[int], kept: KeptHits
) -> tuple[list[Effect], list[str]]:
    """Return the effect of each varied field of the algorithm of `selected`, in order of names, and
    the fields without one, since no group of settings has all values of the field and differs in
    nothing else. Settings that lack one of `seeds` or the endpoint's mean are left out."""
    settings = [
        arm
        for arm in arms
        if arm.algorithm == selected.algorithm
        and arm.role == "trial"
        and arm.trains
        and arm.is_complete(seeds)
        and arm.mean(endpoint.metric) is not None
    ]
    effects, unmeasured = [], []
    for name in sorted({name for arm in settings for name in arm.params} - {*_NAMES}):
        own = [arm for arm in settings if name in arm.params]
        values = {value_key(arm.params[name]): arm.params[name] for arm in own}
        if len(values) < 2:
            continue
        if whole := _whole_blocks(own, name, len(values)):
            effects.append(_effect(name, values, whole, selected, endpoint, kept))
        else:
            unmeasured.append(name)
    return effects, unmeasured


def _whole_blocks(arms: Sequence[Arm], name: str, count: int) -> list[dict[str, Arm]]:
    """Return the groups of arms that differ in the field `name` alone, each as {key of the field's
    value: arm}; only groups with all `count` values."""
    first = _rest(arms[0], name)
    if count == len(arms) and any(_rest(arm, name) != first for arm in arms):
        return []  # a value for each arm, as random search gives: all are one block, or none is
    blocks: dict[str, dict[str, Arm]] = {}
    for arm in arms:
        blocks.setdefault(_rest(arm, name), {})[value_key(arm.params[name])] = arm
    return [block for block in blocks.values() if len(block) == count]


def _rest(arm: Arm, name: str) -> str:
    """Return a key of a setting's fields without `name`."""
    return params_key({key: value for key, value in arm.params.items() if key != name})


def _effect(
    name: str,
    values: dict[str, Scalar],
    blocks: Sequence[dict[str, Arm]],
    selected: Arm,
    endpoint: Endpoint,
    kept: KeptHits,
) -> Effect:
    every = [arm.values(endpoint.metric) for block in blocks for arm in block.values()]
    seeds = [seed for seed in every[0] if all(seed in values for values in every)]

    def by_seed(key: str, metric: str) -> list[float] | None:
        """Return a metric's mean over the other fields' settings, by seed; None if one lacks it."""
        of_blocks = [block[key].values(metric) for block in blocks]
        if not all(seed in of_block for of_block in of_blocks for seed in seeds):
            return None
        return [mean([of_block[seed] for of_block in of_blocks]) for seed in seeds]

    numeric = all(number_of(value) is not None for value in values.values())
    levels = []
    for key, value in values.items():
        heights, ids = (by_seed(key, m) for m in (endpoint.metric, endpoint.id_metric))
        assert heights is not None  # only such settings are compared
        levels.append(Level(value, mean(heights), None if ids is None else mean(ids)))
    levels.sort(key=lambda level: number_of(level.value) or 0.0 if numeric else level.endpoint)
    low, high = (value_key(level.value) for level in (levels[0], levels[-1]))

    def difference(metric: str) -> PairedTest | None:
        """Return the test of the highest level minus the lowest; None where a value is missing."""
        above, below = by_seed(high, metric), by_seed(low, metric)
        if above is None or below is None:
            return None
        differences = (one - other for one, other in zip(above, below, strict=True))
        pairs = [(block[high], block[low]) for block in blocks]
        return kept.paired_test(differences, pairs, seeds, metric)

    of_endpoint = difference(endpoint.metric)
    assert of_endpoint is not None
    has_id = endpoint.id_metric != endpoint.metric
    return Effect(
        parameter=name,
        algorithm=selected.algorithm,
        numeric=numeric,
        levels=tuple(levels),
        settings=len(blocks),
        difference=of_endpoint,
        id_difference=difference(endpoint.id_metric) if has_id else None,
        selected=selected.params.get(name),
    )
