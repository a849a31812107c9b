"""The commands: what they print, how they exit, and that each mistake has one clear message."""

from __future__ import annotations

import importlib
import importlib.metadata
import io
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from carft_sweep.sweeps.cli import MODULES, main, parser
from carft_sweep.sweeps.cli.parser import COMMANDS, EVERYWHERE, EXAMPLES, GROUPS, PACKAGES
from carft_sweep.sweeps.cli.removal import Waste, waste
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import LEDGER_FILE
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.scheduler.progress import LiveProgress
from tests.sweeps.conftest import Carft, NamedRun, ToySweep, named

ROOT = Path(__file__).parents[3]


def run(toy: ToySweep, *more: str) -> int:
    return main(["run", str(toy.file()), *more])


def leave(runs: RunStore, *digests: str) -> None:
    """Runs that have ended, and which no sweep uses."""
    for digest in digests:
        runs.acquire(digest, "a", "gone")
        runs.release(digest, "done")


@pytest.fixture
def used(toy_cli: ToySweep) -> Path:
    """The folder of a run of `toy`, which has a checkpoint that it no longer needs."""
    run(toy_cli)
    runs = RunStore(toy_cli.home.runs)
    folder = runs.folder(next(iter(runs.digests())))
    (folder / "checkpoint.pt").write_text("x")
    return folder


def test_run_ends_with_the_table_and_the_verdict_and_json_is_all_of_it(
    toy_cli: ToySweep, carft: Carft
) -> None:
    output = carft("run", toy_cli.file())
    assert "[7/7] car_ft kl_weight=0.3 seed 1  done  val 81.0 %" in output.err
    assert "▸ car_ft kl_weight=0.3" in output.out
    assert "UNDECIDED: " in output.out
    output = carft("run", toy_cli.file(), "--quiet", "--json")
    keys = {"sweep", "metric", "selection", "seeds", "verdict", "rows", "selected"}
    assert (output.err, keys <= {*output.json}) == ("", True)
    row = output.json["rows"][0]
    assert {"label", "algorithm", "merge", "params", "n", "metrics"} <= {*row}
    assert {*row["metrics"]["id/val/top1"]} >= {"mean", "ci95", "values"}


def test_list_has_a_line_for_each_sweep_and_show_every_run_with_its_tracked_id(
    toy_cli: ToySweep, carft: Carft
) -> None:
    assert "No sweep was run" in carft("list").out
    assert not toy_cli.home.path.exists()
    run(toy_cli)
    (listed,) = carft("list", "--json").json
    best = {"algorithm.kl_weight": 0.3}
    assert (listed["state"], listed["best"]["params"]) == ("done", best)
    assert listed["trials"] == {"asked": 2, "complete": 2, "failed": 0, "pruned": 0}
    assert "2/2" in carft("list").out
    shown = carft("show", "toy", "--json").json
    assert [trial["state"] for trial in shown["trials"]] == ["complete", "complete"]
    last = shown["trials"][1]
    assert (last["params"], last["value"]) == (best, pytest.approx(0.805))
    runs = [run for arm in (*shown["trials"], *shown["baselines"]) for run in arm["runs"]]
    assert [run["state"] for run in runs] == ["done"] * 7
    assert all(run["mlflow_run_id"] == f"toy/{run['digest']}" for run in runs)
    assert [run["seed"] for run in shown["trials"][0]["runs"]] == [0, 1]
    text = carft("show", "toy").out
    assert "trial 1  complete  80.5 %  car_ft kl_weight=0.3" in text
    assert max(map(len, text.splitlines())) < 80
    assert "MLflow" not in text


def test_the_end_says_what_failed_each_cause_once_and_how_to_retry(
    toy_cli: ToySweep, carft: Carft
) -> None:
    key = [{"do": "raise", "error": "key"}] * 2
    toy_cli.plan({"0.1/0": key, "0.3/1": key, "0.3/0": [{"do": "raise", "error": "request"}]})
    output = carft("run", toy_cli.file())
    assert "failed." not in output.out
    *before, last = output.err.rstrip().splitlines()
    assert last == "To try what failed again: carft-sweep resume toy --failed"
    end = before[before.index("3 runs failed.") :]
    assert "car_ft kl_weight=0.3 seed 1 and 1 more  crashed: KeyError: 'weights'" in end
    assert "car_ft kl_weight=0.3 seed 0  data: data.root: there is no folder x" in end
    assert any(line.startswith("  | ") and "KeyError" in line for line in end)
    logs = [line for line in end if line.startswith("  log: ")]
    assert [log.endswith("/log.txt") for log in logs] == [True, True]
    shown = carft("show", "toy").out
    assert "trial 0  failed  car_ft kl_weight=0.1" in shown
    assert "log.txt" in shown


def test_a_sweep_that_is_given_up_exits_with_1_and_a_remedy(
    toy_cli: ToySweep, carft: Carft
) -> None:
    runs = [f"{weight}/{seed}" for weight in (0.1, 0.3) for seed in (0, 1)]
    toy_cli.plan({key: [{"do": "raise", "error": "image"}] for key in runs})
    printed = carft("run", toy_cli.file(), code=1).err
    # For all runs alike.
    assert "The sweep was stopped: a.png cannot be read as an image" in printed
    end = printed[printed.index("1 run failed.") :]
    assert " data: a.png cannot be read as an image" in end
    assert "  To leave out all images that cannot be read: --set data.bad_files=skip\n" in end
    assert "Traceback" not in printed
    toy_cli.plan({key: [{"do": "raise", "error": "request"}] for key in runs})
    printed = carft("run", toy_cli.file(name="other"), "--set", "breaker=2", code=1).err
    *_, reason, last = printed.rstrip().splitlines()
    assert reason.startswith("The sweep was stopped: 2 runs in a row failed for one cause (data)")
    assert last == "Once this is fixed, resume it: carft-sweep resume other"


def test_clean_keeps_what_a_sweep_has_taken_up_since_it_looked(
    toy_cli: ToySweep, used: Path, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, other_store = RunStore(toy_cli.home.runs), RunStore(toy_cli.home.runs)
    leave(runs, "orphan", "other")

    def taken_up(home: Home) -> list[Waste]:
        items = [*waste(home)]
        other_store.acquire("orphan", "a", "toy")
        other_store.acquire(used.name, "a", "toy")
        return items

    monkeypatch.setattr("carft_sweep.sweeps.cli.removal.waste", taken_up)
    document = carft("clean", "--yes", "--json").json
    assert [Path(item["path"]).name for item in document["items"]] == ["other"]
    assert runs.read("orphan") is not None
    assert (used / "checkpoint.pt").exists()
    assert not runs.folder("other").exists()


def test_clean_removes_what_killed_processes_left_and_nothing_behind_a_link_or_of_a_generation(
    toy_cli: ToySweep, carft: Carft
) -> None:
    run(toy_cli)
    assert run(toy_cli, "--fresh") == 0
    runs, sweep = RunStore(toy_cli.home.runs), toy_cli.home.sweep("toy")
    again, interrupted, cut_off = [*runs.digests()][:3]
    for digest in (again, interrupted, cut_off):
        shutil.copytree(runs.folder(digest), runs.path / f".{digest}.before")
    runs.acquire(interrupted, "a", "toy")
    runs.release(interrupted, "stopped")
    shutil.rmtree(runs.folder(cut_off))  # killed between the two steps of a new beginning
    leftovers = [
        runs.folder(again) / ".checkpoint.pt.x8_k2ab1",
        runs.folder(again) / "evaluations" / "unmerged" / ".predictions.parquet.abcdefgh",
        sweep / ".summary.json.12345678",
        toy_cli.home.path / "mlartifacts" / "1" / ".artifact.uploading.46zonkan",
    ]
    for file in leftovers:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(bytes(1000))
    elsewhere = toy_cli.folder / "elsewhere"
    (elsewhere / ".git.template").mkdir(parents=True)
    (elsewhere / ".env.template").write_text("somebody's")
    (sweep / ".a.abcdefgh").symlink_to(elsewhere)
    living = runs.folder("living") / ".checkpoint.pt.abcdefgh"
    runs.acquire("living", "a", "toy")
    living.write_text("x")
    rest = {*toy_cli.home.path.rglob("*")} - {*leftovers, sweep / ".a.abcdefgh"}
    removed = {Path(item["path"]) for item in carft("clean", "--yes", "--json").json["items"]}
    assert removed == {*leftovers, sweep / ".a.abcdefgh", runs.path / f".{again}.before"}
    gone = rest - {*toy_cli.home.path.rglob("*")}
    assert all(path.is_relative_to(runs.path / f".{again}.before") for path in gone)
    shutil.rmtree(toy_cli.home.path / "mlartifacts")
    (toy_cli.home.path / "mlartifacts").symlink_to(elsewhere)
    assert carft("clean", "--yes").out == "Nothing to remove.\n"
    assert {path.name for path in elsewhere.iterdir()} == {".git.template", ".env.template"}


def test_clean_only_tells_until_it_is_told_to(toy_cli: ToySweep, used: Path, carft: Carft) -> None:
    runs = RunStore(toy_cli.home.runs)
    leave(runs, "orphan")
    runs.acquire("living", "a", "gone")
    paths = {Path(item["path"]).name for item in carft("clean", "--json").json["items"]}
    assert {"orphan", "checkpoint.pt"} <= paths
    assert "living" not in paths
    assert runs.folder("orphan").exists()
    carft("clean", "--yes")
    assert {"orphan", "living"} & {*runs.digests()} == {"living"}
    names = {file.name for file in used.iterdir()}
    assert ("trained.json" in names, "checkpoint.pt" in names) == (True, False)
    carft("compare", "toy")
    # `sync` passes over a sweep that never began.
    empty = toy_cli.home.sweep("empty") / LEDGER_FILE
    empty.parent.mkdir()
    empty.touch()
    assert "every run as it is here" in carft("sync").out
    assert "has not begun" in carft("sync", "empty", code=2).err


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["rum"], "unknown command 'rum'; did you mean 'run'?"),
        (["run", "x.yaml", "--fresch"], "unknown option '--fresch'; did you mean '--fresh'?"),
        (["run", "x.yaml", "--hom=y"], "unknown option '--hom'; did you mean '--home'?"),
        (["run", "f", "--epochs", "3"], "'--epochs'; a key of the sweep file is changed by --set"),
        (["list", "--epochs", "3"], "unknown option '--epochs'\n"),
        (["run", "f", "optim.lr=3"], "did you mean --set optim.lr=3?"),
        (["run", "f", "--set", "optim.epochs", "3"], "unexpected argument '3'"),
        (["list", "extra"], "unexpected argument 'extra'"),
        (["show"], "SWEEP"),
        (["show", "nowhere"], "no sweep 'nowhere'"),
        (["run", "nowhere.yaml"], "nowhere.yaml"),
        (["run", "x.yaml", "--engine", "rai"], "unknown value of --engine: 'rai'; did you mean"),
        (["run", "x.yaml", "--parallel", "0"], "--parallel: must be a whole number from 1 on"),
        (["run", "x.yaml", "--timeout", "soon"], "--timeout: must be a number of seconds over 0"),
        (["run", "kl_weight", "--import", "nowhere_to_be_found"], "no module 'nowhere_to_be"),
        (["resume", "nowhere"], "no sweep 'nowhere'"),
        (["data", "chek"], "data: unknown command 'chek'; did you mean 'check'?"),
        (["data", "check", "imagnet"], "unknown family 'imagnet'; did you mean 'imagenet'?"),
        (["data", "check", "imagenet", "--set", "optim.lr=1"], "only fields of data count here"),
        (["data", "list", "--data-root", "no"], "no does not exist; it must hold a folder for"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_remedy_and_exits_with_2(
    toy_cli: ToySweep, carft: Carft, arguments: list[str], fragment: str
) -> None:
    message = carft(*arguments, code=2).err
    assert fragment in message
    assert "Traceback" not in message
    assert not toy_cli.home.path.exists()


LIGHT = """
import contextlib, io, json, sys
from carft_sweep.sweeps.cli.parser import COMMANDS
from carft_sweep.sweeps.cli import MODULES, main

main(["--version"])
helps = {}
for command in ("", *COMMANDS):
    with contextlib.redirect_stdout(io.StringIO()) as written:
        code = main([*command.split(), "--help"])
    helps[command] = [code, written.getvalue()]
heavy = {"torch", "ray", "mlflow", "optuna", "scipy", "numpy", "rich", "pydantic", "yaml"}
of_help = sorted(heavy & {*sys.modules})
with contextlib.redirect_stdout(io.StringIO()):
    assert main(["check", "kl_weight", "--home", sys.argv[1]]) == 0
heavy = {"open_clip", "torchvision", "timm", "optuna", "mlflow", "ray", "sympy"}
of_plan = sorted(heavy & {*sys.modules})
print(json.dumps({"helps": helps, "of_help": of_help, "of_plan": of_plan}))
"""


def test_help_and_version_import_nothing_heavy_and_a_plan_nothing_that_opens_models_or_makes_views(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", LIGHT, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    *lines, last = done.stdout.splitlines()
    versions = dict(line.split(" ", 1) for line in lines)
    assert [*versions] == ["carft-sweep", "Python", *PACKAGES[1:]]
    assert versions["torch"] == importlib.metadata.version("torch")
    assert versions["Python"] == platform.python_version()
    document = json.loads(last)
    assert (document["of_help"], document["of_plan"]) == ([], [])
    for command, (code, text) in document["helps"].items():
        assert code == 0
        assert text.startswith(f"usage: carft-sweep {command}".rstrip())
    assert set(document["helps"]) == {"", *COMMANDS}


def test_the_help_has_every_command_once_in_its_group(carft: Carft) -> None:
    text = carft("--help").out
    assert carft(code=2).out == text
    assert text.startswith("usage: carft-sweep [options] COMMAND ...\n")
    shown = re.findall(r"^(?:(\w[\w ]*):|  ([a-z]+)  +\S.*)$", text, re.MULTILINE)
    groups: dict[str, list[str]] = {}
    for title, command in shown:
        if title:
            groups[title] = []
        elif command:
            groups[[*groups][-1]].append(command)
    listed = {title: [*commands] for title, commands in GROUPS.items()}
    assert groups == {"examples": [], **listed, "options": []}
    assert sorted(name for names in groups.values() for name in names) == sorted(COMMANDS)
    assert len(EXAMPLES) == 3
    for example in EXAMPLES:
        assert f"  {example}  " in text
        assert parser.parse(example.split()[1:]).command in COMMANDS


def test_every_command_is_a_module_with_its_place_and_every_options_row_in_the_docs() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    for command in COMMANDS:
        module = importlib.import_module(f"carft_sweep.sweeps.cli.{MODULES.get(command, command)}")
        assert callable(getattr(module, f"{command}_command")), command
        assert f"\n## {command}\n" in page, command
    row = r'^\| <a id="(\S+--\S+)"></a>.* \| (.*) \|$'
    rows = dict(re.findall(row, page, re.MULTILINE))
    expected = {
        f"{command.replace(' ', '-')}{option}": action.help
        for command, options in parser.parsers()[1].items()
        for action in options.actions()
        for option in action.option_strings
        if option.startswith("--") and option not in ("--help", *EVERYWHERE)
    }
    assert len(expected) > 100
    assert {name: rows.get(name) for name in expected} == expected, "in the words of the help"
    assert rows.keys() - expected.keys() == {f"everywhere{option}" for option in EVERYWHERE}


@pytest.mark.parametrize("words", [["schema"], ["-vv", "schema"], ["schema", "-vv"]], ids=str)
def test_verbose_logs_what_our_modules_decide_and_nothing_is_reported_to_ray(
    words: list[str], monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    def command(*_: object) -> int:
        logger = logging.getLogger("carft_sweep.some.room")
        logger.info("chosen")
        logger.debug("because")
        logging.getLogger("urllib3").info("somebody else's")
        return 0

    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED", raising=False)
    monkeypatch.setattr("carft_sweep.sweeps.cli.schema.schema_command", command)
    logged = carft(*words).err.splitlines()
    lines = ["INFO carft_sweep.some.room: chosen", "DEBUG carft_sweep.some.room: because"]
    expected = lines if "-vv" in words else []
    assert [line.partition(",")[2].partition(" ")[2] for line in logged] == expected
    assert not logging.getLogger("carft_sweep").handlers
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"


def test_a_reader_that_has_seen_enough_is_no_error(toy_cli: ToySweep) -> None:
    run(toy_cli)
    command = f"{sys.executable} -m carft_sweep show toy --json | head -c 9"
    environ = {**os.environ, "CARFT_HOME": str(toy_cli.home.path)}
    done = subprocess.run(
        command, shell=True, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ('{"sweep":', "")


def test_two_runs_with_one_text_have_a_bar_each() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    progress = LiveProgress(console, "")
    progress.begin(2)
    first, second = (NamedRun(digest, "car_ft seed 0") for digest in ("1f", "2e"))
    for shown in (first, second):
        progress.started(shown)
    progress.done(first, {}, reused=False)
    progress._bars.refresh()
    texts = [task.description for task in progress._bars.tasks]
    progress.close()
    assert texts.count("car_ft seed 0") == 1


def test_a_terminal_shows_a_bar_for_the_sweep_and_for_each_run_under_way() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    progress = LiveProgress(console, "more: carft-sweep compare toy")
    progress.note("no Ray answers at nowhere:6379")
    assert "\x1b[?25l" not in out.getvalue(), "the cursor stays where the run is refused"
    progress.begin(3)
    assert "\x1b[?25l" in out.getvalue()
    progress.started(named("a seed 0"))
    progress.epoch(named("a seed 0"), {"epoch": 1, "epochs": 4, "metrics": {"train/loss": 0.5}})
    progress.started(named("a seed 1"))
    progress._bars.refresh()
    text = out.getvalue()
    for shown in ("0/3", "1/4", "loss 0.5", "starting", "0:00:00"):
        assert shown in text
    assert text.rstrip().endswith("more: carft-sweep compare toy")
    assert "best so far" not in text
    out.truncate(0)
    progress.best("car_ft kl_weight=0.3", "id/val/top1", 0.805)
    progress.done(named("a seed 0"), {"id/val/top1": 0.5}, reused=False)
    progress.fail(named("a seed 1"), "nan", "train/loss is nan", again=False)
    progress.skip(1)
    progress._bars.refresh()
    text = out.getvalue()
    assert "[1/3] a seed 0  done  val 50.0 %" in text
    assert "[2/3] a seed 1  failed (nan): train/loss is nan" in text
    assert "comparing" in text.rpartition("2/2")[2]
    assert "best so far: car_ft kl_weight=0.3, id/val/top1 80.5 %" in text
    progress.close()
    assert out.getvalue().rindex("\x1b[?25h") > out.getvalue().find("\x1b[?25l")
