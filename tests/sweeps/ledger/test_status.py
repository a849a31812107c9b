"""What is left of a sweep, whoever asks: a run, `resume`, `list`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from carft_sweep.sweeps.ledger.claim import DRIVER
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import has_work_left
from tests.sweeps import toy_core
from tests.sweeps.conftest import SEARCH, Carft, ToySweep
from tests.sweeps.scheduler.dying import dying

SMALL_FILES = (
    *("run.json", "config.json", "history.json", "trained.json"),
    *("evaluations/unmerged/metrics.json", "evaluations/wise_ft@0.5/metrics.json"),
)


def is_work_left(toy: ToySweep, *, failed_again: bool = False) -> bool:
    return has_work_left(toy.ledger(), RunStore(toy.home.runs), failed_again=failed_again)


def a_run(toy: ToySweep) -> Path:
    """The folder of a run of the best trial."""
    return toy.home.runs / toy.ledger().trials()[1].runs["0"]


def test_work_is_left_until_every_run_has_ended(toy: ToySweep) -> None:
    for verb in ("add_trial", "complete"):
        with dying(verb):
            toy.run()
        assert is_work_left(toy)
    toy.run()
    assert not is_work_left(toy)
    toy.plan({"0.1/0": [{"do": "raise", "error": "nan"}]})
    toy.run(fresh=True)
    assert not is_work_left(toy)
    assert is_work_left(toy, failed_again=True)


def test_a_trial_that_reaches_the_target_leaves_no_work(toy_cli: ToySweep, carft: Carft) -> None:
    search = {**SEARCH, "metric": {"target": 0.5}}
    toy_cli.run(**search)
    assert len(toy_cli.ledger().trials()) == 1
    assert not is_work_left(toy_cli)
    toy_cli.command(**search)
    assert "nothing left to do" in carft("resume", "toy", "--in-process").out


def test_a_deleted_run_folder_is_work_that_resume_does(toy_cli: ToySweep, carft: Carft) -> None:
    carft("run", toy_cli.file(baselines=[]), "--in-process")
    folder = a_run(toy_cli)
    shutil.rmtree(folder)
    assert is_work_left(toy_cli)
    carft("resume", "toy", "--in-process")
    assert toy_cli.trained()[folder.name] == 2 * (toy_core.EPOCHS + 1)
    assert not is_work_left(toy_cli)


def test_a_damaged_file_is_named_set_aside_and_made_again(toy_cli: ToySweep, carft: Carft) -> None:
    words = ("run", toy_cli.file(baselines=["fine_tune"]), "--in-process")
    carft(*words)
    values = toy_cli.values()
    for name in SMALL_FILES:
        trained, file = toy_cli.trained(), a_run(toy_cli) / name
        file.write_bytes(b"{damage")
        for looking in (["compare", "toy"], ["show", "toy"], ["clean"]):
            carft(*looking)
        assert f"{file} is" in carft(*words).err
        assert (file.parent / f"{file.name}.damaged").read_bytes() == b"{damage"
        assert toy_cli.values() == values
        assert toy_cli.trained().total() - trained.total() in (0, toy_core.EPOCHS + 1)
        assert not is_work_left(toy_cli)


def test_a_budget_that_is_used_up_before_the_first_run_has_failed_nothing(toy: ToySweep) -> None:
    with dying("remember"):
        toy.run()
    toy.ledger().remember("seconds", 99.0)
    ended = toy.run(time_budget=1)
    assert (ended.state, ended.failures) == ("interrupted", ())


def test_a_damaged_ledger_hides_no_other_sweep(toy_cli: ToySweep, carft: Carft) -> None:
    toy_cli.run()
    toy_cli.run(name="other")
    with toy_cli.home.sweep("other").joinpath("ledger.jsonl").open("a") as file:
        file.write("damage\n")
    assert [sweep["name"] for sweep in carft("list", "--json").json] == ["toy"]


def test_list_leaves_out_a_sweep_with_a_damaged_driver_file_and_shows_the_rest(
    toy_cli: ToySweep, carft: Carft, caplog: pytest.LogCaptureFixture
) -> None:
    toy_cli.run()
    with dying("complete"):
        toy_cli.run(name="killed")
    driver_file = toy_cli.home.sweep("killed") / DRIVER
    driver_file.write_text("{damage")
    assert [sweep["name"] for sweep in carft("list", "--json").json] == ["toy"]
    assert f"killed is left out: {driver_file} is not JSON" in caplog.text


def test_list_leaves_out_a_sweep_without_a_metric_and_shows_the_rest(
    toy_cli: ToySweep, carft: Carft, caplog: pytest.LogCaptureFixture
) -> None:
    toy_cli.run()
    toy_cli.run(name="partial")
    ledger_file = toy_cli.home.sweep("partial") / "ledger.jsonl"
    first_line, *further_lines = ledger_file.read_text().splitlines()
    record = json.loads(first_line)
    del record["begin"]["spec"]["metric"]
    ledger_file.write_text("\n".join([json.dumps(record), *further_lines, ""]))
    assert [sweep["name"] for sweep in carft("list", "--json").json] == ["toy"]
    assert f"partial is left out: {ledger_file} is damaged" in caplog.text
