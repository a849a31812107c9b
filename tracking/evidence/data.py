"""What the charts of a comparison are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tracking.comparison import compare
from tracking.comparison.compare import Comparison, Row
from tracking.comparison.metrics import shifts
from tracking.comparison.predictions import predictions_path, read_tallies
from tracking.evidence.models import Distance, Model, distances, models
from tracking.evidence.parameters import Parameter, varied
from tracking.evidence.predictions import (
    ClassDifferences,
    Reliability,
    Tallies,
    class_differences,
    reliability,
)
from tracking.evidence.splits import Difference, differences
from tracking.evidence.training import (
    Cost,
    History,
    LearningCurve,
    Runs,
    Standing,
    cost,
    learning_curve,
    read_history,
    runs,
)

LOSS = "train/loss"
MOST_LEARNING = 12
"""Settings of which learning curves are drawn."""
MOST_PRUNED = 30

Importance = Mapping[str, Mapping[str, float]]
"""By metric: parameter to its share, 0 to 1."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything is made when it is first asked for; a missing file leaves out what needs it."""

    comparison: Comparison
    importance: Importance = field(default_factory=dict)
    class_names: Sequence[str] = ()

    @cached_property
    def settings(self) -> tuple[Row, ...]:
        """Every unmerged row with a finished run."""
        return compare.shown_settings(self.comparison)

    @cached_property
    def on_show(self) -> tuple[Row, ...]:
        """What stands for each algorithm, unmerged and through its chosen merges."""
        return compare.shown_rows(self.comparison)

    @cached_property
    def algorithms(self) -> tuple[str, ...]:
        """All of them, in the order of the table: what their colours go by."""
        return tuple(dict.fromkeys(row.arm.algorithm for row in self.comparison.rows))

    @cached_property
    def reference(self) -> Row | None:
        """What the others are compared with."""
        return compare.shown_reference(self.comparison)

    @cached_property
    def zero_shot(self) -> Row | None:
        """The first row on show of the pre-trained weights."""
        return next((row for row in self.on_show if row.arm.is_zero_shot), None)

    @cached_property
    def selected(self) -> Row | None:
        """The row that the sweep ends with."""
        return next((row for row in self.comparison.rows if row.selected), None)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The fields that vary among the settings, the most important first."""
        known, found = self.importance, self.comparison
        shares = known.get(found.endpoint.ood) or known.get(found.rule.metric) or {}
        return tuple(sorted(varied(self.settings), key=lambda item: -shares.get(item.name, 0.0)))

    @cached_property
    def _values(self) -> Mapping[compare.Key, float]:
        return {
            compare.setting_key(row): row.value
            for row in self.comparison.rows
            if row.arm.merge == self.comparison.rule.merge and row.value is not None
        }

    def value(self, row: Row) -> float | None:
        """What the selection saw of this row's setting."""
        return self._values.get(compare.setting_key(row))

    @cached_property
    def models(self) -> tuple[Model, ...]:
        """Every model as a point of ID and OOD accuracy."""
        return models(self.comparison, self.settings, self.on_show)

    @cached_property
    def distances(self) -> tuple[Distance, ...]:
        """How far rows on show lie above the reference's WiSE-FT curve."""
        return distances(self.comparison, self.reference, self.on_show)

    @cached_property
    def differences(self) -> tuple[Difference, ...]:
        """To the reference: of ID, every shift and their mean."""
        if self.reference is None:
            return ()
        terms = self.comparison.endpoint
        every = shifts(self.comparison.metric_names, terms.by)
        metrics = [terms.id_metric, *(metric for metric, _ in every), terms.ood]
        return differences(self.on_show, self.reference, metrics)

    @cached_property
    def class_differences(self) -> tuple[ClassDifferences, ...]:
        """To the reference, by class, where both keep their predictions."""
        if self.reference is None:
            return ()
        theirs = self._tallies(self.reference)
        return tuple(
            part
            for row in self.on_show
            if row is not self.reference
            for part in class_differences(row, self._tallies(row), theirs)
        )

    @cached_property
    def reliability(self) -> tuple[Reliability, ...]:
        """Accuracy by confidence, of the rows on show that keep the predictions of every run."""
        found: list[Reliability] = []
        for row in self.on_show:
            tallies = self._tallies(row)
            if len(tallies) == row.n:
                found += reliability(row, list(tallies.values()))
        return tuple(found)

    @cached_property
    def learning(self) -> tuple[LearningCurve, ...]:
        """Training loss and validation accuracy by epoch."""
        found = []
        for row, standing in self._learners():
            histories = self._histories(row, "pruned" if standing == "pruned" else "done")
            for metric in (LOSS, self.comparison.endpoint.val):
                curve = learning_curve(row, metric, standing, histories)
                if curve is not None:
                    found.append(curve)
        return tuple(found)

    @cached_property
    def cost(self) -> tuple[Cost, ...]:
        """Of the trained settings on show."""
        rows = [row for row in self.on_show if row.arm.merge is None and row.arm.trains]
        found = (cost(row, self._histories(row, "done")) for row in rows)
        return tuple(item for item in found if item is not None)

    @cached_property
    def runs(self) -> tuple[Runs, ...]:
        """How the runs of each algorithm ended."""
        return tuple(runs(self.comparison))

    def class_name(self, number: int) -> str:
        """`class 12` where no names are known."""
        if number < len(self.class_names):
            return self.class_names[number]
        return f"class {number}"

    def _learners(self) -> list[tuple[Row, Standing]]:
        """Those on show, then the best others, then some that were pruned."""
        better = self.comparison.rule.better
        shown = [row for row in self.on_show if row.arm.merge is None and row.arm.trains]
        labels = {row.arm.label for row in shown}
        rest = [
            (better(value), row)
            for row in self.settings
            if row.arm.trains
            and row.arm.label not in labels
            and (value := self.value(row)) is not None
        ]
        best = [row for _, row in sorted(rest, key=lambda item: -item[0])]
        pruned = [row for row in self.comparison.rows if row.arm.states.get("pruned") and not row.n]
        return [
            *((row, "shown") for row in shown),
            *((row, "best") for row in best[: max(0, MOST_LEARNING - len(shown))]),
            *((row, "pruned") for row in pruned[:MOST_PRUNED]),
        ]

    def _histories(self, row: Row, state: str) -> list[History]:
        runs = [run for run in row.arm.runs if run.state == state]
        for run in runs:
            if run.digest not in self._read_histories:
                self._read_histories[run.digest] = read_history(run)
        found = (self._read_histories[run.digest] for run in runs)
        return [history for history in found if history is not None]

    def _tallies(self, row: Row) -> Mapping[int | None, Tallies]:
        """By seed, of every finished run that keeps its predictions."""
        if row.arm.label not in self._read_tallies:
            found: dict[int | None, Tallies] = {}
            for run in row.arm.done:
                path = run.folder and predictions_path(run.folder, row.arm.merge)
                tallies = None if path is None else read_tallies(path)
                if tallies is not None:
                    found[run.seed] = tallies
            self._read_tallies[row.arm.label] = found
        return self._read_tallies[row.arm.label]

    @cached_property
    def _read_histories(self) -> dict[str, History | None]:
        return {}

    @cached_property
    def _read_tallies(self) -> dict[str, Mapping[int | None, Tallies]]:
        return {}


def gather(
    comparison: Comparison,
    *,
    importance: Importance | None = None,
    class_names: Sequence[str] | None = None,
) -> Evidence:
    """The evidence of a comparison.

    `importance` holds for each metric how much of it is due to each parameter (None: unknown),
    `class_names` those of the family in the order of its labels.
    """
    return Evidence(comparison, importance or {}, tuple(class_names or ()))
