"""What of a bench is predicted, and held in memory, together: a unit, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from carft_core.bench import Bench
from carft_core.clip import ImageClassifier
from carft_core.data import Split
from carft_core.evaluate import Predictions, part, predict, together
from carft_core.retention import OtherTask


@dataclass(frozen=True, eq=False)
class Unit:
    """Splits of which something is measured over all of them; most stand alone."""

    splits: Mapping[str, Split]
    """By metric name, as all that follows."""
    head: nn.Linear | None = None
    """That of another task; None is the classifier's own."""
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """The classes of each part of `id/test`."""
    unions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of which of the splits each union is made."""

    def shapes(self, classes: int) -> dict[str, tuple[int, int]]:
        """The shapes [N, C] of the logits, by name; the classifier's own head has `classes`."""
        width = classes if self.head is None else self.head.out_features
        sizes = {name: len(split) for name, split in self.splits.items()}
        for name, of in self.parts.items():
            inside = torch.isin(self.splits["id/test"].labels, torch.tensor(of))
            sizes[name] = int(inside.sum())
        sizes |= {name: sum(sizes[one] for one in of) for name, of in self.unions.items()}
        return {name: (size, width) for name, size in sizes.items()}

    def predict(
        self, classifier: ImageClassifier, bench: Bench, *, batch_size: int, workers: int
    ) -> dict[str, Predictions]:
        """What `classifier`, or its tower with the unit's own head, says of each split.

        Raises as `carft_core.evaluate.predict` does.
        """
        if self.head is not None:
            classifier = ImageClassifier(classifier.visual, self.head)
        predicted = {
            name: predict(
                classifier,
                split,
                name,
                transform=bench.transform,
                device=bench.device,
                precision=bench.precision,
                batch_size=batch_size,
                workers=workers,
            )
            for name, split in self.splits.items()
        }
        parts = {
            name: part(predicted["id/test"], name, classes) for name, classes in self.parts.items()
        }
        unions = {
            name: together([predicted[one] for one in of], name) for name, of in self.unions.items()
        }
        return predicted | parts | unions


def units_of(bench: Bench, others: Sequence[OtherTask]) -> list[Unit]:
    """All that a finished run is measured on; splits that share a union are in one unit."""
    splits, unions = bench.evaluated_splits(), bench.unions()
    groups = [{name} for name in splits]
    for of in unions.values():
        joined = [group for group in groups if group & {*of}]
        groups = [group for group in groups if not group & {*of}] + [set().union(*joined)]
    return [
        *(
            Unit(
                {name: split for name, split in splits.items() if name in group},
                parts=bench.test_parts() if "id/test" in group else {},
                unions={name: of for name, of in unions.items() if group & {*of}},
            )
            for group in groups
        ),
        *(Unit({other.name: other.test}, head=other.head) for other in others),
    ]


def names_of(bench: Bench, others: Sequence[OtherTask]) -> tuple[str, ...]:
    """The metric names of all that the units predict, in the order in which they are told."""
    return (
        *(*bench.evaluated_splits(), *bench.test_parts(), *bench.unions()),
        *(other.name for other in others),
    )
