"""What charts are drawn from: a comparison's rows on show, its reference, its varied parameters."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from carft_sweep.tracking.charts.parameters import Parameter, varied_parameters
from carft_sweep.tracking.comparison.compare import Comparison, Row, shown_rows
from carft_sweep.tracking.comparison.spec import REFERENCE


@dataclass(frozen=True, eq=False)
class ChartData:
    """A comparison as charts read it; each part is computed at its first use."""

    comparison: Comparison

    @cached_property
    def settings(self) -> tuple[Row, ...]:
        """Every unmerged row with a finished run, except confirmations."""
        rows = (row for row in self.comparison.rows if row.arm.merge is None and row.n)
        return tuple(row for row in rows if not row.arm.confirms)

    @cached_property
    def shown(self) -> tuple[Row, ...]:
        """The rows that represent each algorithm: its unmerged and its selected merged models."""
        return shown_rows(self.comparison)

    @cached_property
    def algorithms(self) -> tuple[str, ...]:
        """The names of all algorithms in the order of the table, which decides their colours."""
        return tuple(dict.fromkeys(row.arm.algorithm for row in self.comparison.rows))

    @cached_property
    def reference(self) -> Row | None:
        """The row that candidates are tested against, else the selected setting of fine-tuning."""
        finished = [row for row in self.comparison.rows if row.n]
        rule, verdicts = self.comparison.rule, self.comparison.verdicts
        if verdicts:
            key = verdicts[0].pair.reference.key
            return next((row for row in finished if row.arm.key == key), None)
        rivals = [
            row
            for row in finished
            if row.arm.algorithm == REFERENCE and row.arm.merge == rule.merge and row.chosen
        ]
        return max(rivals, key=lambda row: rule.better(row.value or 0.0), default=None)

    @cached_property
    def zero_shot(self) -> Row | None:
        """The first of the rows on show whose weights are the pre-trained ones."""
        return next((row for row in self.shown if row.arm.is_zero_shot), None)

    @cached_property
    def parameters(self) -> tuple[Parameter, ...]:
        """The fields that vary among the settings, in order of their names."""
        return varied_parameters(self.settings)
