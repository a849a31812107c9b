"""Write docs/rivals.csv from the sweeps `rivals` and `rivals_vit` of a home.

python -m tools.rivals HOME [SWEEP ...]   # those that are done
make reference          # the table of docs/rivals.md anew
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator
from pathlib import Path

from carft_sweep import load_comparison
from carft_sweep.tracking.comparison.compare import Comparison, Row
from carft_sweep.tracking.comparison.runs import Arm, setting

FILE = Path(__file__).parents[1] / "docs" / "rivals.csv"
MODELS = {"rivals": "builtin", "rivals_vit": "builtin_vit"}
REFERENCES = ("fine_tune", "car_ft")
FIRST = {"zero_shot": 0, "fine_tune": 1, "car_ft": 2, "greedy_soup": 4, "model_stock": 5}
"""The order of the rows; the others, by name, have 3."""


def numbers(prefix: str, row: Row | None) -> Iterator[tuple[str, str]]:
    """Yield ID and OOD accuracy in percent, and half of their intervals, by column."""
    for name, metric in (("id", "id/test/top1"), ("ood", "ood/mean/top1")):
        value = None if row is None else row.metric(metric)
        mean, half = (None, None) if value is None else (value.mean, value.half_width)
        yield f"{prefix}{name}", "" if mean is None else f"{100 * mean:.1f}"
        yield f"{prefix}{name}_half", "" if half is None else f"{100 * half:.1f}"


def claim(arm: Arm, comparison: Comparison, reference: str) -> Iterator[tuple[str, str]]:
    """Yield the gain of the candidate's curve over the reference's in points, by column."""
    verdicts = comparison.curve_verdicts
    verdict = next((item for item in verdicts if item.pair.candidate.key == arm.key), None)
    ends = None if verdict is None else verdict.interval
    difference = None if verdict is None else verdict.pair.difference
    yield f"over_{reference}", "" if difference is None else f"{100 * difference:+.2f}"
    for name, end in zip(("from", "to"), ends or (None, None), strict=False):
        yield f"{name}_{reference}", "" if end is None else f"{100 * end:+.2f}"
    yield f"state_{reference}", "" if verdict is None else verdict.state


def rows(sweep: str, home: str) -> Iterator[dict[str, str]]:
    """Yield a row for each method at its chosen setting, on fresh seeds, and for each soup."""
    compared = {name: load_comparison(sweep, home=home, reference=name) for name in REFERENCES}
    table = compared["fine_tune"].rows
    merged = {row.setting: row for row in table if row.arm.merge == "wise_ft@0.5"}
    for row in table:
        arm = row.arm
        is_judged = arm.confirms or (arm.algorithm in FIRST and not arm.trains)
        if arm.merge or not row.n or not is_judged:
            continue
        yield {
            "model": MODELS[sweep],
            "method": arm.algorithm,
            "setting": setting(arm.params),
            "seeds": str(row.n),
            **dict(numbers("", row)),
            **dict(numbers("wise_", merged.get(row.setting))),
            **{k: v for name in REFERENCES for k, v in claim(arm, compared[name], name)},
        }


def main(home: str, *sweeps: str) -> None:
    """Write the file from the sweeps of `home`."""
    judged = [row for sweep in sweeps or MODELS for row in rows(sweep, home)]
    judged.sort(key=lambda row: (row["model"], FIRST.get(row["method"], 3), row["method"]))
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*judged[0]], lineterminator="\n")
        writer.writeheader()
        writer.writerows(judged)


if __name__ == "__main__":
    main(*sys.argv[1:])
