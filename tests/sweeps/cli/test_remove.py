"""`remove`: what goes with a sweep and what stays, and that it can be killed at any instant."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.cli.removal import Removal, waste
from carft_sweep.sweeps.ledger.claim import Claim
from carft_sweep.sweeps.ledger.ledger import sweep_names
from carft_sweep.sweeps.ledger.optuna_copy import open_storage
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results.sent_log import SentLog
from carft_sweep.tracking.errors import ServiceUnreachable
from carft_sweep.tracking.location import resolve_location
from carft_sweep.tracking.store.mlflow_store import open_store
from tests.sweeps.conftest import ONE_RUN, Carft, ToySweep

SMALLER: dict[str, Any] = {"seeds": [0], "baselines": ["fine_tune"]}


@pytest.fixture
def pair(toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch) -> ToySweep:
    """`toy` with 3 runs, one of which is all that `other` has."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    toy_cli.run(**SMALLER)
    toy_cli.run(**ONE_RUN, name="other")
    (toy_cli.home.path / "mlflow.db").touch()  # its place is in memory, and MLflow's would be there
    return toy_cli


def digests(toy: ToySweep, name: str) -> set[str]:
    return {digest for setting in toy.ledger(name).settings() for digest in setting.runs.values()}


def studies(toy: ToySweep) -> list[str]:
    return sorted(study.study_name for study in open_storage(toy.home).get_all_studies())


def test_without_yes_and_a_terminal_it_only_says_what_would_go(
    pair: ToySweep, carft: Carft
) -> None:
    before = {*pair.home.path.rglob("*")}
    printed = carft("remove", "toy", code=2).out
    assert f"{pair.home.sweep('toy')} and 2 runs that no other sweep uses" in printed
    assert "1 Optuna study" in printed
    assert "1 run of it stays, which others use." in printed
    assert printed.endswith("Nothing is removed without --yes.\n")
    assert {*pair.home.path.rglob("*")} - before <= {pair.home.sweep("toy") / ".lock"}
    assert studies(pair) == ["other", "toy"]


@pytest.mark.parametrize(("answer", "is_removed"), [("y", True), ("", False)])
def test_on_a_terminal_it_asks(
    pair: ToySweep, answer: str, is_removed: bool, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    sys.stdin.write(f"{answer}\n")
    sys.stdin.seek(0)
    assert "Remove it? [y/N]" in carft("remove", "toy").err
    assert ("toy" not in sweep_names(pair.home)) == is_removed


def test_it_removes_what_no_other_sweep_uses(pair: ToySweep, carft: Carft) -> None:
    mine, shared = digests(pair, "toy") - digests(pair, "other"), digests(pair, "other")
    (pair.home.runs / f".{min(mine)}.before").mkdir()
    sent = pair.home.sweep("toy") / "sent"
    sent.mkdir(exist_ok=True)
    (sent / "abcd.jsonl").write_text('{"place": "https://lab.example"}\n')
    printed = carft("remove", "toy", "--yes").out
    assert "What https://lab.example has of it stays there; to remove that too" in printed
    assert printed.endswith("toy is removed.\n")
    runs = RunStore(pair.home.runs)
    assert {*runs.digests()} == shared
    assert not [path for path in pair.home.path.rglob(f"*{min(mine)}*") if path.is_dir()]
    assert (sweep_names(pair.home), studies(pair)) == (["other"], ["other"])
    assert {key.sweep for key in pair.tracker.runs} == {"other"}
    assert main(["compare", "other"]) == 0
    assert list(waste(pair.home)) == []
    assert main(["remove", "toy", "--yes"]) == 2
    pair.run(**SMALLER)
    assert pair.ledger().generation == 1
    assert sum(pair.trained()[digest] > 0 for digest in mine) == 2


def test_what_another_sweep_begins_to_use_while_it_asks_stays(
    pair: ToySweep, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    def agreed() -> bool:
        return pair.run(**SMALLER, name="third").state == "done"

    monkeypatch.setattr("carft_sweep.sweeps.cli.removal._is_agreed", agreed)
    carft("remove", "toy")
    assert digests(pair, "third") <= {*RunStore(pair.home.runs).digests()}


def test_what_a_soup_of_another_sweep_is_made_of_stays(pair: ToySweep, carft: Carft) -> None:
    soup = {"algorithm": "uniform_soup", "params": {}, "runs": {"none": "soup"}}
    mine = digests(pair, "toy")
    pair.ledger("other").remember("baselines", [{**soup, "members": sorted(mine)}])
    carft("remove", "toy", "--yes")
    assert mine <= {*RunStore(pair.home.runs).digests()}


def test_every_generation_goes_and_json_says_which_runs(pair: ToySweep, carft: Carft) -> None:
    pair.run(**SMALLER, fresh=True)
    assert studies(pair) == ["other", "toy", "toy@2"]
    result = carft("remove", "toy", "--yes", "--json").json
    assert (result["sweep"], result["removed"], result["left"]) == ("toy", True, [])
    assert {*result["kept"]} == digests(pair, "other")
    assert len(result["runs"]) == 2
    assert studies(pair) == ["other"]


def test_a_running_sweep_is_refused_and_a_run_that_somebody_works_on_stays(
    pair: ToySweep, carft: Carft
) -> None:
    mine = sorted(digests(pair, "toy") - digests(pair, "other"))
    with Claim(pair.home.sweep("toy")):
        assert "is being run by" in carft("remove", "toy", "--yes", code=2).err
    assert sweep_names(pair.home) == ["other", "toy"]
    worker = RunStore(pair.home.runs)
    worker.acquire(mine[0], "a", "third")
    carft("remove", "toy", "--yes")
    assert {*mine} & {*worker.digests()} == {mine[0]}


def test_a_service_that_is_away_is_named_with_what_is_left_and_how_that_goes_later(
    pair: ToySweep, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    def refused(*_: object) -> None:
        raise ServiceUnreachable("MLflow at http://lab does not answer")

    with monkeypatch.context() as patched:
        patched.setattr(pair.tracker, "remove_sweep", refused)
        patched.setattr("carft_sweep.sweeps.cli.removal.remove_studies", refused)
        printed = carft("remove", "toy", "--yes", code=4).out
    assert "in MLflow: MLflow at http://lab does not answer" in printed
    assert "Left: the Optuna study: MLflow at http://lab" in printed
    assert printed.endswith("carft-sweep remove toy\n")
    assert {*RunStore(pair.home.runs).digests()} == digests(pair, "other")
    assert sweep_names(pair.home) == ["other", "toy"]
    carft("remove", "toy", "--yes")
    assert (sweep_names(pair.home), studies(pair)) == (["other"], ["other"])
    assert {key.sweep for key in pair.tracker.runs} == {"other"}


def test_a_server_that_is_gone_for_good_keeps_no_sweep_alive(
    pair: ToySweep, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> None:
    monkeypatch.setattr("carft_sweep.sweeps.cli.removal.open_store", open_store)
    (pair.home.path / "mlflow.db").unlink()
    with monkeypatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        log = SentLog(pair.home.sweep("toy"), resolve_location(pair.home.path))
        log.record("", "id", "done")
        printed = carft("remove", "toy", "--yes", code=4).out
        assert "Left: 1 run in MLflow: MLflow at http://127.0.0.1:9 does not answer" in printed
    printed = carft("remove", "toy", "--yes").out
    assert "What http://127.0.0.1:9 (experiment carft-sweep) has of it" in printed
    assert sweep_names(pair.home) == ["other"]


def test_a_home_whose_other_ledger_is_damaged_loses_nothing(pair: ToySweep, carft: Carft) -> None:
    with pair.ledger("other").file.open("a") as file:
        file.write("{}\n{}\n")
    assert "is damaged" in carft("remove", "toy", "--yes", code=2).err
    assert "toy" in sweep_names(pair.home)


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Do it in a fork that dies at its n-th change of a folder; whether it did."""
    child = os.fork()
    if not child:
        count = 0

        def dying(change: Callable[..., Any]) -> Callable[..., Any]:
            def changed(*arguments: Any, **options: Any) -> Any:
                nonlocal count
                count += 1
                if count == step:
                    os._exit(9)
                return change(*arguments, **options)

            return changed

        for name in ("rename", "unlink", "rmdir"):
            setattr(os, name, dying(getattr(os, name)))
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) == 9


def test_killed_at_any_instant_it_can_be_repeated(pair: ToySweep, tmp_path: Path) -> None:
    whole, home = tmp_path / "whole", pair.home.path
    shutil.copytree(home, whole)
    shared, step, died = digests(pair, "other"), 1, True
    while died:
        died = killed_at(step, Removal.of(pair.home, "toy").carry_out)
        if "toy" in sweep_names(pair.home):
            assert main(["remove", "toy", "--yes"]) == 0
        assert main(["clean", "--yes"]) == 0
        assert sweep_names(pair.home) == ["other"]
        assert {*RunStore(pair.home.runs).digests()} == shared
        assert not [*home.glob("*/.*.*")]
        assert pair.ledger("other").recall("outcome")["state"] == "done"
        shutil.rmtree(home)
        shutil.copytree(whole, home)
        step += 1 if step < 8 else 7
    assert step > 30
