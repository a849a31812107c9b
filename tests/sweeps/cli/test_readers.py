"""What `list`, `show`, `compare` and `clean` say of pruned trials, several goals, many trials."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest

from carft_sweep.carft_core.files import write_json
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import Ledger, find_ledger
from carft_sweep.sweeps.ledger.optuna_copy import StudySync, open_storage
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import OUTCOME, summaries
from carft_sweep.sweeps.results.records import comparison
from carft_sweep.tracking.program import command
from tests.sweeps.conftest import Carft

TOP1 = {"name": "id/val/top1", "goal": "maximize", "merge": None}
NLL = {"name": "id/val/nll", "goal": "minimize", "merge": None}


class Made:
    """A sweep whose trials are told by hand, with the files that their runs leave."""

    def __init__(self, home: Home, *goals: Mapping[str, Any]) -> None:
        self.home = home
        home.prepare()
        self.runs = RunStore(home.runs)
        spec = {
            **{"name": "made", "description": "", "seeds": [0], "selection": "best_val"},
            "report": {"id_margin": 0.005, "ood_margin": 0.005},
            "parameters": {"algorithm.kl_weight": {"min": 0.0, "max": 100.0}},
            **({"metric": goals[0]} if len(goals) == 1 else {"metrics": list(goals)}),
        }
        self.ledger = Ledger.create(home.sweep("made"), 1, spec, {})
        self.ledger.remember("baselines", [])

    def trial(self, weight: float) -> int:
        point = len(self.ledger.trials())
        digest = f"{point:064d}"
        self.runs.acquire(digest, f"car_ft {weight}", "made")
        setting = {"params": {"algorithm.kl_weight": weight}, "algorithm": "car_ft", "merges": []}
        return self.ledger.add_trial(point, {**setting, "runs": {"0": digest}}).number

    def measure(self, number: int, id_: float, ood: float) -> Path:
        folder = self.runs.folder(f"{number:064d}")
        metrics = {"id/val/top1": id_, "id/test/top1": id_, "ood/mean/top1": ood}
        evaluation = {"digest": "", "step": 0, "values": {}, "facts": {}, "metrics": metrics}
        write_json(folder / "evaluations" / "unmerged" / "metrics.json", evaluation)
        return folder

    def complete(self, weight: float, *values: float) -> int:
        number = self.trial(weight)
        self.runs.release(self.measure(number, values[0], 0.3).name, "done")
        self.ledger.complete(number, values)
        return number

    def prune(self, weight: float) -> int:
        number = self.trial(weight)
        self.runs.release(f"{number:064d}", "stopped")
        self.ledger.prune(number, "asha", "not in the best quarter at epoch 1")
        return number

    def fail(self, weight: float) -> int:
        number = self.trial(weight)
        failure = {"kind": "nan", "message": "train/loss is nan", "log_tail": ""}
        self.runs.release(f"{number:064d}", "failed", failure)
        self.ledger.fail(number, "nan", "train/loss is nan")
        return number


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.setenv("CARFT_HOME", str(tmp_path / "home"))
    return Made(Home(tmp_path / "home"), TOP1)


def trials_in(text: str) -> list[int]:
    lines = [line.split() for line in text.splitlines()]
    return [int(words[1]) for words in lines if words[:1] == ["trial"]]


def test_a_sweep_has_the_name_of_its_folder_whatever_its_files_say(made: Made) -> None:
    made.ledger.file.write_text(
        made.ledger.file.read_text().replace('"name":"made"', '"name":"../../elsewhere"')
    )
    ledger = find_ledger(made.home, "made")
    assert (ledger.name, ledger.spec["name"]) == ("made", "../../elsewhere")
    assert [summary["name"] for summary in summaries(made.home)] == ["made"]


def test_a_pruned_trial_is_counted_and_shown_with_its_reason(made: Made, carft: Carft) -> None:
    made.complete(1, 0.8)
    pruned = made.prune(2)
    made.fail(3)
    made.trial(4)
    made.ledger.remember(OUTCOME, {"state": "interrupted"})
    (listed,) = carft("list", "--json").json
    counts = {"asked": None, "complete": 1, "failed": 1, "pruned": 1}
    assert {key: listed["trials"].get(key) for key in counts} == counts
    assert "1 pruned, 1 failed" in carft("list").out
    text = carft("show", "made").out
    assert "4 trials: 1 unfinished, 1 complete, 1 pruned, 1 failed" in text
    assert f"trial {pruned}  pruned  car_ft kl_weight=2\n  asha: not in the best quarter" in text
    shown = carft("show", "made", "--json").json
    assert shown["counts"] == {"trials": 4, "running": 1, "complete": 1, "pruned": 1, "failed": 1}
    assert shown["trials"][1]["reason"]["kind"] == "asha"
    assert shown["trials"][1]["runs"][0]["state"] == "stopped"


def test_a_pruned_trial_enters_no_mean_and_the_comparison_counts_it(made: Made) -> None:
    made.complete(1, 0.8)
    pruned = made.prune(2)
    made.measure(pruned, 0.99, 0.99)  # for another sweep or after its last epoch
    compared = comparison(made.ledger, made.runs)
    assert compared.selected is not None
    assert compared.selected.arm.params == {"algorithm.kl_weight": 1}
    (row,) = [row for row in compared.rows if row.arm.trial == pruned]
    assert (row.n, dict(row.arm.states), row.value) == (0, {"pruned": 1}, None)
    assert any("1 pruned run" in warning for warning in compared.warnings)


def test_with_several_goals_the_front_is_shown_and_the_first_goal_selects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    monkeypatch.setenv("CARFT_HOME", str(tmp_path / "home"))
    made = Made(Home(tmp_path / "home"), TOP1, NLL)
    accurate, calibrated = made.complete(1, 0.8, 1.5), made.complete(2, 0.7, 0.5)
    beaten = made.complete(3, 0.7, 1.0)
    made.prune(4)
    text = carft("show", "made").out
    for line in (
        "by id/val/top1, id/val/nll",
        "Pareto front: 2 trials that no other one beats: 0, 1",
        f"trial {accurate}  complete  80.0 % / 1.5000  front  car_ft",
        f"trial {calibrated}  complete  70.0 % / 0.5000  front  car_ft",
        f"trial {beaten}  complete  70.0 % / 1.0000  car_ft",
    ):
        assert line in text
    shown = carft("show", "made", "--json").json
    assert [goal["name"] for goal in shown["metrics"]] == ["id/val/top1", "id/val/nll"]
    assert shown["trials"][1]["values"] == [0.7, 0.5]
    StudySync(made.home, made.ledger).update()
    study = optuna.load_study(study_name="made", storage=open_storage(made.home))
    best = [trial.number for trial in study.best_trials]
    assert shown["front"] == best == [accurate, calibrated]
    document = carft("compare", "made", "--json").json
    assert (document["metric"], document["selected"]["trial"]) == ("id/val/top1", accurate)


def test_of_many_trials_the_ones_that_matter_are_shown_also_without_the_study(
    made: Made, carft: Carft
) -> None:
    for index in range(60):  # the best in the middle
        made.complete(index, 0.8 - abs(index - 30) / 1000)
    running, pruned, failed = made.trial(60), made.prune(61), made.fail(62)
    StudySync(made.home, made.ledger).update()
    for state, number in {"pruned": pruned, "failed": failed, "running": running}.items():
        assert trials_in(carft("show", "made", "--state", state).out) == [number]
    assert trials_in(carft("show", "made", "--all").out) == [*range(63)]
    text = carft("show", "made").out
    assert trials_in(text)[:4] == [60, 30, 29, 31]
    assert (len(trials_in(text)), "13 more trials" in text) == (50, True)
    commands = ("list", "show made --json", "show made", "compare made --json")
    before = [carft(*words.split()).out for words in commands]
    studies = [*made.home.path.glob("optuna.*")]
    assert studies
    for file in studies:
        file.unlink()
    assert [carft(*words.split()).out for words in commands] == before


def test_a_hint_can_be_pasted_into_a_shell() -> None:
    assert command("resume", "toy", None) == "carft-sweep resume toy"
    words = shlex.split(command("resume", "toy", "my homes/x"))
    assert words == ["carft-sweep", "resume", "toy", "--home", "my homes/x"]
