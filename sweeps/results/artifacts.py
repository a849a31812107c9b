"""The files of a sweep that has ended: in its folder, and as artifacts of its run in a store."""

from __future__ import annotations

from pathlib import Path

from carft_sweep.carft_core.files import write_json, write_text
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.pooling import SweepRuns, compare_sweeps
from carft_sweep.tracking.report.formats import markdown, to_csv, to_json
from carft_sweep.tracking.report.published_zero_shot import check_zero_shot
from carft_sweep.tracking.report.table import TableOptions

COMPARISON, PAGE = "comparison.json", "report.html"
FIGURES = ("id_ood.png", "response.png")
"""The two charts of the report that the sweep's own page in a store shows."""
COMPARED = ("comparison.md", "comparison.csv", COMPARISON)
FILES = (*COMPARED, PAGE, *FIGURES)


def write_comparison(folder: Path, part: SweepRuns) -> Comparison:
    """Compare the runs of a sweep, write the comparison into the sweep's folder, for people and
    programs, and return it."""
    compared, sentences = check_zero_shot(compare_sweeps([part]), part.fields)
    options = TableOptions(published_zero_shot=sentences)
    table, rows, plain = COMPARED
    write_text(folder / table, markdown(compared, options=options))
    write_text(folder / rows, to_csv(compared, options=options))
    write_json(folder / plain, to_json(compared, options=options))
    return compared
