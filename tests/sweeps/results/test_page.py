"""The report of a sweep: what the command writes, what is in it, and that it harms no sweep."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from carft_core.files import write_json
from sweeps.cli import main
from sweeps.home import Home
from sweeps.ledger import generations as executions
from sweeps.ledger.runs import Runs
from sweeps.ledger.trials import find_ledger
from sweeps.results import report as sweep_page
from sweeps.results.records import comparison
from sweeps.results.report import look_at_data, provenance
from tests.sweeps.shown_home import NAME, make
from tracking.charts import CHARTS, figures
from tracking.evidence.data import Evidence


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A finished sweep over two parameters, with predictions of every run."""
    made = Home(tmp_path_factory.mktemp("shown") / "home")
    make(made)
    return made


def test_the_command_writes_page_and_figures_and_says_where(
    home: Home,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "figures"

    def write(evidence: Evidence, place: Path) -> list[Path]:  # the real one takes seconds
        return [place / f"{chart.name}.svg" for chart in CHARTS.values() if chart.draw(evidence)]

    monkeypatch.setattr(figures, "write", write)
    code = main(["--home", str(home.path), "report", NAME, "--figures", str(folder), "--json"])
    assert code == 0
    told = json.loads(capsys.readouterr().out)
    page = Path(told["page"])
    assert page == home.sweep(NAME) / "report.html"
    text = page.read_text()
    for name in (*CHARTS, "gallery", "provenance"):
        assert f'id="{name}"' in text, name
    assert text.count("data:image/png;base64") == 24
    assert str(home.path) not in text
    assert told["figures"] == [str(folder / f"{name}.svg") for name in CHARTS]
    assert told["verdict"].startswith("too few seeds (3")


def test_another_reference_and_another_place(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "page.html"
    words = ["--home", str(home.path), "report", NAME, "--out", str(out)]
    assert main([*words, "--reference", "zero_shot"]) == 0
    said = capsys.readouterr().out
    assert said.endswith(f"The report is {out}\n")
    assert "minus zero_shot" in said
    assert "carft-sweep report shown --reference=zero_shot" in out.read_text()


def test_several_sweeps_are_one_report(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    other = home.sweep("other")
    shutil.copytree(home.sweep(NAME), other)
    mirror = other / "ledger.jsonl"
    mirror.write_text(mirror.read_text().replace(f'"sweep":"{NAME}"', '"sweep":"other"'))
    try:
        assert main(["--home", str(home.path), "report", NAME, "other", NAME]) == 0
    finally:
        shutil.rmtree(other)
    page = home.path / "shown+other.report.html"
    assert capsys.readouterr().out.endswith(f"The report is {page}\n")
    text = page.read_text()
    assert "<h1>shown + other</h1>" in text
    assert "37 done" in text  # every run is in both, and counts once
    assert 'id="importance"' not in text
    assert text.count("data:image/png;base64") == 24


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shwon"], "did you mean 'shown'?"),
        ([NAME, "--reference", "fine_tuen"], "did you mean 'fine_tune'?"),
        ([NAME, "--out", "{folder}"], "is a folder; name a file"),
        ([NAME, "--figures", "{file}"], "is a file; name a folder"),
        ([NAME, "--out", "{file}/page.html"], "--out: {file}/page.html cannot be written"),
        ([NAME, "--figures", "{file}/figures"], "--figures: {file}/figures cannot be written"),
        ([NAME, "--metric", "id/val/top"], "unknown metric 'id/val/top'"),
    ],
)
def test_a_wrong_request_is_told(
    home: Home,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    (tmp_path / "file").write_text("")
    places = {"folder": tmp_path, "file": tmp_path / "file"}
    given = [word.format(**places) for word in words]
    assert main(["--home", str(home.path), "report", *given]) == 2
    assert message.format(**places) in capsys.readouterr().err


def test_provenance_names_digests_code_and_commands_but_neither_user_nor_place(
    home: Home,
) -> None:
    executions.record_execution(home.sweep(NAME))
    executions.record_execution(home.sweep(NAME))
    sweep = find_ledger(home, NAME)
    found = provenance(home, [sweep], comparison(sweep, Runs(home.runs)))
    facts = {fact.name: fact.values for fact in found.facts}
    assert facts["runs"] == ("37 done",)
    assert facts["made"] == ("from 2026-11-25 09:46 UTC to 2026-11-25 09:47 UTC",)
    assert facts["data"][0].startswith("icon_shift_dev, sha256 ")
    assert facts["model"][0].startswith("builtin, sha256 ")
    assert [text.split(":")[0] for text in facts["training code"]] == [
        *("of zero_shot", "of fine_tune", "of car_ft")
    ]
    assert facts["shown ran with"] == facts["this page was made with"]
    assert found.commands == ("carft-sweep run sweep.yaml", "carft-sweep report shown")
    assert "kl_weight" in found.files[0].text
    assert str(Path.home()) not in repr(found) or str(Path.home()) == "/"


def test_an_execution_with_other_code_is_noted_and_a_torn_line_is_nobody(tmp_path: Path) -> None:
    executions.record_execution(tmp_path)
    (here,) = executions.executed(tmp_path)
    with (tmp_path / executions.EXECUTIONS_FILE).open("a") as file:
        other = executions.Code("abc", dirty=True, versions={"torch": "9"})
        file.write(json.dumps({"began": 1.0, **vars(other)}) + "\n" + '{"began": 2.0, "com')
    assert executions.executed(tmp_path) == [here, other]
    assert str(other) == "commit abc with changes; torch 9"
    executions.record_execution(tmp_path)
    assert executions.executed(tmp_path) == [here, other, here]


def test_data_that_has_changed_has_neither_names_nor_thumbnails_but_counts(
    home: Home, tmp_path: Path
) -> None:
    copy = Home(tmp_path / "home")
    shutil.copytree(home.path, copy.path)
    for file in copy.runs.glob("*/config.json"):
        claimed = json.loads(file.read_text())
        claimed["identity"]["data"]["digest"] = "of another time"
        write_json(file, claimed)
    sweep = find_ledger(copy, NAME)
    found = look_at_data(copy, [sweep], comparison(sweep, Runs(copy.runs)))
    assert found.class_names == ()
    assert found.pictures is not None
    assert found.pictures.counts
    assert not found.pictures.thumbnails
    assert not any(group.pictures for group in found.pictures.groups)


def test_a_report_that_fails_is_noted_and_nothing_is_raised(home: Home, tmp_path: Path) -> None:
    copy = Home(tmp_path / "home")
    shutil.copytree(home.path, copy.path)
    for file in copy.runs.glob("*/evaluations/unmerged/predictions.parquet"):
        file.write_bytes(b"torn")
    sweep = find_ledger(copy, NAME)
    notes: list[str] = []
    assert sweep_page.keep(copy, sweep, comparison(sweep, Runs(copy.runs)), notes.append) == []
    (note,) = notes
    assert note.startswith("the report was not written (TrackingError: ")
    assert "predictions.parquet holds no predictions" in note
