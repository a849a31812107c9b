"""A table of anybody's numbers is judged as runs with these numbers are, or refused by line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from carft_sweep.sweeps.results.loading import load_comparison
from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.pooling import compare_sweeps
from carft_sweep.tracking.comparison.result_table import MOST_ROWS, check_table, read_table
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import USUAL, ComparisonSpec
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.report.formats import rows_frame, to_json
from tests.docs.blocks import ROOT
from tests.tracking.made_up import KL, kl_sweep, known

HEADER = "method,setting,seed,alpha,id,ood,selected_by,ood/outline,ood/flat_emoji,ood/pixel"
SMALL = "method,seed,id,ood\nzero_shot,,0.5,0.3\n" + "".join(
    f"{method},{seed},{0.6 + seed / 100},{ood + seed / 90}\n"
    for method, ood in (("fine_tune", 0.4), ("car_ft", 0.45))
    for seed in range(5)
)


def cells(record: RunRecord) -> Iterable[list[object]]:
    """The lines of a run and its merged models."""
    weight = record.params.get(KL)
    setting = "" if weight is None else f"weight {weight}"
    seed = "" if record.seed is None else record.seed
    shifts = ("outline", "flat_emoji", "pixel")
    measured = ("id/test", "ood/mean", "id/val", *(f"ood/{shift}" for shift in shifts))
    for label, own in {"": record.metrics, **record.merges}.items():
        numbers = [own[f"{split}/top1"] for split in measured]
        yield [record.algorithm, setting, seed, label.rpartition("@")[2], *numbers]


def write(path: Path, lines: Iterable[Sequence[object]], header: str = HEADER) -> Path:
    text = io.StringIO()
    csv.writer(text).writerows([header.split(","), *lines])
    path.write_text(text.getvalue())
    return path


def judged(comparison: Comparison) -> dict[str, Any]:
    """All that is said, but for where the numbers are from."""
    return {**to_json(comparison), "sweep": "", "warnings": ()}


def as_in_a_table(record: RunRecord) -> RunRecord:
    """The run without what a table has no column for; no method is only a baseline there."""
    if record.seed is None:
        gone = ("id/val/top1", "gain/ood/top1")
        measured = {name: value for name, value in record.metrics.items() if name not in gone}
        return replace(record, metrics=measured)
    trial = 0 if record.trial is None else record.trial + 1
    params = {"table.setting": f"weight {record.params[KL]}"} if record.params else {}
    return replace(record, role="trial", trial=trial, params=params)


def test_a_table_of_a_sweeps_numbers_has_the_sweeps_verdict(tmp_path: Path) -> None:
    records = kl_sweep()
    file = write(tmp_path / "kl.csv", [line for record in records for line in cells(record)])
    of_table = compare_sweeps([read_table(file)])
    assert judged(of_table) == judged(compare(map(as_in_a_table, records)))
    settings = [f"car_ft setting=weight {weight}" for weight in (0.1, 0.3, 1.0, 3.0)]
    labels = [row.arm.label for row in of_table.rows if row.arm.merge is None]
    assert labels == ["zero_shot", "fine_tune", *settings]
    assert of_table.verdicts[0].tried == 4


def test_percent_says_what_fractions_say(tmp_path: Path) -> None:
    lines = [[*line] for record in kl_sweep() for line in cells(record)]
    fractions = read_table(write(tmp_path / "a.csv", lines))
    in_percent = [[*line[:4], *(100 * float(str(number)) for number in line[4:])] for line in lines]
    percent = read_table(write(tmp_path / "b.csv", in_percent))
    for as_fraction, as_percent in zip(fractions.records, percent.records, strict=True):
        assert as_percent.metrics == pytest.approx(as_fraction.metrics)
        assert as_fraction.merges.keys() == as_percent.merges.keys()
    (of_fractions,), (of_percent,) = fractions.warnings, percent.warnings
    assert of_fractions == "the accuracies of a.csv are taken as fractions: none is above 1"
    assert of_percent == "the accuracies of b.csv are taken as percent"


def table(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "r.csv"
    file.write_text(text, encoding="utf-8")
    return file


COLUMNS, ALPHAS = "method,seed,id,ood\n", "method,seed,alpha,id,ood\n"
SETTINGS = "method,setting,seed,id,ood\n"
TWO_SETTINGS = f"{SETTINGS}fine_tune,,0,.5,.4\ncar_ft,a,0,.5,.4\ncar_ft,b,0,.5,.4\n"


@pytest.mark.parametrize(
    ("text", "reference", "message"),
    [
        (SMALL, "car_tf", r"'car_tf'; did you mean 'car_ft'\?.*--reference"),
        (COLUMNS + "A,0,.5,.4\nB,0,.5,.4", None, r"'fine_tune'; Known: A, B\."),
        (TWO_SETTINGS, None, r"car_ft has 2 settings \(a, b\).*selected_by"),
    ],
)
def test_a_reference_that_no_line_has_and_a_choice_that_nothing_makes_are_refused(
    tmp_path: Path, text: str, reference: str | None, message: str
) -> None:
    spec = USUAL if reference is None else ComparisonSpec(reference=reference)
    with pytest.raises(TrackingError, match=message):
        check_table(read_table(table(tmp_path, text)), spec)


def test_zero_shot_may_be_the_reference_though_nothing_chooses_it(tmp_path: Path) -> None:
    text = SMALL.replace("ood\n", "ood,selected_by\n", 1).replace(".3\n", ".3,\n", 1)
    lines = [f"{line},0.5" if line[:4] in ("fine", "car_") else line for line in text.splitlines()]
    part = read_table(table(tmp_path, "\n".join(lines)))
    comparison = compare_sweeps([part], ComparisonSpec(reference="zero_shot"))
    assert {verdict.pair.reference.label for verdict in comparison.verdicts} == {"zero_shot"}


def test_a_column_named_setting_is_no_label(tmp_path: Path) -> None:
    text = f"{SETTINGS}fine_tune,a,0,.5,.4\ncar_ft,b,0,.5,.4\n"
    comparison = compare_sweeps([read_table(table(tmp_path, text))])
    assert [*rows_frame(comparison).setting] == ["fine_tune setting=a", "car_ft setting=b"]
    assert "not the selected one" not in comparison.verdict, "since none is selected"


@pytest.mark.parametrize(
    "lines",
    [
        "zero_shot,,,.5,.3\n",
        "zero_shot,0,,.5,.3\nzero_shot,1,,.5,.3\n",
        "fine_tune,0,0,.5,.3\n",
        "fine_tune,0,0,.5,.3\nfine_tune,1,0,.5,.3\n",
        "zero_shot,,,.5,.3\nfine_tune,1,0,.5,.3\n",
    ],
)
def test_alpha_0_is_the_zero_shot_model_which_stands_once(tmp_path: Path, lines: str) -> None:
    text = f"method,seed,alpha,id,ood\n{lines}fine_tune,0,,.6,.4\nfine_tune,1,1,.6,.4\n"
    records = read_table(table(tmp_path, text)).records
    rows = [(run.algorithm, run.seed, dict(run.merges), run.is_zero_shot) for run in records]
    tuned: list[Any] = [("fine_tune", 0, {}, False), ("fine_tune", 1, {}, False)]
    assert rows == [("zero_shot", None, {}, True), *tuned]
    assert records[1].metrics["gain/ood/top1"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; its first line names columns: method,seed,id,ood"),
        (COLUMNS, "has no row below its columns"),
        ("method,id,ood\n", "line 1: there is no column 'seed'; those needed are method, seed"),
        ("method,seed,id,ood,seting\n", "line 1: unknown column 'seting'; did you mean 'setting'?"),
        ("method;seed;id;ood\n", "line 1: put commas between columns"),
        (COLUMNS + 'a,0,"5', "line 2: is no CSV (unexpected end of data)"),
        (COLUMNS + "\na,0,.5\n", "line 3: 3 cells for 4 columns"),
        (COLUMNS + ",0,.5,.4\n", "line 2: method is empty"),
        (COLUMNS + "a\x1b,0,.5,.4\n", "line 2: method must be one line of at most 100"),
        (COLUMNS + "a,,.5,.4\n", "line 2: seed is empty, which only zero_shot may have"),
        (COLUMNS + "a,x,.5,.4\n", "line 2: seed 'x' is no whole number"),
        (COLUMNS + 'a,0,.5,"0,4"\n', "line 2: ood '0,4' is no number"),
        (COLUMNS + "a,0,50,101\n", "line 2: ood 101 is out of range"),
        (
            COLUMNS + "a,0,50,40\na,1,0.5,41\n",
            "line 3: id 0.5 is a fraction, and id 50 in line 2 is in percent",
        ),
        (
            COLUMNS + "a,0,.5,.4\nb,0,.5,.4\na,0,.5,.4\n",
            "line 4: the same method, setting, seed and alpha as in line 2",
        ),
        (ALPHAS + "a,0,1.5,.5,.4\n", "line 2: alpha 1.5 is out of range: 0 to 1"),
        (
            ALPHAS + "a,0,1,.5,.4\na,1,.5,.5,.4\n",
            "line 3: alpha 0.5 of a without the line of its unmerged model",
        ),
        (
            ALPHAS + "zero_shot,,,.5,.4\na,1,0,.5,.3\n",
            "line 3: other accuracies of zero-shot than in line 2",
        ),
        ("method,seed,id,ood,selected_by\na,0,.5,.4,\n", "line 2: selected_by is empty"),
        (SETTINGS + "zero_shot,x,,.5,.4\n", "line 2: zero_shot has neither a setting nor an alpha"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(TrackingError, match=rf"r\.csv,? {re.escape(message)}"):
        read_table(table(tmp_path, text))


def test_all_mistakes_are_named_at_once_and_files_that_are_no_tables_are_refused(
    tmp_path: Path,
) -> None:
    rows = "".join(f"a,{seed},.5,x\n" for seed in range(12))
    with pytest.raises(TrackingError) as raised:
        read_table(table(tmp_path, f"{COLUMNS}{rows}"))
    first, *_, last = lines = str(raised.value).splitlines()
    assert (first, last) == ("r.csv, line 2: ood 'x' is no number", "and 2 more")
    assert len(lines) == 11

    def refused(file: Path, message: str) -> None:
        with pytest.raises(TrackingError, match=message):
            read_table(file)

    refused(tmp_path / "no.csv", r"no\.csv cannot be read: No such file")
    refused(tmp_path, "is not a regular file")
    file = tmp_path / "latin.csv"
    file.write_bytes(f"{COLUMNS}a,0,.5,.4\nÄ,0,.5,.4\n".encode("latin-1"))
    refused(file, r"latin\.csv, line 3: is not UTF-8 text")
    file.write_bytes(b"x" * (1 << 24))
    refused(file, "at most 8388608 are read")
    too_long = "".join(f"a,{seed},.5,.4\n" for seed in range(MOST_ROWS + 1))
    refused(table(tmp_path, f"{COLUMNS}{too_long}"), "more than 20000 rows")


def test_what_spreadsheets_write_is_read(tmp_path: Path) -> None:
    text = "\ufeffMethod, SEED ,Id,OOD,notes\r\na,0,50,40,first\r\n\r\n b ,1.0,51,41,\r\n"
    file = tmp_path / "r.csv"
    file.write_bytes(text.encode())
    part = read_table(file)
    assert [(record.algorithm, record.seed) for record in part.records] == [("a", 0), ("b", 1)]
    assert part.warnings[1] == "columns of r.csv that are not read: notes"


def test_a_frame_is_what_its_csv_is(tmp_path: Path) -> None:
    file = write(tmp_path / "kl.csv", [line for record in kl_sweep() for line in cells(record)])
    frame = pd.read_csv(file)
    of_file, of_frame = (load_comparison(source) for source in (file, frame))
    assert judged(of_frame) == judged(of_file)
    assert of_frame.sweep == "DataFrame"
    of_path = to_json(load_comparison(str(file), conditions=["setting=weight 1.0"]))
    labels = [row["label"] for row in of_path["rows"] if row["algorithm"] == "car_ft"]
    assert labels[0] == "car_ft setting=weight 1.0"
    frame.loc[3, "ood"] = None
    with pytest.raises(TrackingError, match="DataFrame, row 3: ood is empty"):
        load_comparison(frame)
    with pytest.raises(TrackingError, match="'carft'; did you mean 'car_ft'"):
        load_comparison(file, reference="carft")
    with pytest.raises(TypeError, match="a table is compared alone"):
        load_comparison(file, tracking_uri="http://127.0.0.1:9")
    with pytest.raises(TypeError, match="a table is compared alone"):
        load_comparison(file, "toy")


def test_the_example_of_the_page_has_the_differences_of_its_lines(tmp_path: Path) -> None:
    text = (ROOT / "docs/tables.md").read_text()
    example = text.partition("<<END\n")[2].partition("END\n")[0]
    part = read_table(table(tmp_path, example))
    check_table(part, USUAL)
    (verdict,) = compare_sweeps([part]).verdicts
    lines = pd.read_csv(io.StringIO(example)).query("alpha == 1")
    means = lines.groupby("method")[["id", "ood"]].mean() / 100
    change = means.loc["car_ft"] - means.loc["fine_tune"]
    for test, column in ((verdict.pair.id, "id"), (verdict.pair.ood, "ood")):
        assert known(test).mean == pytest.approx(change[column])
    assert {label for record in part.records for label in record.merges} == {"wise_ft@0.5"}
