"""`compare` of several sweeps at once, with filters, columns, an order and rules of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.results.loading import load_comparison
from tests.sweeps.conftest import Carft, toy_in
from tests.tracking.kept import keep_predictions, logits

TRIAL: dict[str, Any] = {"algorithm": {"name": "car_ft", "kl_weight": 0.3}, "device": "cpu"}
TRIAL["merges"] = [{"name": "wise_ft", "alphas": [0.25]}]
RATES = {"optim.lr": {"values": [5e-4, 1e-3]}}
Compare = Callable[..., str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweeps `toy` (over kl_weight), `learning` (over lr), and one with another rule."""
    with pytest.MonkeyPatch.context() as patched:
        sweep = toy_in(tmp_path_factory.mktemp("compared"), patched)
        sweep.run()
        sweep.run(name="learning", parameters=RATES, trial=TRIAL)
        sweep.run(name="margin", selection={"within": 0.01})
    return sweep.home.path


@pytest.fixture
def compare(home: Path, monkeypatch: pytest.MonkeyPatch, carft: Carft) -> Compare:
    """What `compare` prints of that home."""
    monkeypatch.setenv("CARFT_HOME", str(home))

    def run(*words: object, code: int = 0) -> str:
        output = carft("compare", *words, code=code)
        return output.err if code else output.out

    return run


def loads(compare: Compare, *words: object) -> dict[str, Any]:
    """What `compare --json` says."""
    document: dict[str, Any] = json.loads(compare(*words, "--json"))
    return document


def test_two_sweeps_are_one_comparison_with_the_fields_of_both(compare: Compare) -> None:
    document = loads(compare, "toy", "learning")
    assert document["sweeps"] == ["toy", "learning"]
    arms = {row["label"]: row for row in document["rows"] if row["merge"] is None}
    assert list(arms) == [
        *("zero_shot", "fine_tune lr=0.0005", "fine_tune lr=0.001"),
        *("car_ft kl_weight=0.1 lr=0.0005", "car_ft kl_weight=0.3 lr=0.0005"),
        "car_ft kl_weight=0.3 lr=0.001",
    ]
    assert all(row["n"] == (1 if label == "zero_shot" else 2) for label, row in arms.items())
    assert arms["car_ft kl_weight=0.3 lr=0.0005"]["sweeps"] == ["toy", "learning"]
    assert arms["car_ft kl_weight=0.1 lr=0.0005"]["sweeps"] == ["toy"]
    assert len(document["tests"]) == 1


def test_a_condition_leaves_out_what_it_is_about_and_the_table_says_so(compare: Compare) -> None:
    document = loads(compare, "toy", "learning", "--where", "kl_weight>=0.3")
    labels = [row["label"] for row in document["rows"] if row["merge"] is None]
    assert "car_ft kl_weight=0.1 lr=0.0005" not in labels
    assert "fine_tune lr=0.0005" in labels
    assert document["warnings"][0].startswith("only the runs where kl_weight>=0.3: 9 of 11;")
    rows = loads(compare, "toy", "learning", "--where", "sweep=learning")["rows"]
    assert {row["params"].get("algorithm.kl_weight") for row in rows} <= {None, 0.3}


def test_columns_form_and_reference_are_those_of_the_options(compare: Compare) -> None:
    text = compare("toy", "--columns", "OOD mean,id/val/top1", "--csv")
    head = text.splitlines()[0].split(",")
    assert [name for name in head if name.endswith("/top1")] == ["ood/mean/top1", "id/val/top1"]
    assert "| setting |" in compare("toy", "--markdown")
    tests = loads(compare, "toy", "--reference", "zero_shot")["tests"]
    assert {test["reference"] for test in tests} == {"zero_shot"}


def test_what_sweeps_judge_differently_is_named(compare: Compare) -> None:
    message = compare("toy", "margin", code=2)
    assert "the selection of one is best_val, of the other within 0.01" in message
    assert "say which with --selection" in message
    document = loads(compare, "toy", "margin", "--selection", "within=0.02")
    assert document["selection"] == "within 0.02"


def test_another_choice_must_be_honest_or_called_an_oracle(compare: Compare) -> None:
    refused = compare("toy", "--metric", "ood/mean/top1", code=2)
    assert "selecting on it needs `selection: oracle` (--selection oracle)" in refused
    document = loads(compare, "toy", "--metric", "ood/mean/top1", "--selection", "oracle")
    assert (document["metric"], document["selection"]) == ("ood/mean/top1", "oracle")
    assert document["warnings"][0].startswith("oracle")
    merged = loads(compare, "toy", "--metric", "wise_ft@0.5/id/val/top1")
    assert merged["metric_merge"] == "wise_ft@0.5"


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ((), "which sweep? `carft-sweep list`"),
        (("toi",), "no sweep 'toi'"),
        (("toy", "--home", "nowhere"), "there is no home nowhere"),
        (("toy", "--tracking-uri", ""), "the tracking URI is empty"),
        (("toy", "--tracking-uri", "lab:5000"), "for a server write http://lab:5000"),
        (("toy", "--where", "kl_wieght>1"), "unknown field 'kl_wieght'; did you mean 'kl_weight'?"),
        (("toy", "--columns", "od mean"), "unknown column 'od mean'; did you mean 'OOD mean'?"),
        (("toy", "--selection", "within=2"), "oracle, or within=0.005"),
        (("toy", "--reference", "zeroshot"), "did you mean 'zero_shot'"),
        (("toy", "--metric", "wise_ft@0.25/id/val/top1"), "did you mean 'wise_ft@0.5'"),
        (("toy", "--metric", "id/val/acc"), "Validation accuracy is id/val/top1."),
        (("toy", "--metric", "wise_ft/id/val/top1"), "the merge's point apart"),
        (("toy", "--metric", "ood/{task}_out/top1", "--selection", "oracle"), "goes with tasks"),
        (("toy", "--by", "macro-f1"), "did you mean 'macro_f1'?"),
        (("toy", "--id-margin", "2"), "must be a number from 0 to below 1"),
        (("toy", "--experiment", "x"), "--experiment goes with --tracking-uri"),
        (("toy", "--csv", "--latex"), "not allowed with"),
        (("toy", "--flips", "zero_shot", "finetune"), "did you mean 'fine_tune'?"),
        (("toy", "--flips", "zero_shot", "fine_tune", "--csv"), "--flips prints one table, or"),
        (("wrong.csv",), "wrong.csv, line 2: ood 'x' is no number"),
        (("results.csv", "toy"), "a table is compared alone"),
        (("results.csv", "--flips", "a", "b"), "a table has neither --flips nor a --tracking-uri"),
        (("results.csv", "--reference", "carft"), "'carft'; did you mean 'car_ft'?"),
    ],
)
def test_a_wrong_request_is_told_with_its_remedy(
    compare: Compare, table: Path, words: tuple[str, ...], fragment: str
) -> None:
    table.with_name("wrong.csv").write_text("method,seed,id,ood\na,0,.5,x\n")
    message = compare(*words, code=2)
    assert fragment in message
    assert "Traceback" not in message


def test_the_latex_table_names_its_command_alone_and_no_server_is_asked(
    home: Path, compare: Compare, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    text = compare("-v", "--home", home, "toy", "--latex", "--where", "kl_weight>=0.1")
    assert text.splitlines()[0] == (
        "% carft-sweep compare toy --latex --where 'kl_weight>=0.1' --reference fine_tune"
    )
    assert str(home) not in text


def test_the_latex_command_keeps_an_option_whose_value_is_zero(compare: Compare) -> None:
    command = compare("toy", "--latex", "--id-margin", "0").splitlines()[0]
    assert "--id-margin 0" in command


TABLE = "method,seed,id,ood\nzero_shot,,50,30\n" + "".join(
    f"{method},{seed},{60 + seed},{ood + seed / 2}\n"
    for method, ood in (("fine_tune", 31), ("car_ft", 34.25))
    for seed in range(5)
)


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`results.csv` in the current folder, in which there is no home."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results.csv").write_text(TABLE)
    return tmp_path / "results.csv"


def test_a_table_of_results_is_compared_without_a_home(
    compare: Compare, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = table.parent
    monkeypatch.setenv("CARFT_HOME", str(folder / "none"))
    (difference,) = loads(compare, table)["tests"]
    assert (difference["candidate"], difference["reference"]) == ("car_ft", "fine_tune")
    assert "results.csv: one setting of each method, 5 seeds" in compare("results.csv")
    latex = compare(table, "--latex")
    assert "carft-sweep compare results.csv --latex" in latex
    assert main(["report", "results.csv"]) == 0
    page = (folder / "results.report.html").read_text()
    assert "carft-sweep report results.csv" in page
    assert str(folder) not in latex + page
    assert {path.name for path in folder.iterdir()} == {"results.csv", "results.report.html"}


def test_flips_are_printed_by_split(
    compare: Compare, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "home"
    shutil.copytree(home, copy)
    monkeypatch.setenv("CARFT_HOME", str(copy))
    for number, run in enumerate(load_comparison("toy").runs()):
        assert run.folder is not None
        for merge in (None, *run.merges):
            keep_predictions(run.folder, merge, logits(0.4, 2 * number + (merge is None)))
    arms = ("fine_tune", "car_ft kl_weight=0.3 + wise_ft@0.5")
    flips = loads(compare, "toy", "--flips", *arms)
    assert (flips["reference"], flips["candidate"], flips["seeds"]) == (*arms, [0, 1])
    assert all(row["net"] == row["won"] - row["lost"] for row in flips["splits"])
    lines = compare("toy", "--flips", *arms).splitlines()
    assert lines[:2] == [
        f"What {arms[1]} wins and loses against {arms[0]}.",
        "An image counts as right where more than half of 2 seeds have it so.",
    ]
    for line, row in zip(lines[4:], flips["splits"], strict=False):
        name, counts = row["split"].removeprefix("ood/"), (row["images"], row["won"], row["lost"])
        assert line.split()[:4] == [name, *map(str, counts)]


def test_power_prints_what_the_seeds_would_find(compare: Compare) -> None:
    text = compare("toy", "--power")
    assert text.startswith("The true difference that is found in 80 % of such sweeps, in points:")
    assert "car_ft kl_weight=0.3, OOD mean" in text
    message = compare("toy", "--power", "--where", "algorithm=car_ft", code=2)
    assert "nothing is compared with fine_tune; name another with --reference" in message


@pytest.mark.parametrize("command", ["compare", "show", "watch", "stop"])
def test_a_command_on_a_sweep_given_its_file_takes_the_name_from_the_file(
    compare: Compare, tmp_path: Path, carft: Carft, command: str
) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("name: toy\nmethod: grid\n")
    assert compare("toy").splitlines()
    assert carft(command, file).out == carft(command, "toy").out


def test_a_sweep_file_without_a_name_means_the_sweep_of_its_stem(
    compare: Compare, tmp_path: Path
) -> None:
    file = tmp_path / "learning.yml"
    file.write_text("method: grid\n")
    assert compare(file) == compare("learning")


def test_the_path_of_a_shipped_recipe_that_never_ran_names_the_missing_sweep(
    compare: Compare,
) -> None:
    message = compare("sweeps/kl_weight.yaml", code=2)
    assert "no sweep 'kl_weight' in " in message
    assert "comparison_input" not in message


def test_a_missing_sweep_file_is_named_with_the_command_that_lists_sweeps(compare: Compare) -> None:
    message = compare("nowhere/toy.yaml", code=2)
    assert "nowhere/toy.yaml" in message
    assert "`carft-sweep list`" in message
