"""A sweep over tasks from its file to its tables, on a toy core; also read back from a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.ledger.status import summary_of
from carft_sweep.sweeps.results.export import part_of, select_model
from carft_sweep.sweeps.scheduler.session import SweepResult
from carft_sweep.tracking.comparison.input_file import COMPARISON_INPUT, read_comparison_input
from carft_sweep.tracking.comparison.pooling import compare_sweeps
from carft_sweep.tracking.comparison.tasks import domainbed_table
from carft_sweep.tracking.report.formats import to_json
from carft_sweep.tracking.store.base import RunKey
from tests.sweeps.conftest import TOY, Carft, ToySweep, toy_in
from tests.sweeps.toy_domains import DOMAINS, TOY_DOMAINS

OVER_DOMAINS: dict[str, Any] = {
    "name": "domains",
    "tasks": "data.test_domain",
    "parameters": {
        "data.test_domain": {"values": list(DOMAINS)},
        "algorithm.kl_weight": {"values": [0.1, 0.3]},
    },
    "trial": {**TOY["trial"], "data": {"family": "toy_domains", "split_seed": "seed"}},
}


@pytest.fixture(scope="module")
def toy_sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToySweep]:
    """A home in which it ran, with the family of domains among the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FAMILIES, TOY_DOMAINS.name, TOY_DOMAINS)
        yield toy_in(tmp_path_factory.mktemp("domains"), patch)


@pytest.fixture(scope="module")
def ended(toy_sweep: ToySweep) -> SweepResult:
    """The sweep when it has ended, over two seeds."""
    return toy_sweep.run(**OVER_DOMAINS)


@pytest.fixture
def command(
    toy_sweep: ToySweep, ended: SweepResult, monkeypatch: pytest.MonkeyPatch, carft: Carft
) -> Carft:
    assert ended.state == "done"
    monkeypatch.setenv("CARFT_HOME", str(toy_sweep.home.path))
    return carft


def test_every_setting_runs_on_every_task_with_the_split_of_its_seed(
    toy_sweep: ToySweep, ended: SweepResult
) -> None:
    # Two weights, fine-tuning and zero-shot, three domains, two seeds: none trains nothing twice.
    assert ended.done == len(ended.comparison.runs()) == 4 * 3 * 2
    assert len(toy_sweep.ledger("domains").trials()) == 6
    names = {f"zero_shot test_domain={domain} s{seed}" for domain in DOMAINS for seed in (0, 1)}
    tracked = toy_sweep.tracked("domains")
    assert {name for name in tracked if name.startswith("zero_shot")} == names
    for run in ended.comparison.runs():
        claimed = json.loads((toy_sweep.home.runs / run.digest / "config.json").read_text())
        assert claimed["config"]["data"]["split_seed"] == run.seed
        assert run.trains == (run.algorithm != "zero_shot")


def test_it_ends_with_domainbeds_table(toy_sweep: ToySweep, ended: SweepResult) -> None:
    compared = ended.comparison
    assert list(compared.tasks) == list(DOMAINS)
    assert compared.selected is None
    table = domainbed_table(compared)
    assert table is not None
    # The toy is best at 0.3, with 0.8 and a hundredth a seed, and measures half of it.
    (arm,) = (row.arm for row in compared.rows if row.arm.label == "car_ft")
    line = table.of(arm)
    assert line is not None
    cells = (*line.cells.values(), line.average)
    assert [cell.mean for cell in cells] == pytest.approx([0.4025] * 4)
    assert [cell.error for cell in cells] == pytest.approx([0.0025 / 2**0.5] * 4)
    assert set(table.settings.values()) == {"car_ft kl_weight=0.3"}
    folder = toy_sweep.home.sweep("domains")
    text = (folder / "comparison.md").read_text()
    assert "| algorithm | art | photo | sketch | Avg |" in text
    assert "| car_ft | 40.2 ± 0.2 |" in text
    document = json.loads((folder / "comparison.json").read_text())
    assert set(document["tasks"]["comparisons"]) == {*DOMAINS}
    summary = summary_of(toy_sweep.ledger("domains"))
    assert (summary["best"], summary["trials"]["complete"]) == (None, 6)


def test_the_plan_names_the_tasks_and_the_rule_may_be_another_afterwards(
    toy_sweep: ToySweep, command: Carft
) -> None:
    text = command("check", toy_sweep.file(**OVER_DOMAINS)).out
    assert "tasks by data.test_domain: art, photo, sketch;" in text
    oracle = ("--selection", "oracle", "--metric", "ood/{task}_out/top1")
    plain = command("compare", "domains", "--json", *oracle).json
    # On that part the toy is the better the worse it is elsewhere.
    assert set(plain["tasks"]["settings"].values()) == {"car_ft kl_weight=0.1"}
    assert "test-domain validation (oracle)" in plain["tasks"]["caption"]


def test_a_model_is_that_of_a_run_and_of_no_sweep(ended: SweepResult, command: Carft) -> None:
    with pytest.raises(RequestError, match="selects a setting for each task") as caught:
        select_model(ended.comparison)
    refusal = str(caught.value)
    digest = refusal.split("art: car_ft kl_weight=0.3 (--run ")[1].split(")")[0]
    chosen = select_model(ended.comparison, run=digest)
    assert part_of(ended.comparison, chosen) is ended.comparison.tasks["art"]
    message = command("export", "domains", "--out", "nowhere", code=2).err
    assert "name a run with --run" in message
    with pytest.raises(RequestError, match="unknown run of domains 'zzz'"):
        select_model(ended.comparison, run="zzz")


def test_a_server_has_what_the_comparison_needs(toy_sweep: ToySweep, ended: SweepResult) -> None:
    parent = toy_sweep.tracker.runs[RunKey("domains")]
    _, served = read_comparison_input(parent.artifacts[COMPARISON_INPUT].decode(), "domains")
    assert served.spec.tasks == "data.test_domain"
    assert to_json(compare_sweeps([served])) == to_json(ended.comparison)


def test_an_oracle_values_trials_by_task(toy_sweep: ToySweep, ended: SweepResult) -> None:
    assert ended.done
    goal = {"name": "ood/{task}_out/top1"}
    changed = OVER_DOMAINS | {"name": "oracle", "selection": "oracle", "metric": goal}
    result = toy_sweep.run(**changed)
    trials = toy_sweep.ledger("oracle").trials()
    values = {trial.params["algorithm.kl_weight"]: trial.value for trial in trials}
    # 1 minus the mean over seeds of 0.8 - |kl - 0.3| / 10 + a hundredth a seed.
    assert values == pytest.approx({0.1: 0.215, 0.3: 0.195})
    table = domainbed_table(result.comparison)
    assert table is not None
    assert "(oracle)" in " ".join(table.notes)
    assert Path(toy_sweep.home.sweep("oracle") / "comparison.csv").read_text().count("oracle") > 3
