"""The zero-shot model's predictions, which every run on a bench is measured against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from torch import nn

from carft_core.bench import Bench
from carft_core.evaluate import Predictions
from carft_core.metrics import top1
from carft_core.units import Unit

LIMIT = 2_000_000_000
"""Bytes of predictions that stay in memory between the runs of a process."""

_Key = tuple[frozenset[str], nn.Linear | None, int]


@dataclass
class _Known:
    top1: Mapping[str, float]
    predictions: Mapping[str, Predictions] | None = None

    @property
    def bytes(self) -> int:
        return _bytes(self.predictions or {})


class ZeroShotStore:
    """Predictions by bench and unit: made once while they fit, anew for each model beyond that.

    What is kept goes with its bench, or when another bench needs the room. Within a bench it
    stays: its units are asked for in a circle, where to drop the oldest would be to drop each
    before it is asked for again.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self._known: WeakKeyDictionary[Bench, dict[_Key, _Known]] = WeakKeyDictionary()

    def top1(self, unit: Unit, bench: Bench, *, batch_size: int, workers: int) -> dict[str, float]:
        """By metric name; known from the first time on, whether or not predictions are kept."""
        known = self._of(bench).get(_key(unit, batch_size))
        if known is None:
            self.predictions(unit, bench, batch_size=batch_size, workers=workers)
            known = self._of(bench)[_key(unit, batch_size)]
        return dict(known.top1)

    def predictions(
        self, unit: Unit, bench: Bench, *, batch_size: int, workers: int
    ) -> Mapping[str, Predictions]:
        """By metric name, as `Unit.predict` gives them for the teacher's classifier."""
        key = _key(unit, batch_size)
        known = self._of(bench).get(key)
        if known is not None and known.predictions is not None:
            return known.predictions
        made = unit.predict(bench.teacher.classifier, bench, batch_size=batch_size, workers=workers)
        if known is None:
            known = _Known({name: top1(item.logits, item.labels) for name, item in made.items()})
            self._of(bench)[key] = known
        if self._makes_room(bench, _bytes(made)):
            known.predictions = made
        return made

    def _of(self, bench: Bench) -> dict[_Key, _Known]:
        return self._known.setdefault(bench, {})

    def _makes_room(self, bench: Bench, wanted: int) -> bool:
        """Whether so many bytes of `bench` fit, other benches' predictions aside."""
        own = sum(known.bytes for known in self._of(bench).values())
        if own + wanted > self.limit:
            return False
        others = [of for one, of in self._known.items() if one is not bench]
        held = sum(known.bytes for of in others for known in of.values())
        if own + held + wanted > self.limit:
            for of in others:
                for known in of.values():
                    known.predictions = None
        return True


def _key(unit: Unit, batch_size: int) -> _Key:
    return frozenset(unit.splits), unit.head, batch_size


def _bytes(predictions: Mapping[str, Predictions]) -> int:
    return sum(item.logits.nbytes + item.features.nbytes for item in predictions.values())


ZERO_SHOT = ZeroShotStore()
"""That of this process."""
