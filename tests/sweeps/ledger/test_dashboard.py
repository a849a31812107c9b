"""optuna-dashboard opens a home as it is, and Optuna's own plots work on its studies."""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna.visualization as plots
import pytest

from carft_sweep.sweeps.ledger.optuna_copy import StudySync, study_file
from carft_sweep.sweeps.scheduler.proposer import next_point
from carft_sweep.sweeps.spec.spec import load_spec
from tests.services.processes import end, free_port, start
from tests.sweeps.conftest import SEARCH as TPE
from tests.sweeps.conftest import ToySweep, toy_in

WEIGHT = {"distribution": "log_uniform_values", "min": 0.01, "max": 10}
RATE = {"distribution": "log_uniform_values", "min": 1e-6, "max": 1e-3}
SEARCH: dict[str, Any] = {
    **TPE,
    **{"name": "search", "run_cap": 16, "trial": {"device": "cpu"}},
    "parameters": {
        "algorithm.name": {"values": ["car_ft", "fine_tune"]},
        "algorithm.kl_weight": {**WEIGHT, "when": {"algorithm.name": "car_ft"}},
        "optim.lr": RATE,
        "merges": {"values": [[{"name": "wise_ft", "alphas": [0.5]}], []]},
    },
    "early_terminate": {"type": "threshold", "metric": "id/val/top1", "lower": 0.18},
}
"""One goal; conditional parameters; lists among the values; pruned trials."""
GOALS: dict[str, Any] = {
    **TPE,
    **{"name": "goals", "method": "random", "run_cap": 8, "selection": "oracle"},
    "metrics": [{"name": "id/val/top1"}, {"name": "ood/mean/top1"}],
    "parameters": {"algorithm.kl_weight": WEIGHT, "optim.lr": RATE},
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToySweep]:
    """A home with both sweeps: trials that are complete, pruned, failed, and one running."""
    with pytest.MonkeyPatch.context() as patch:
        toy = toy_in(tmp_path_factory.mktemp("toy"), patch)
        toy.plan({"fine_tune/0": [{"do": "raise", "error": "nan"}]})
        toy.run(**SEARCH)
        leave_one_running(toy)
        toy.run(**GOALS)
        yield toy


def leave_one_running(toy: ToySweep) -> None:
    """As a driver that was killed in the first epoch of the last trial."""
    ledger, spec = toy.ledger("search"), load_spec(toy.file(**SEARCH))
    proposal = next_point(spec, ledger, SEARCH["run_cap"])
    setting = {"params": dict(proposal.params), "algorithm": "car_ft", "runs": {}, "merges": []}
    trial = ledger.add_trial(SEARCH["run_cap"], setting, proposal.sampler)
    ledger.report(trial.number, 1, 0.25)
    StudySync(toy.home, ledger).update()


FIRST: dict[str, Any] = {"target": lambda trial: trial.values[0], "target_name": "id/val/top1"}
PLOTS: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
    ("search", plots.plot_intermediate_values, {}),
    ("search", plots.plot_parallel_coordinate, {}),
    ("search", plots.plot_slice, {}),
    ("search", plots.plot_timeline, {}),
    ("search", plots.plot_param_importances, {}),
    ("goals", plots.plot_pareto_front, {}),
    ("goals", plots.plot_slice, FIRST),
    ("goals", plots.plot_param_importances, FIRST),
]


@pytest.mark.filterwarnings("ignore:PedAnovaImportanceEvaluator:UserWarning")
@pytest.mark.parametrize(("name", "plot", "options"), PLOTS)
def test_optunas_plots_show_a_study_with_one_goal_or_several(
    toy: ToySweep, name: str, plot: Callable[..., Any], options: dict[str, Any]
) -> None:
    figure = plot(toy.study(name), **options)
    assert figure.data
    assert json.loads(figure.to_json())["data"]


@pytest.fixture(scope="module")
def dashboard(toy: ToySweep) -> Iterator[str]:
    """Where the real server shows the home's database."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with suppress(urllib.error.URLError):
            return bool(answer(address, "/api/meta"))
        return False

    program = str(Path(sys.executable).with_name("optuna-dashboard"))
    url = f"sqlite:///{study_file(toy.home)}"
    server = start([program, "--port", str(port), url], toy.folder / "dashboard.log", answers)
    yield address
    end(server)


def answer(address: str, path: str) -> Any:
    with urllib.request.urlopen(f"{address}{path}", timeout=60) as response:
        return json.loads(response.read())


def test_the_dashboard_shows_the_ledgers_trials_their_importances_and_a_table(
    toy: ToySweep, dashboard: str
) -> None:
    studies = answer(dashboard, "/api/studies")["study_summaries"]
    number = {study["study_name"]: study["study_id"] for study in studies}["search"]
    study = answer(dashboard, f"/api/studies/{number}")
    shown = {trial["number"]: trial for trial in study["trials"]}
    words = {"complete": "Complete", "pruned": "Pruned", "failed": "Fail", "running": "Running"}
    assert {trial.state for trial in toy.ledger("search").trials()} == words.keys()
    for trial in toy.ledger("search").trials():
        row = shown[trial.number]
        assert row["state"] == words[trial.state]
        if trial.state == "complete":
            assert row["values"] == [trial.value]
        params = {item["name"]: item["param_external_value"] for item in row["params"]}
        assert params["algorithm.name"] == trial.params["algorithm.name"]
        assert ("algorithm.kl_weight" in params) == ("algorithm.kl_weight" in trial.params)
        assert float(params["optim.lr"]) == pytest.approx(trial.params["optim.lr"])
        assert json.loads(params["merges"]) == trial.params["merges"]
        values = {item["step"]: item["value"] for item in row["intermediate_values"]}
        assert values == dict(trial.reports)
        attributes = {item["key"]: item["value"] for item in row["user_attrs"]}
        assert json.loads(attributes["runs"]) == dict(trial.runs)
        if trial.reason is not None:
            assert json.loads(attributes["reason"]) == dict(trial.reason)
    importances = answer(dashboard, f"/api/studies/{number}/param_importances")
    names = {item["name"] for item in importances["param_importances"][0]}
    assert {"optim.lr", "algorithm.name"} <= names
    with urllib.request.urlopen(f"{dashboard}/csv/{number}", timeout=60) as response:
        lines = response.read().decode().splitlines()
    assert len([line for line in lines if re.match(r"\d+,", line)]) == SEARCH["run_cap"] + 1
