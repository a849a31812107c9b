"""The report of a sweep: what the command writes, what is in it, and that it harms no sweep."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.files import write_json
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import find_ledger
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results import report as sweep_page
from carft_sweep.sweeps.results.artifacts import COMPARED, FIGURES, PAGE
from carft_sweep.sweeps.results.export import export_commands, log_missing_model, select_model
from carft_sweep.sweeps.results.records import comparison
from carft_sweep.sweeps.results.report import provenance
from carft_sweep.sweeps.results.sent_log import SentLog
from carft_sweep.tracking.charts import CHARTS
from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.location import resolve_location
from carft_sweep.tracking.store.base import RunKey
from tests.sweeps.conftest import Carft
from tests.sweeps.shown_home import NAME, make
from tests.tracking.made_up import KL, kl_sweep, metrics, run
from tests.tracking.memory_store import MemoryTracker


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    """A finished sweep over two parameters, with predictions of every run."""
    made = Home(tmp_path_factory.mktemp("shown") / "home")
    make(made)
    return made


@functools.cache
def compared_in(home: Home) -> Comparison:
    """The sweep's comparison, made once in a home: no test here changes a run."""
    return comparison(find_ledger(home, NAME), RunStore(home.runs))


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages without their charts, which take longer than all the rest."""
    monkeypatch.setattr("carft_sweep.tracking.charts.CHARTS", {})


def test_the_command_writes_page_and_figures_and_says_where(
    home: Home, tmp_path: Path, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "figures"

    def write(_: object, place: Path) -> list[Path]:  # the real one takes seconds
        return [place / f"{name}.svg" for name in CHARTS]

    monkeypatch.setattr("carft_sweep.tracking.charts.write_figures", write)
    printed = carft("--home", home.path, "report", NAME, "--figures", folder, "--json").json
    page = Path(printed["page"])
    assert page == home.sweep(NAME) / "report.html"
    text = page.read_text()
    for name in (*CHARTS, "provenance"):
        assert f'id="{name}"' in text, name
    assert str(home.path) not in text
    assert printed["figures"] == [str(folder / f"{name}.svg") for name in CHARTS]
    assert printed["verdict"].startswith("UNDECIDED: ")


def test_a_sweep_that_ends_keeps_the_page_with_its_two_main_charts(home: Home) -> None:
    ledger, notes = find_ledger(home, NAME), list[str]()
    folder = home.sweep(NAME)
    files = sweep_page.write_page(home, ledger, compared_in(home), notes.append)
    assert {*files} == {folder / name for name in (PAGE, *FIGURES)}
    assert all(file.stat().st_size > 0 for file in files)
    assert notes == []
    nothing = compare([], sweep=NAME)
    assert sweep_page.write_page(home, ledger, nothing, notes.append) == [folder / PAGE]
    assert not any((folder / name).exists() for name in FIGURES)


def sent(home: Home, experiment: str | None = "3") -> list[str]:
    """Digests of the sweep's runs, all of which MLflow was sent."""
    log = SentLog(home.sweep(NAME), resolve_location(home.path))
    log.note_experiment(experiment)
    settings = find_ledger(home, NAME).settings()
    digests = [digest for setting in settings for digest in setting.runs.values()]
    for digest in digests:
        log.record(digest, f"id-{digest[:4]}", "done")
    log.record("", "id-sweep", "done")
    log.record("arm:fine_tune", "id-arm", "arm")
    return digests


def page_of(home: Home, *options: str, for_others: bool = False) -> str:
    ledger, compared = find_ledger(home, NAME), compared_in(home)
    return sweep_page.page(home, [ledger], compared, options=options, for_others=for_others).text


@pytest.mark.usefixtures("plain")
def test_runs_link_to_their_mlflow_pages(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert "in MLflow, at" not in page_of(home)
    digests = sent(home)
    pages = {
        f"/#/experiments/3/runs/id-{digest[:4]}?workflowType=machine_learning" for digest in digests
    }
    text = page_of(home)
    assert {*re.findall(r'href="http://127.0.0.1:5000([^"]*)"', text)} == pages
    assert "at http://127.0.0.1:5000 while <code>carft-sweep ui</code> serves this home" in text
    assert "127.0.0.1" not in page_of(home, for_others=True)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.lab/")
    assert "mlflow.lab" not in page_of(home), "it was sent nothing"
    sent(home)
    served = page_of(home)
    assert {*re.findall(r'href="https://mlflow.lab([^"]*)"', served)} == pages
    assert "at https://mlflow.lab." in served
    assert "at https://mlflow.lab." in page_of(home, for_others=True)
    assert "secret" not in served
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks://profile")
    sent(home)
    assert "in MLflow, at" not in page_of(home), "whose pages have another address"


@pytest.mark.usefixtures("plain")
def test_the_page_has_the_commands_that_export_its_model_and_a_better_baseline(home: Home) -> None:
    model, text = select_model(compared_in(home)), page_of(home)
    assert f"<code>carft-sweep export {NAME}</code>" in text
    assert str(model) in text
    digits = model.run.digest[:12]
    assert f"<code>carft-sweep export {NAME} --run {digits}" in page_of(home, "--where", "lr>0")
    through = ComparisonSpec(rule=SelectionRule(merge="wise_ft@0.5"))
    (merged,) = export_commands(compare(kl_sweep(2), through, sweep=NAME), NAME, named=True)
    assert merged.command.endswith(" --merge wise_ft@0.5")
    assert [*export_commands(compare([], sweep=NAME), NAME, named=False)] == []

    def runs(algorithm: str, ood: float, **changes: Any) -> list[RunRecord]:
        near = (0.0, 0.002, -0.002, 0.001, -0.001)
        return [
            run(algorithm, seed, metrics(0.6 + offset * (ood - 0.3), ood + offset * ood), **changes)
            for seed, offset in enumerate(near)
        ]

    lost = compare(
        [*runs("fine_tune", 0.4), *runs("car_ft", 0.3, trial=0, params={KL: 1.0})], sweep=NAME
    )
    assert lost.verdicts[0].state in ("LESS ROBUST", "WORSE")
    # Where the algorithm itself was searched, what is better may be what was selected.
    swept = compare([*runs("fine_tune", 0.4, trial=0), *runs("car_ft", 0.3, trial=1)], sweep=NAME)
    assert [export.is_baseline for export in export_commands(swept, NAME, named=False)] == [False]
    selected, better = export_commands(lost, NAME, named=False)
    assert (selected.command, selected.is_baseline) == (f"carft-sweep export {NAME}", False)
    assert better.command == f"carft-sweep export {NAME} --setting fine_tune"
    assert (better.model.split(",")[0], better.is_baseline) == ("fine_tune", True)


@pytest.mark.usefixtures("plain")
def test_a_report_is_of_some_runs_or_of_sweeps(home: Home, tmp_path: Path, carft: Carft) -> None:
    page, condition = tmp_path / "page.html", "algorithm=fine_tune"
    carft("--home", home.path, "report", NAME, "--where", condition, "--out", page)
    text = page.read_text()
    assert f"only the runs where {condition}: 6 of 37; choice and verdict are of these" in text
    assert f"carft-sweep report {NAME} --where={condition}</code>" in text
    other = home.sweep("other")
    shutil.copytree(home.sweep(NAME), other)
    mirror = other / "ledger.jsonl"
    mirror.write_text(mirror.read_text().replace(f'"sweep":"{NAME}"', '"sweep":"other"'))
    try:
        output = carft("--home", home.path, "report", NAME, "other", NAME).out
    finally:
        shutil.rmtree(other)
    page = home.path / "shown+other.report.html"
    assert output.endswith(f"The report is {page}\n")
    text = page.read_text()
    assert "<h1>shown + other</h1>" in text
    assert "37 done" in text  # every run is in both, and counts once


@pytest.mark.usefixtures("plain")
def test_a_published_sweep_is_a_folder_that_others_compare_with_theirs(
    home: Home, tmp_path: Path, carft: Carft
) -> None:
    theirs, empty = tmp_path / "theirs", Home(tmp_path / "empty")
    output = carft("--home", home.path, "report", NAME, "--out", theirs).out
    assert output.endswith(f"The report is {theirs / 'index.html'}\n")
    published = {file.name for file in theirs.iterdir()}
    assert published == {"index.html", *COMPARED, "comparison_input.json", "sweep.yaml"}
    assert all(str(home.path) not in file.read_text() for file in theirs.iterdir())
    own = carft("--home", home.path, "compare", NAME, "--json").json
    read = carft("--home", empty.path, "compare", f"{theirs}/", "--json").json
    assert read["rows"] == own["rows"]
    assert read["selected"] == own["selected"]
    both = carft("--home", home.path, "compare", NAME, theirs, "--json").json
    assert [row["label"] for row in both["rows"]] == [row["label"] for row in own["rows"]]
    file = theirs / "comparison_input.json"
    data = json.loads(file.read_text())
    changes = ({"params": {"x": math.nan}}, {"params": {"x": 10**400}}, {"algorithm": "\ud800"})
    for change in changes:
        runs = [{**data["runs"][0], **change}, *data["runs"][1:]]
        file.write_text(json.dumps({**data, "runs": runs}))
        assert f"{file.name} is not one" in carft("compare", f"{theirs}/", code=2).err
    message = "no published sweep: comparison_input.json cannot be read (No such file or directory)"
    assert message in carft("--home", home.path, "compare", f"{tmp_path}/", code=2).err


@pytest.mark.parametrize("name", ["v1.2", "v1.2-rc1", "theirs.new/"])
@pytest.mark.usefixtures("plain")
def test_a_new_folder_to_publish_may_have_a_dot_in_its_name(
    home: Home, tmp_path: Path, carft: Carft, name: str
) -> None:
    carft("--home", home.path, "report", NAME, "--out", f"{tmp_path}/{name}")
    assert (tmp_path / name / "index.html").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shwon"], "did you mean 'shown'?"),
        ([NAME, "--reference", "fine_tuen"], "did you mean 'fine_tune'?"),
        ([NAME, "--out", "rep.pdf"], "--out: rep.pdf must end in .html: the report is a page"),
        ([NAME, "--out", "{file}/page.html"], "--out: {file}/page.html cannot be written"),
        ([NAME, "--figures", "{file}/figures"], "--figures: {file}/figures cannot be written"),
        ([NAME, "--out", "{folder}"], "--out: {folder} has another sweep.yaml; name another"),
    ],
)
@pytest.mark.usefixtures("plain")
def test_a_wrong_request_is_told_and_harms_no_file(
    home: Home, tmp_path: Path, carft: Carft, words: list[str], message: str
) -> None:
    own = {name: tmp_path / name for name in ("file", "sweep.yaml")}
    for file in own.values():
        file.write_text("mine")
    places = {"folder": tmp_path, "file": tmp_path / "file"}
    arguments = [word.format(**places) for word in words]
    assert message.format(**places) in carft("--home", home.path, "report", *arguments, code=2).err
    texts = {file.name: file.read_text() for file in tmp_path.iterdir()}
    assert texts == dict.fromkeys(own, "mine")


def test_provenance_names_neither_user_nor_place(home: Home) -> None:
    sweep = find_ledger(home, NAME)
    origin = provenance(home, [sweep], compared_in(home))
    facts = origin.facts
    assert facts["runs"] == ("37 done",)
    assert facts["made"] == ("from 2026-11-25 09:46 UTC to 2026-11-25 09:47 UTC",)
    assert facts["data"][0].startswith("icon_shift_dev, sha256 ")
    assert facts["model"][0].startswith("builtin, sha256 ")
    assert [text.split(":")[0] for text in facts["training code"]] == [
        *("of zero_shot", "of fine_tune", "of car_ft")
    ]
    assert "python 3" in facts["this page was made with"][0]
    assert origin.commands == ("carft-sweep run sweep.yaml", "carft-sweep report shown")
    assert "kl_weight" in origin.files[0][1]
    assert str(Path.home()) not in repr(origin) or str(Path.home()) == "/"


class WithPages(MemoryTracker):
    def experiment(self) -> str:
        return "7"

    def run_id(self, key: RunKey) -> str | None:
        return f"new-{key.digest[:4]}" if key in self.runs else None


@pytest.mark.usefixtures("plain")
def test_sync_makes_the_page_anew_where_its_links_lead_nowhere(
    home: Home, tmp_path: Path, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy, store, outputs, pages = Home(tmp_path / "home"), WithPages(), "", []
    shutil.copytree(home.path, copy.path)
    sent(copy)
    page = copy.sweep(NAME) / PAGE
    page.write_text(page_of(copy))
    monkeypatch.setattr("carft_sweep.sweeps.cli.sync.open_store", lambda *_, **__: store)
    for _ in range(2):
        outputs += carft("--home", copy.path, "sync").out
        pages.append(page.read_text())
    assert f"{NAME}: report.html was written anew" in outputs
    links = {*re.findall(r"/#/experiments/(\d+)/runs/([^?]*)", pages[0])}
    assert links == {("7", store.run_id(key)) for key in store.runs if key.kind == "run"}
    assert store.runs[RunKey(NAME)].artifacts[PAGE].decode() == pages[0] == pages[1]


def name_module(home: Home, item: str) -> None:
    """As whoever can write a home makes it name a module: in the ledger, and in its sweep file."""
    file = home.sweep(NAME) / "ledger.jsonl"
    changes = [json.loads(line) for line in file.read_text().splitlines()]
    for change in changes:
        if "begin" in change:
            change["begin"]["spec"]["import"] = [item]
        if "execution" in change:
            change["execution"]["imports"] = [item]
    file.write_text("".join(f"{json.dumps(change)}\n" for change in changes))
    copy = home.sweep(NAME) / "sweep.yaml"
    copy.write_text(json.dumps({**json.loads(copy.read_text()), "import": [item]}))


@pytest.mark.usefixtures("plain")
def test_looking_runs_no_module_that_a_home_names(
    home: Home, tmp_path: Path, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, ran = Home(tmp_path / "home"), tmp_path / "ran"
    shutil.copytree(home.path, copy.path)
    for file in copy.runs.glob("*/config.json"):
        claimed = json.loads(file.read_text())
        claimed["config"]["data"]["family"] = "mine"  # which such a module has
        write_json(file, claimed)
    planted = copy.path / "carft_planted.py"
    planted.write_text(f"from pathlib import Path\nPath({str(ran)!r}).touch()\n")
    name_module(copy, str(planted))
    monkeypatch.setattr("carft_sweep.sweeps.cli.sync.open_store", lambda *_, **__: MemoryTracker())
    looking = [f"{verb} {NAME}" for verb in ("show", "compare", "watch", "report")]
    for command in ("list", *looking, "clean --yes", "doctor home sent", "sync"):
        carft("--home", copy.path, *command.split())
    for words in (["export", NAME, "--out", tmp_path / "x"], ["predict", NAME, "x.png"]):
        printed = carft("--home", copy.path, *words, code=2).err
        assert f"{planted} is not imported" in printed
    assert log_missing_model(copy, NAME) == (
        "the selected model is not in MLflow: sync imports no modules, and the sweep was run with "
        f"{planted}; with them: carft-sweep export shown --mlflow --home {copy.path}"
    )
    monkeypatch.setenv("CARFT_HOME", str(copy.path))
    assert str(log_missing_model(copy, NAME)).endswith("carft-sweep export shown --mlflow")
    assert not ran.exists()
