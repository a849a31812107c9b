"""The rows that charts put side by side: what stands for each algorithm, and its chosen merges."""

from __future__ import annotations

from tracking.compare import REFERENCE, Comparison
from tracking.records import params_key
from tracking.rows import Row

Key = tuple[str, str, bool]


def setting_key(row: Row) -> Key:
    """Equal for the unmerged row of a setting and all its merged rows."""
    return (row.arm.algorithm, params_key(row.arm.params), row.arm.confirms)


def settings(comparison: Comparison) -> tuple[Row, ...]:
    """Every unmerged row with a finished run, but for those that confirm another one."""
    return tuple(
        row for row in comparison.rows if row.arm.merge is None and row.n and not row.arm.confirms
    )


def reference(comparison: Comparison) -> Row | None:
    """What the candidates were judged against; without candidates the chosen fine-tuning."""
    finished = [row for row in comparison.rows if row.n]
    for finding in comparison.findings:
        label = finding.reference.label
        return next((row for row in finished if row.arm.label == label), None)
    rule = comparison.rule
    rivals = [
        row
        for row in finished
        if row.arm.algorithm == REFERENCE and row.arm.merge == rule.merge and row.chosen
    ]
    return max(rivals, key=lambda row: rule.better(row.value or 0.0), default=None)


def on_show(comparison: Comparison) -> tuple[Row, ...]:
    """The settings that stand for their algorithms and the selected one, in the table's order.

    Of each the unmerged row and those that stand for its merges. Where a choice was confirmed on
    fresh seeds and judged by them, these runs are shown and not those of the choice.
    """
    keys = _standing(comparison)
    return tuple(
        row
        for row in comparison.rows
        if row.n
        and setting_key(row) in keys
        and (row.arm.merge is None or row.chosen or row.selected)
    )


def _standing(comparison: Comparison) -> set[Key]:
    judged = {
        arm.label
        for finding in comparison.findings
        for arm in (finding.candidate, finding.reference)
    }
    found = {
        setting_key(row)
        for row in comparison.rows
        if row.selected
        or row.arm.label in judged
        or (row.arm.merge is None and row.chosen)
        or not row.arm.trains
    }
    return found - {(algorithm, params, False) for algorithm, params, fresh in found if fresh}
