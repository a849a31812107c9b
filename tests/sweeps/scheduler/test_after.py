"""Soups of a sweep's runs: made when every trial has ended, and runs like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from carft_sweep.carft_core.files import read_json
from carft_sweep.sweeps.cli.status import sweep_status
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import has_work_left
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.report.formats import to_json
from tests.sweeps.conftest import ToySweep
from tests.sweeps.scheduler.dying import stopping_after

SOUP: dict[str, Any] = {"after": [{"algorithm": "uniform_soup", "of": "fine_tune"}]}
RUNS = 1 + 2 + 4
"""Of the toy sweep without a soup."""
CRASH = {"do": "raise", "error": "key"}


def soups(compared: Comparison) -> dict[str, list[str]]:
    """Label to the members of each soup that is done."""
    arms = [row.arm for row in compared.rows if row.arm.role == "soup" and row.arm.merge is None]
    folders = {arm.label: run.folder for arm in arms for run in arm.done}
    claims = {
        label: read_json(folder / "config.json") for label, folder in folders.items() if folder
    }
    return {label: claim["config"]["algorithm"]["members"] for label, claim in claims.items()}


def done_of(toy: ToySweep, algorithm: str, **params: Any) -> list[str]:
    """The digests of a setting's runs, sorted."""
    settings = [*toy.ledger().recall("baselines"), *map(vars, toy.ledger().trials())]
    return sorted(
        digest
        for setting in settings
        if setting["algorithm"] == algorithm and params.items() <= setting["params"].items()
        for digest in setting["runs"].values()
    )


def test_soups_of_the_selected_setting_and_of_all_run_last_and_are_rows(
    toy: ToySweep, labels: Callable[[ToySweep], list[str]]
) -> None:
    stock = {"algorithm": {"name": "model_stock"}, "of": {"algorithm": "car_ft"}}
    of_all = {"algorithm": "uniform_soup", "of": {"algorithm": "car_ft", "settings": "all"}}
    compared = toy.run(after=[*SOUP["after"], stock, of_all]).comparison
    made = {
        "uniform_soup of=fine_tune": done_of(toy, "fine_tune"),
        "model_stock of=car_ft": done_of(toy, "car_ft", **{"algorithm.kl_weight": 0.3}),
        "uniform_soup of=car_ft settings=all": done_of(toy, "car_ft"),
    }
    assert [*map(len, made.values())] == [2, 2, 4]
    assert labels(toy)[RUNS:] == [*made]
    assert toy.lines[-1].startswith("[10/10]")
    assert soups(compared) == made
    merged = {row.arm.label for row in compared.rows if row.arm.role == "soup" and row.arm.merge}
    assert merged == {f"{label} + wise_ft@0.5" for label in made}
    assert [row.arm.algorithm for row in compared.rows if row.arm.is_zero_shot] == ["zero_shot"]
    assert {finding.pair.candidate.algorithm for finding in compared.verdicts} == {"car_ft"}


def test_what_failed_is_in_no_soup_and_too_few_runs_make_none(toy: ToySweep) -> None:
    stock = {"algorithm": "model_stock", "of": "fine_tune"}
    toy.plan({"fine_tune/1": [CRASH] * 2})
    ended = toy.run(retries=0, after=[stock])
    assert (soups(ended.comparison), ended.state) == ({}, "done")
    assert any("no model_stock: it takes 2 or more finished runs" in line for line in toy.lines)
    assert sweep_status(toy.home, "toy").runs == RUNS
    (partial,) = soups(toy.run(retries=0, **SOUP).comparison).values()
    (both,) = soups(toy.run(**SOUP).comparison).values()
    assert (len(partial), len(both)) == (1, 2)


def test_a_later_soup_trains_nothing_and_one_by_hand_is_a_baseline(toy: ToySweep) -> None:
    toy.run()
    trained = toy.trained()
    first = toy.run(**SOUP).comparison
    assert (len(soups(first)), toy.ledger().generation, toy.trained()) == (1, 1, trained)
    child = toy.tracked()["uniform_soup of=fine_tune"]
    assert child.tags["carft.role"] == "soup"
    assert "seed" not in child.params
    assert (child.params["of"], child.state) == ("fine_tune", "finished")
    evaluated, tracked = toy.evaluated(), str(toy.tracker.runs)
    assert to_json(toy.run(**SOUP).comparison) == to_json(first)
    assert toy.evaluated() == evaluated
    assert str(toy.tracker.runs) == tracked
    assert soups(toy.run().comparison) == {}
    runs = done_of(toy, "fine_tune")
    by_hand = {"name": "uniform_soup", "members": runs}
    baselines = [by_hand, "zero_shot", "fine_tune"]  # it comes after the others
    assert soups(toy.run(baselines=baselines).comparison) == {"uniform_soup": runs}


def test_a_sweep_that_was_stopped_makes_it_when_it_goes_on(toy: ToySweep) -> None:
    after = [*SOUP["after"], {"algorithm": "model_stock", "of": "fine_tune"}]
    toy.run(stopping_after(RUNS + 1), after=after)  # amid the soups
    assert has_work_left(toy.ledger(), RunStore(toy.home.runs))
    assert sweep_status(toy.home, "toy").runs == RUNS + 2
    trained = toy.trained()
    assert len(soups(toy.run(after=after).comparison)) == 2
    assert toy.trained() == trained
    assert not has_work_left(toy.ledger(), RunStore(toy.home.runs))


def test_where_models_vary_each_has_its_own_soup(toy: ToySweep) -> None:
    varied = {"optim.lr": [1e-4, 1e-3], "precision": ["fp32", "bf16"]}
    ended = toy.run(
        parameters={name: {"values": values} for name, values in varied.items()},
        baselines=[],
        trial={"algorithm": "fine_tune", "device": "cpu"},
        after=[{"algorithm": "uniform_soup", "of": {"algorithm": "fine_tune", "settings": "all"}}],
    )
    made = soups(ended.comparison)
    label = "uniform_soup of=fine_tune precision={} settings=all"
    assert sorted(made) == [label.format(precision) for precision in ("bf16", "fp32")]
    assert [len(digests) for digests in made.values()] == [4, 4]
