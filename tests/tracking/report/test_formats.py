"""The comparison as LaTeX and as frames."""

from __future__ import annotations

import csv
import io
import math
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.report.formats import (
    latex,
    markdown,
    rows_frame,
    runs_frame,
    to_csv,
    to_json,
)
from carft_sweep.tracking.report.html import cell
from carft_sweep.tracking.report.terminal import terminal
from tests.tracking.made_up import KL, kl_sweep, metrics, run

PDFLATEX = shutil.which("pdflatex")
SWEEP = compare(kl_sweep(), sweep="kl_weight")
SPECIAL = "a_b%c&d#e$f{g}h~i^j\\k<l>m|n"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", " =", "x\r="])
def test_no_cell_of_the_csv_is_a_formula(start: str) -> None:
    hostile = f"{start}HYPERLINK(1)"
    records = [
        run(hostile, seed, metrics(0.6, 0.4), trial=0, params={hostile: hostile, KL: -1.0})
        for seed in (0, 1)
    ]
    lines = list(csv.reader(io.StringIO(to_csv(compare(records, sweep="s")), newline="")))
    cells = [cell for line in lines for cell in line]
    assert sum("HYPERLINK" in cell for cell in cells) >= 3, "head, algorithm, parameter"
    assert "-1.0" in cells, "a number stays one"
    assert {len(line) for line in lines} == {len(lines[0])}, "none begins a line of its own"
    formulas = [cell for cell in cells if cell.lstrip().startswith(("=", "+", "-", "@"))]
    assert {*formulas} <= {"-1.0"}


def test_a_number_of_csv_stays_what_it_is_where_other_rows_lack_it_or_it_is_none() -> None:
    records = [
        run("fine_tune", 0, metrics(0.6, 0.4)),
        run("car_ft", 0, metrics(0.6, math.nan), trial=0, params={"data.batch_size": 32}),
    ]
    text = to_csv(compare(records, sweep="s"))
    of_rows = {line["algorithm"]: line for line in csv.DictReader(io.StringIO(text))}
    assert of_rows["car_ft"]["data.batch_size"] == "32"
    assert of_rows["fine_tune"]["data.batch_size"] == ""
    assert of_rows["car_ft"]["ood/mean/top1"] == ""


@given(st.text(max_size=30))
def test_no_name_breaks_out_of_its_line(name: str) -> None:
    odd = run("car_ft", 0, metrics(0.6, 0.3), trial=0, params={"prompts.classes": name})
    lines = latex(compare([odd], sweep=name)).split("\n")
    assert sum(not line.startswith("% ") for line in lines) == 9 - 1 + 2


@pytest.mark.parametrize("start", ["[", "*"])
def test_no_name_is_an_option_of_the_row_before(start: str) -> None:
    named = [replace(one, algorithm=f"{start}x]") for one in kl_sweep()]
    assert not re.search(r"\\\\\s*[\[*]", latex(compare(named, sweep="s")))


@pytest.mark.skipif(PDFLATEX is None, reason="needs LaTeX: texlive-latex-recommended")
def test_it_compiles(tmp_path: Path) -> None:
    odd = run("car_ft", 0, metrics(0.6, 0.3), trial=9, params={"prompts.classes": SPECIAL})
    tables = [SWEEP, compare([*kl_sweep(3), odd], sweep=SPECIAL)]
    text = "\n\n".join(latex(table) for table in tables)
    document = tmp_path / "table.tex"
    begin = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    document.write_text(f"{begin}{text}\n\\end{{document}}\n", encoding="utf-8")
    done = subprocess.run(
        [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", document.name],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",  # its log is not all UTF-8
        timeout=60,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert document.with_suffix(".pdf").stat().st_size > 10_000


OOD = "ood/mean/top1"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare([*kl_sweep(), run("car_ft", 9, None, trial=0, params={KL: 0.1})], sweep="kl")


def test_there_is_a_line_for_each_row_with_its_means_and_varied_fields(
    comparison: Comparison,
) -> None:
    frame = rows_frame(comparison)
    assert list(frame["setting"]) == [row.arm.label for row in comparison.rows]
    for row, (_, line) in zip(comparison.rows, frame.iterrows(), strict=True):
        assert line[OOD] == row.metric(OOD).mean
        assert line["selected"] == row.selected
    unmerged = frame[frame["merge"].isna() & (frame["algorithm"] == "car_ft")]
    assert list(unmerged[KL]) == [0.1, 0.3, 1.0, 3.0]
    assert frame[frame["algorithm"] == "fine_tune"][KL].isna().all()


def test_every_run_has_a_line_for_each_of_its_models_and_failed_ones_have_no_numbers(
    comparison: Comparison,
) -> None:
    frame = runs_frame(comparison)
    done = frame[frame["state"] == "done"]
    assert len(done[done["merge"].isna()]) == 1 + 5 * 5
    assert len(done[done["merge"] == "wise_ft@0.5"]) == 5 * 5
    failed = frame[frame["state"] == "failed"]
    assert list(failed["seed"]) == [9]
    assert failed[OOD].isna().all()
    # The mean over runs is that of the table.
    of_runs = done[done["merge"].isna()].groupby("setting")[OOD].mean()
    of_rows = rows_frame(comparison).set_index("setting")[OOD]
    assert of_runs["fine_tune"] == pytest.approx(of_rows["fine_tune"])
    assert str(frame["seed"].dtype) == "Int64"


def test_nothing_gives_an_empty_frame() -> None:
    empty = compare([], sweep="none")
    assert rows_frame(empty).empty
    assert runs_frame(empty).empty


def test_every_table_says_of_which_family_version_and_digest_it_is() -> None:
    facts = {"family": "icon_shift v2", "data": "a1b2c3" + "0" * 58}
    comparison = compare([replace(one, facts=facts) for one in kl_sweep()], sweep="kl_weight")
    name = "icon_shift v2 a1b2c3"
    title = f"kl_weight on {name}: settings chosen by"
    assert terminal(comparison).startswith(title)
    assert title in markdown(comparison)
    assert title in latex(comparison).replace(r"\_", "_")
    assert title in cell(comparison)
    assert to_json(comparison)["data"] == (name,)
    lines = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert {line["data"] for line in lines} == {name}


@pytest.mark.parametrize(
    "hostile",
    [
        "![a](http://elsewhere/a.png)",
        "[c](javascript:alert(1))",
        "[a\\](http://elsewhere)",
        "x\n\n[a]: http://elsewhere\n\n![a]",
        "<img src=http://elsewhere>",
        "a\\|elsewhere",
    ],
)
def test_no_name_puts_a_link_or_an_image_into_markdown(hostile: str) -> None:
    named = [replace(one, algorithm=hostile) for one in kl_sweep() if one.algorithm == "car_ft"]
    comparison = replace(compare([*kl_sweep(), *named], sweep="kl_weight"), warnings=(hostile,))
    text = markdown(comparison)
    assert "elsewhere" in text or "alert" in text
    assert not re.search(r"\]\(|<|^\s*\[a\]:", text, re.MULTILINE)
    assert r"\\|" not in text.replace(r"\\\|", "")
