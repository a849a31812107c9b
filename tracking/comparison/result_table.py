"""Results of any program, as a CSV table or a frame, read as runs: `compare results.csv`."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from carft_sweep.regular_files import read_regular
from carft_sweep.tracking.comparison.metrics import ID, OOD
from carft_sweep.tracking.comparison.pooling import SweepRuns
from carft_sweep.tracking.comparison.runs import RunRecord, exact_text
from carft_sweep.tracking.comparison.spec import VAL, ComparisonSpec
from carft_sweep.tracking.comparison.wise_ft_curve import WISE
from carft_sweep.tracking.errors import TrackingError, unknown_name

if TYPE_CHECKING:
    import pandas as pd

SUFFIX = ".csv"
REQUIRED = ("method", "seed", "id", "ood")
ACCURACIES: Mapping[str, str] = {"id": ID, "ood": OOD, "selected_by": VAL}
"""The metric of each column of accuracies; `ood/<shift>` is besides the accuracy on a shift."""
COLUMNS = (*REQUIRED, "setting", "alpha", "selected_by")
ZERO_SHOT = "zero_shot"
_SETTING = "table.setting"
"""The field of the column `setting`, which labels have as `setting`."""
MOST_BYTES, MOST_ROWS, MOST_CHARACTERS = 1 << 23, 20_000, 100
"""Limits of a table, and of the characters of a name in it."""
MOST_MISTAKES = 10
"""Most mistakes that a message lists."""
_SHIFT = re.compile(r"ood/(?!mean$)[\w.-]{1,100}")

Row = tuple[str, Sequence[str]]
"""The place of a row, such as `line 7`, and its cells."""
Setting = tuple[str, str]
"""Method and setting."""


@dataclass(frozen=True)
class _Line:
    """One model, as a line of the table has it."""

    place: str
    setting: Setting
    seed: int | None
    alpha: float
    """1 is the unmerged model, 0 the zero-shot one."""
    numbers: Mapping[str, float]
    """Accuracies by column, in percent or as fractions, as the table has them."""

    def as_metrics(self, unit: float, zero_shot_ood: float | None = None) -> dict[str, float]:
        """Return the line's numbers as fractions by metric name, with the gap between ID and OOD
        accuracy, and the gain over the zero-shot model where its OOD accuracy is given. `unit` is
        100 in a table of percent, else 1."""
        metrics = {
            ACCURACIES.get(column, f"{column}/top1"): number / unit
            for column, number in self.numbers.items()
        }
        metrics["gap/top1"] = metrics[ID] - metrics[OOD]
        if zero_shot_ood is not None:
            metrics["gain/ood/top1"] = metrics[OOD] - zero_shot_ood
        return metrics

    def is_same_model(self, other: _Line) -> bool:
        """Return whether all numbers that two lines have in common are equal."""
        shared = self.numbers.keys() & other.numbers
        return all(self.numbers[column] == other.numbers[column] for column in shared)


def is_table(name: str | Path) -> bool:
    """Return whether a name is that of a table of results instead of a sweep."""
    return Path(name).suffix.lower() == SUFFIX


def read_table(source: str | Path | pd.DataFrame) -> SweepRuns:
    """Read the runs of a CSV file, or of a frame with the same columns. Raises TrackingError, which
    lists the mistakes."""
    if not isinstance(source, (str, Path)):
        frame = source.astype(object).where(source.notna(), "")
        cells = ((label, map(str, row)) for label, *row in frame.itertuples(name=None))
        header = ("columns", [*map(str, frame.columns)])
        return _table_runs("DataFrame", header, [(f"row {label}", [*row]) for label, row in cells])
    path = Path(source).expanduser()
    rows = _read_rows(path)
    if not rows:
        raise TrackingError(f"{path} is empty; its first line names columns: {','.join(REQUIRED)}")
    place, names = rows[0]
    if len(names) == 1 and re.search(r"[;\t]", names[0]):
        raise TrackingError(f"{path}, {place}: put commas between columns, and points in numbers")
    return _table_runs(path.name, rows[0], rows[1:])


def _read_rows(path: Path) -> list[Row]:
    """Return the rows of a CSV file that are not empty."""
    try:
        content = read_regular(path, MOST_BYTES, follow=True)
    except OSError as error:
        raise TrackingError(f"{path} cannot be read: {error.strerror}") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise TrackingError(f"{path}, line {line}: is not UTF-8 text; save it as UTF-8") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = [(f"line {reader.line_num}", cells) for cells in reader]
    except csv.Error as error:
        raise TrackingError(f"{path}, line {reader.line_num}: is no CSV ({error})") from None
    return [row for row in rows if any(cell.strip() for cell in row[1])]


def check_table(part: SweepRuns, spec: ComparisonSpec) -> None:
    """Raise TrackingError if a table lacks the reference, or a method with several settings lacks
    the values to select by."""
    rule = spec.rule
    methods = dict.fromkeys(record.algorithm for record in part.records)
    if spec.reference not in methods:
        hint = unknown_name("method", spec.reference, methods)
        raise TrackingError(
            f"{part.sweep}: {hint} Say with which of them to compare by --reference (in Python: "
            "reference=)"
        )
    for method in methods:
        own = [record for record in part.records if record.algorithm == method and record.trains]
        settings = dict.fromkeys(str(record.params.get(_SETTING, "")) for record in own)
        values = (record.value(rule.metric, rule.merge) for record in own)
        if len(settings) > 1 and all(value is None for value in values):
            raise TrackingError(
                f"{part.sweep}: {method} has {len(settings)} settings ({', '.join([*settings][:5])}"
                f"{', ...' if len(settings) > 5 else ''}) and no value to choose one by; add the "
                "column selected_by with the accuracy on validation images, or leave one setting"
            )


def _table_runs(name: str, header: Row, rows: Sequence[Row]) -> SweepRuns:
    columns, unread = _columns(name, *header)
    if not rows:
        raise TrackingError(f"{name} has no row below its columns")
    if len(rows) > MOST_ROWS:
        raise TrackingError(f"{name} has more than {MOST_ROWS} rows, the most that are compared")
    mistakes: list[str] = []
    lines = []
    for place, cells in rows:
        try:
            lines.append(_line(place, columns, cells))
        except ValueError as error:
            mistakes.append(f"{place}: {error}")
    in_percent = any(number > 1 for line in lines for number in line.numbers.values())
    unit = 100 if in_percent else 1
    _refuse(name, [*mistakes, *(_wrong_units(lines) if in_percent else ()), *_repeated(lines)])
    zero_shot = [*_zero_shot(name, lines, unit)]
    start = zero_shot[0].metrics[OOD] if zero_shot else None
    records = [*zero_shot, *_trained(name, lines, unit, start)]
    taken = "percent" if in_percent else "fractions: none is above 1"
    warnings = [f"the accuracies of {name} are taken as {taken}"]
    if unread:
        warnings.append(f"columns of {name} that are not read: {', '.join(unread)}")
    return SweepRuns(name, records, warnings=tuple(warnings))


def _refuse(name: str, mistakes: Sequence[str]) -> None:
    """Raise TrackingError with all mistakes; do nothing without a mistake."""
    if mistakes:
        listed = [f"{name}, {mistake}" for mistake in mistakes[:MOST_MISTAKES]]
        if more := len(mistakes) - len(listed):
            listed.append(f"and {more} more")
        raise TrackingError("\n".join(listed))


def _columns(name: str, place: str, header: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return all columns in order, known ones in lower case; then the unknown ones, which are not
    read. Raises TrackingError for missing, repeated or misspelt columns."""
    stripped = (column.strip() for column in header)
    columns = [column.lower() if column.lower() in COLUMNS else column for column in stripped]
    mistakes = [
        f"there is no column {column!r}; those needed are {', '.join(REQUIRED)}"
        for column in REQUIRED
        if column not in columns
    ]
    unread = []
    for column in dict.fromkeys(columns):
        if columns.count(column) > 1:
            mistakes.append(f"the column {column!r} stands there twice")
        if column not in COLUMNS and not _SHIFT.fullmatch(column):
            hint = unknown_name("column", column, COLUMNS)
            if "did you mean" in hint:
                mistakes.append(hint)
            unread.append(column[:MOST_CHARACTERS])
    _refuse(name, [f"{place}: {mistake}" for mistake in mistakes])
    return columns, unread


def _line(place: str, columns: Sequence[str], cells: Sequence[str]) -> _Line:
    """Parse one row of the table. Raises ValueError that names the mistake."""
    if len(cells) != len(columns):
        raise ValueError(f"{len(cells)} cells for {len(columns)} columns")
    texts = {column: cell.strip() for column, cell in zip(columns, cells, strict=True)}
    method, setting = texts["method"], texts.get("setting", "")
    for column, text in (("method", method), ("setting", setting)):
        if len(text) > MOST_CHARACTERS or not text.isprintable():
            raise ValueError(f"{column} must be one line of at most {MOST_CHARACTERS} characters")
    if not method:
        raise ValueError("method is empty")
    seed = _seed(texts["seed"])
    alpha = _number("alpha", texts["alpha"], 1) if texts.get("alpha") else 1.0
    if method == ZERO_SHOT and (setting or alpha not in (0, 1)):
        raise ValueError(f"{ZERO_SHOT} has neither a setting nor an alpha")
    if method != ZERO_SHOT and seed is None:
        raise ValueError(f"seed is empty, which only {ZERO_SHOT} may have")
    numbers = {
        column: _number(column, texts[column], 100)
        for column in columns
        if column in ACCURACIES or _SHIFT.fullmatch(column)
        if texts[column] or column in REQUIRED
    }
    is_chosen_among = alpha == 1 and method != ZERO_SHOT
    if is_chosen_among and "selected_by" in texts and "selected_by" not in numbers:
        raise ValueError("selected_by is empty")
    return _Line(place, (method, setting), seed, 0.0 if method == ZERO_SHOT else alpha, numbers)


def _seed(text: str) -> int | None:
    if not text:
        return None
    if not re.fullmatch(r"[0-9]{1,18}(\.0*)?", text):  # pandas writes 3.0 beside missing ones
        raise ValueError(f"seed {text[:MOST_CHARACTERS]!r} is no whole number")
    return int(text.partition(".")[0])


def _number(column: str, text: str, most: int) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        what = f"{text[:MOST_CHARACTERS]!r} is no number" if text else "is empty"
        raise ValueError(f"{column} {what}")
    if not 0 <= number <= most:
        allowed = "0 to 1" if most == 1 else "0 to 1 as fractions, 0 to 100 in percent"
        raise ValueError(f"{column} {number:g} is out of range: {allowed}")
    return number


def _wrong_units(lines: Sequence[_Line]) -> Iterator[str]:
    """Yield a message for each value that is a fraction in a table of percentages."""
    numbers = [(line.place, *item) for line in lines for item in line.numbers.items()]
    largest = max(numbers, key=lambda cell: cell[2])
    for place, column, number in numbers:
        if 0 < number <= 1:
            yield (
                f"{place}: {column} {number:g} is a fraction, and {largest[1]} {largest[2]:g} in "
                f"{largest[0]} is in percent; write all in percent, or all as fractions"
            )


def _repeated(lines: Sequence[_Line]) -> Iterator[str]:
    """Yield a message for each line whose model an earlier line has already."""
    first: dict[object, str] = {}
    for line in lines:
        key = (*line.setting, line.seed, _label(line.alpha))
        if key in first:
            yield f"{line.place}: the same method, setting, seed and alpha as in {first[key]}"
        first.setdefault(key, line.place)


def _label(alpha: float) -> str | None:
    return None if alpha == 1 else f"{WISE}@{exact_text(alpha)}"


def _zero_shot(name: str, lines: Iterable[_Line], unit: float) -> Iterator[RunRecord]:
    """Yield the run of the zero-shot model, which every line of alpha 0 describes. Raises
    TrackingError where two lines of alpha 0 differ."""
    starts = [line for line in lines if line.alpha == 0]
    _refuse(
        name,
        [
            f"{line.place}: other accuracies of zero-shot than in {starts[0].place}"
            for line in starts
            if not line.is_same_model(starts[0])
        ],
    )
    for first in starts[:1]:
        yield RunRecord(
            algorithm=ZERO_SHOT,
            params={},
            seed=None,
            digest=f"{name}, {first.place}",
            state="done",
            role="baseline",
            # It is not chosen among, so no value of selection.
            metrics={metric: v for metric, v in first.as_metrics(unit).items() if metric != VAL},
        )


def _trained(
    name: str, lines: Iterable[_Line], unit: float, start: float | None
) -> Iterator[RunRecord]:
    """Yield the run of each trained model with its merges; settings are numbered as trials."""
    models: dict[tuple[Setting, int | None], dict[str | None, _Line]] = {}
    for line in lines:
        if line.alpha > 0:
            models.setdefault((line.setting, line.seed), {})[_label(line.alpha)] = line
    lacking = [
        f"{line.place}: alpha {line.alpha:g} of {line.setting[0]} without the line of its unmerged "
        "model, of the same setting and seed, whose alpha is 1 or empty"
        for own in models.values()
        for line in own.values()
        if None not in own
    ]
    _refuse(name, lacking)
    trials = {setting: number for number, setting in enumerate(dict.fromkeys(s for s, _ in models))}
    for (setting, seed), own in models.items():
        metrics = {label: line.as_metrics(unit, start) for label, line in own.items()}
        yield RunRecord(
            algorithm=setting[0],
            params={_SETTING: setting[1]} if setting[1] else {},
            seed=seed,
            digest=f"{name}, {own[None].place}",
            state="done",
            role="trial",
            trial=trials[setting],
            metrics=metrics.pop(None),
            merges={str(label): values for label, values in metrics.items()},
        )
