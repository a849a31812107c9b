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
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from carft_sweep.tracking.comparison.compare import compare
from carft_sweep.tracking.report import formats
from carft_sweep.tracking.report.html import cell
from carft_sweep.tracking.report.terminal import terminal
from tests.tracking.made_up import KL, arm, kl_sweep, metrics, run

PDFLATEX = shutil.which("pdflatex")
SPECIAL = "a_b%c&d#e$f{g}h~i^j\\k<l>m|n"
OOD = "ood/mean/top1"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", " =", "x\r="])
def test_no_cell_of_the_csv_is_a_formula(start: str) -> None:
    hostile = f"{start}HYPERLINK(1)"
    params = {hostile: hostile, KL: -1.0}
    records = arm(hostile, [0.6] * 2, [0.4] * 2, trial=0, params=params)
    lines = list(csv.reader(io.StringIO(formats.to_csv(compare(records, sweep="s")), newline="")))
    cells = [cell for line in lines for cell in line]
    assert sum("HYPERLINK" in cell for cell in cells) >= 3, "head, algorithm, parameter"
    assert "-1.0" in cells, "a number stays one"
    assert {len(line) for line in lines} == {len(lines[0])}, "none begins a line of its own"
    formulas = {cell for cell in cells if cell.lstrip().startswith(("=", "+", "-", "@"))}
    assert formulas <= {"-1.0"}


def test_a_number_of_csv_stays_what_it_is_where_other_rows_lack_it_or_it_is_none() -> None:
    records = [
        run("fine_tune", 0, metrics(0.6, 0.4)),
        run("car_ft", 0, metrics(0.6, math.nan), trial=0, params={"data.batch_size": 32}),
    ]
    text = formats.to_csv(compare(records, sweep="s"))
    of_rows = {line["algorithm"]: line for line in csv.DictReader(io.StringIO(text))}
    sizes = [of_rows[name]["data.batch_size"] for name in ("car_ft", "fine_tune")]
    assert (*sizes, of_rows["car_ft"]["ood/mean/top1"]) == ("32", "", "")


@given(st.text(max_size=30))
def test_no_name_breaks_out_of_its_line(name: str) -> None:
    odd = run("car_ft", 0, metrics(0.6, 0.3), trial=0, params={"prompts.classes": name})
    lines = formats.latex(compare([odd], sweep=name)).split("\n")
    assert sum(not line.startswith("% ") for line in lines) == 9 - 1 + 2


def test_no_name_is_an_option_of_the_row_before() -> None:
    for start in ("[", "*"):
        named = [replace(record, algorithm=f"{start}x]") for record in kl_sweep(1)]
        assert not re.search(r"\\\\\s*[\[*]", formats.latex(compare(named, sweep="s")))


@pytest.mark.skipif(PDFLATEX is None, reason="needs LaTeX: texlive-latex-recommended")
def test_it_compiles(tmp_path: Path) -> None:
    odd = run("car_ft", 0, metrics(0.6, 0.3), trial=9, params={"prompts.classes": SPECIAL})
    tables = [compare(kl_sweep(), sweep="kl"), compare([*kl_sweep(3), odd], sweep=SPECIAL)]
    document = tmp_path / "table.tex"
    begin = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    text = "\n\n".join(map(formats.latex, tables))
    document.write_text(f"{begin}{text}\n\\end{{document}}\n", encoding="utf-8")
    command = [str(PDFLATEX), "-interaction=nonstopmode", "-halt-on-error", document.name]
    # Its log is not all UTF-8.
    options: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace"}
    done = subprocess.run(command, cwd=tmp_path, timeout=60, check=False, **options)
    assert done.returncode == 0, done.stdout[-2000:]
    assert document.with_suffix(".pdf").stat().st_size > 10_000


def test_each_row_and_each_model_of_a_run_has_a_line_and_failed_ones_have_no_numbers() -> None:
    lost = run("car_ft", 9, None, trial=0, params={KL: 0.1})
    comparison = compare([*kl_sweep(), lost], sweep="kl")
    frame = formats.rows_frame(comparison)
    columns = ["setting", OOD, "selected"]
    expected = [(row.arm.label, row.metric(OOD).mean, row.selected) for row in comparison.rows]
    assert [*frame[columns].itertuples(index=False, name=None)] == expected
    unmerged = frame[frame["merge"].isna() & (frame["algorithm"] == "car_ft")]
    assert list(unmerged[KL]) == [0.1, 0.3, 1.0, 3.0]
    assert frame[frame["algorithm"] == "fine_tune"][KL].isna().all()
    of_models = formats.runs_frame(comparison)
    done = of_models[of_models["state"] == "done"]
    assert len(done[done["merge"].isna()]) == 1 + 5 * 5
    assert len(done[done["merge"] == "wise_ft@0.5"]) == 5 * 5
    failed = of_models[of_models["state"] == "failed"]
    assert list(failed["seed"]) == [9]
    assert failed[OOD].isna().all()
    # The mean over runs is that of the table.
    of_runs = done[done["merge"].isna()].groupby("setting")[OOD].mean()
    of_rows = formats.rows_frame(comparison).set_index("setting")[OOD]
    assert of_runs["fine_tune"] == pytest.approx(of_rows["fine_tune"])
    assert str(of_models["seed"].dtype) == "Int64"
    for frame_of in (formats.rows_frame, formats.runs_frame):
        assert frame_of(compare([], sweep="none")).empty


def test_every_table_says_of_which_family_version_and_digest_it_is() -> None:
    facts = {"family": "icon_shift v2", "data": "a1b2c3" + "0" * 58}
    comparison = compare([replace(record, facts=facts) for record in kl_sweep()], sweep="kl_weight")
    name = "icon_shift v2 a1b2c3"
    title = f"kl_weight on {name}: settings chosen by"
    assert terminal(comparison).startswith(title)
    for written in (formats.markdown, formats.latex, cell):
        assert title in written(comparison).replace(r"\_", "_")
    assert formats.to_json(comparison)["data"] == (name,)
    lines = csv.DictReader(io.StringIO(formats.to_csv(comparison)))
    assert {line["data"] for line in lines} == {name}


HOSTILE = (
    *("![a](http://elsewhere/a.png)", "[c](javascript:alert(1))", "[a\\](http://elsewhere)"),
    *("x\n\n[a]: http://elsewhere\n\n![a]", "<img src=http://elsewhere>", "a\\|elsewhere"),
)


@pytest.mark.parametrize("hostile", HOSTILE)
def test_no_name_puts_a_link_or_an_image_into_markdown(hostile: str) -> None:
    car_ft = [record for record in kl_sweep() if record.algorithm == "car_ft"]
    named = [replace(record, algorithm=hostile) for record in car_ft]
    comparison = replace(compare([*kl_sweep(), *named], sweep="kl_weight"), warnings=(hostile,))
    text = formats.markdown(comparison)
    assert "elsewhere" in text or "alert" in text
    assert not re.search(r"\]\(|<|^\s*\[a\]:", text, re.MULTILINE)
    assert r"\\|" not in text.replace(r"\\\|", "")
