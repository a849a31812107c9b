"""What a table of a comparison shows: which rows, which columns, and each cell as text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from tracking.accuracy import BENCHMARK, NOUNS, TITLES, TOP1, capitalised, kind_of
from tracking.base import TrackingError
from tracking.compare import Comparison, Row
from tracking.metric_kinds import is_fraction
from tracking.names import unknown
from tracking.verdict import GAIN

GAP = "gap/top1"
OTHERS = "retention/mean/top1"
KEPT = "retention/gain/top1"
NOTHING = "–"
OVER_IMAGES = "95 % over images (bootstrap over units, the trained weights held fixed)"
"""What stands above a table of such intervals."""
MOST = 50
"""Trials in a table, unless more are asked for."""


@dataclass(frozen=True)
class MetricColumn:
    """A metric that some row has; accuracies are shown in percent."""

    metric: str
    header: str
    spread: bool = True
    """Whether +- half the 95 % interval stands behind the mean."""
    signed: bool = False

    def plain(self) -> MetricColumn:
        """The same without the spread."""
        return replace(self, spread=False)

    def text(self, row: Row) -> str:
        """`81.2 ±0.4`, or a dash where the row has no mean."""
        mean, half = self.parts(row)
        return f"{mean} ±{half}" if half else mean

    def parts(self, row: Row) -> tuple[str, str]:
        """The mean and half of its interval as a table prints them; the latter may be empty."""
        found = row.metric(self.metric)
        if found.mean is None:
            return NOTHING, ""
        half = found.half_width if self.spread else None
        return self.number(found.mean), "" if half is None else self._magnitude(half)

    def number(self, value: float) -> str:
        """A fraction in percent with one decimal, any other number with three digits."""
        if not is_fraction(self.metric):
            return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
        # Adding 0.0 turns a rounded -0.0 into 0.0.
        percent = round(100 * value, 1) + 0.0
        return f"{percent:+.1f}" if self.signed else f"{percent:.1f}"

    def _magnitude(self, half: float) -> str:
        return f"{100 * half:.1f}" if is_fraction(self.metric) else f"{half:.2g}"


@dataclass(frozen=True)
class ImagesColumn(MetricColumn):
    """The interval over images of an accuracy, of the rows for which it was asked."""

    def text(self, row: Row) -> str:
        """`80.1 to 82.4`, or a dash."""
        ends = row.ci95_images.get(self.metric)
        return NOTHING if ends is None else f"{self.number(ends.low)} to {self.number(ends.high)}"


def over_images(
    rows: Sequence[Row], columns: Sequence[MetricColumn]
) -> tuple[tuple[Row, ...], tuple[ImagesColumn, ...]]:
    """The rows and columns that have intervals over images; neither where none was asked for."""
    found = tuple(row for row in rows if row.ci95_images)
    names = {name for row in found for name in row.ci95_images}
    chosen = tuple(
        ImagesColumn(column.metric, column.header) for column in columns if column.metric in names
    )
    return (found, chosen) if chosen else ((), ())


def shown_columns(comparison: Comparison, names: Sequence[str] = ()) -> tuple[MetricColumn, ...]:
    """The columns by header or metric name, in this order; without names the usual ones.

    Raises TrackingError with the nearest name for one that no row has.
    """
    if not names:
        return metric_columns(comparison)
    return tuple(column_of(comparison, name) for name in names)


def column_of(comparison: Comparison, name: str, besides: Sequence[str] = ()) -> MetricColumn:
    """The column of a header (`OOD mean`, `outline`) or of a metric (`id/test/ece`).

    Raises TrackingError with the nearest name when no row has it; the message names `besides` too.
    """
    usual = metric_columns(comparison)
    for column in usual:
        if name == column.metric or name.lower() == column.header.lower():
            return column
    if name in comparison.metric_names:
        return MetricColumn(name, name)
    headers = [*besides, *(column.header for column in usual)]
    raise TrackingError(unknown("column", name, [*headers, *sorted(comparison.metric_names)]))


def metric_columns(comparison: Comparison) -> tuple[MetricColumn, ...]:
    """What the selection saw, ID, every shift, their mean, the gap, the gain, and retention.

    Runs measure gap and gain of top-1 alone: by another accuracy there is neither.
    """
    rule, names, terms = comparison.rule, comparison.metric_names, comparison.terms
    of_top1 = [MetricColumn(GAP, "gap"), MetricColumn(GAIN, "gain", signed=True)]
    wanted = [
        MetricColumn(terms.val, "ID val"),
        MetricColumn(terms.test, "ID test"),
        *(MetricColumn(metric, shift) for metric, shift in shifts(names, terms.by)),
        MetricColumn(terms.ood, "OOD mean"),
        *(of_top1 if terms.by == TOP1 else ()),
        MetricColumn(OTHERS, "other tasks"),
        MetricColumn(KEPT, "kept there", signed=True),
    ]
    if rule.metric not in {column.metric for column in wanted} and is_fraction(rule.metric):
        wanted.insert(0, MetricColumn(rule.metric, rule.metric.removesuffix(f"/{terms.by}")))
    return tuple(column for column in wanted if column.metric in names)


def shifts(names: Collection[str], by: str = TOP1) -> list[tuple[str, str]]:
    """Every shift's metric of a kind and its name, by name: `OOD test` for one called test."""
    end = f"/{by}"
    found = sorted(name for name in names if name.startswith("ood/") and name.endswith(end))
    named = {name: name[len("ood/") : -len(end)] for name in found if name != f"ood/mean{end}"}
    return [(name, f"OOD {it}" if it in ("val", "test") else it) for name, it in named.items()]


def visible(
    comparison: Comparison, *, all_alphas: bool, most: int | None = MOST
) -> tuple[Row, ...]:
    """The best arms, and of their merged models all or the chosen one of each merge.

    At most so many trials (None: every one), with the baselines and what stands for an algorithm.
    """
    kept = None if most is None else _best(comparison, most)
    return tuple(
        row
        for row in comparison.rows
        if (row.arm.merge is None or all_alphas or row.chosen or row.selected)
        and (kept is None or unmerged(row) in kept)
    )


def unmerged(row: Row) -> str:
    """The label of a row's arm without its merge: trials of several sweeps share their numbers."""
    return row.arm.label.removesuffix(f" + {row.arm.merge}")


def _best(comparison: Comparison, most: int) -> set[str] | None:
    """Settings by label; None where no more than so many are trials'."""
    rule = comparison.rule
    rows = [row for row in comparison.rows if row.arm.merge is None]
    trials = {row.arm.label for row in rows if row.arm.trial is not None}
    if len(trials) <= most:
        return None
    valued = [
        (rule.better(row.value), unmerged(row))
        for row in comparison.rows
        if row.arm.merge == rule.merge and row.value is not None and row.arm.trial is not None
    ]
    best = {label for _, label in sorted(valued, key=lambda item: -item[0])[:most]}
    standing = {unmerged(row) for row in comparison.rows if row.selected}
    standing |= {row.arm.label for row in rows if row.chosen}
    return best | standing | {row.arm.label for row in rows if row.arm.label not in trials}


def setting(comparison: Comparison, row: Row, *, grouped: bool) -> str:
    """The row's name with its marks; under its arm a merged model has only its own label."""
    name = f"  + {row.arm.merge}" if grouped and row.arm.merge is not None else row.arm.label
    return f"{pointer(comparison, row)}{name}{signs(row)}"


def pointer(comparison: Comparison, row: Row) -> str:
    """A triangle for the selected setting, a dot for what stands for an algorithm with several."""
    if row.selected:
        return "▸ "
    rivals = comparison.rivals[row.arm.algorithm, row.arm.merge]
    stands = row.chosen and rivals > 1 and row.arm.merge == comparison.rule.merge
    return "• " if stands else "  "


def signs(row: Row) -> str:
    """Footnote signs of a row."""
    known = {"untuned": "‡", "names domains": "†"}
    found = "".join(sign for mark, sign in known.items() if mark in row.marks)
    return f" {found}" if found else ""


def count(comparison: Comparison, row: Row) -> str:
    """Finished runs, and of how many where some are lacking."""
    if "incomplete" not in row.marks:
        return str(row.n)
    seeds = 0 if row.arm.confirms else len(comparison.seeds)
    expected = max(seeds, len(row.arm.runs)) if row.arm.has_seeds else 1
    return f"{row.n}/{expected}"


def title(comparison: Comparison) -> str:
    """The sweep, what its settings were chosen on, and over which seeds."""
    rule = comparison.rule
    on = rule.metric if rule.merge is None else f"{rule.metric} of {rule.merge}"
    n = len(comparison.seeds)
    seeds = f", {n} seed{'' if n == 1 else 's'}" if n else ""
    if comparison.tasks:
        seeds = f", for each of {len(comparison.tasks)} tasks and each seed{seeds}"
    by = comparison.terms.by
    judged = "" if by == TOP1 else f", judged by {NOUNS[by]}"
    return f"{comparison.sweep}: settings chosen by {on} ({rule.name}){seeds}{judged}"


def notes(comparison: Comparison, rows: Sequence[Row]) -> list[str]:
    """What the numbers and signs mean, as far as they occur, and what is not shown."""
    over = "tasks and seeds" if comparison.tasks else "seeds"
    told = [f"{_accuracy(comparison)} in percent, mean over {over}"]
    spread = any(s.ci95 is not None for row in rows for s in row.metrics.values())
    told[0] += (
        " ± half of the 95 % t interval, for this teacher and these classes."
        if spread
        else "; no interval below 3 seeds."
    )
    shown = {unmerged(row) for row in rows}
    every = [row for row in comparison.rows if unmerged(row) in shown]
    if any(row.arm.merge is not None for row in rows) and len(rows) < len(every):
        told.append("Of each merge the row chosen by the same rule as the settings.")
    if any(row.selected for row in rows):
        told.append("▸ selected.")
    if any(pointer(comparison, row) == "• " for row in rows):
        told.append("• stands for its algorithm.")
    settings, all_settings = _settings(rows), _settings(comparison.rows)
    if settings < all_settings:
        told.append(f"{settings} of {all_settings} settings, the best by {comparison.rule.metric}.")
    marks = {mark for row in rows for mark in row.marks}
    if "untuned" in marks:
        told.append("‡ untuned.")
    if "confirmed" in marks:
        told.append("(confirmed) the chosen setting once more, on fresh seeds.")
    if "names domains" in marks:
        told.append("† its contexts name held-out domains.")
    return told


def _accuracy(comparison: Comparison) -> str:
    """`Top-1 accuracy`, `Macro-F1`; of tasks with different ones what each has."""
    terms = comparison.terms
    name = "Top-1 accuracy" if terms.by == TOP1 else capitalised(NOUNS[terms.by])
    if terms.by != BENCHMARK:
        return name
    kinds: dict[str, list[str]] = {}
    for task in comparison.tasks:
        kinds.setdefault(TITLES[terms.on(task).by], []).append(task)
    each = "; ".join(f"{kind} of {', '.join(tasks)}" for kind, tasks in kinds.items())
    return f"{name} ({each})"


def other_kinds(comparison: Comparison, columns: Sequence[MetricColumn]) -> list[str]:
    """What to say of columns whose accuracy is top-1 where methods are ranked by another."""
    if comparison.terms.by == TOP1:
        return []
    others = [column.header for column in columns if kind_of(column.metric) == TOP1]
    return [f"Of top-1 accuracy: {', '.join(others)}."] if others else []


def _settings(rows: Sequence[Row]) -> int:
    return sum(row.arm.merge is None for row in rows)
