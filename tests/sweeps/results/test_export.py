"""Which model is meant: the selected setting, and of its seeds an ordinary one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.results.export import select_model
from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from tests.sweeps.conftest import ONE_RUN, Carft, ToySweep
from tests.tracking.made_up import KL, metrics, run, zero_shot

VALS = [0.61, 0.69, 0.60, 0.65, 0.62]
MERGED = [0.70, 0.64, 0.66, 0.62, 0.68]


def trial(weight: float, number: int, vals: Sequence[float]) -> list[RunRecord]:
    def seed_of(seed: int, val: float, merged: float) -> RunRecord:
        digest = f"{number}{seed}".ljust(16, "a")
        named: dict[str, Any] = {"trial": number, "params": {KL: weight}, "digest": digest}
        named["merges"] = {"wise_ft@0.5": metrics(0.6, 0.4, val=merged)}
        return run("car_ft", seed, metrics(0.6, 0.4, val=val), **named)

    return [seed_of(seed, *values) for seed, values in enumerate(zip(vals, MERGED, strict=False))]


def compared(*trials: list[RunRecord], rule: SelectionRule | None = None) -> Comparison:
    records = [zero_shot(digest="f" * 16), *(record for runs in trials for record in runs)]
    spec = ComparisonSpec(rule=rule or SelectionRule(), seeds=tuple(range(5)))
    return compare(records, spec, sweep="toy")


def test_of_the_selected_setting_the_median_seed_stands_and_not_the_best() -> None:
    comparison = compared(trial(0.3, 0, VALS), trial(3.0, 1, [val - 0.1 for val in VALS]))
    chosen = select_model(comparison)
    assert (chosen.setting, chosen.run.seed) == ("car_ft kl_weight=0.3", 4)
    assert chosen.metrics["id/val/top1"] == 0.62
    assert chosen.why == "the median of 5 by id/val/top1"
    even = compared(trial(0.3, 0, VALS[:4]))  # of two in the middle the lower
    assert select_model(even).metrics["id/val/top1"] == 0.61


def test_a_rule_on_a_merge_takes_the_merge_and_the_median_of_it() -> None:
    comparison = compared(trial(0.3, 0, VALS), rule=SelectionRule(merge="wise_ft@0.5"))
    chosen = select_model(comparison)
    assert (chosen.label, chosen.metrics["id/val/top1"]) == ("wise_ft@0.5", 0.66)
    assert chosen.setting == "car_ft kl_weight=0.3 + wise_ft@0.5"
    assert select_model(comparison, merge="unmerged").metrics["id/val/top1"] == 0.62
    with pytest.raises(RequestError, match=r"unknown model .* '0\.5'; .*wise_ft@0\.5"):
        select_model(comparison, merge="0.5")


def test_a_run_is_named_by_the_beginning_of_its_digest() -> None:
    comparison = compared(trial(0.3, 0, VALS))
    assert select_model(comparison, run="02").run.seed == 2
    with pytest.raises(RequestError, match=r"5 runs of toy begin with '0': .*give more digits"):
        select_model(comparison, run="0")
    with pytest.raises(RequestError, match=r"unknown run of toy '02aab'; did you mean '02aaa'"):
        select_model(comparison, run="02aab")
    with pytest.raises(RequestError, match="leave --seed out"):
        select_model(comparison, run="02", seed=2)


def test_what_is_not_done_has_no_model_and_before_any_trial_is_nothing_is_selected() -> None:
    runs = trial(0.3, 0, VALS)
    comparison = compared([*runs[:2], replace(runs[2], state="running"), *runs[3:]])
    with pytest.raises(RequestError, match=r"run 02aaaaaaaaaa of car_ft kl_weight=0\.3 is running"):
        select_model(comparison, setting="car_ft kl_weight=0.3", seed=2)
    assert select_model(comparison).why == "the median of 4 by id/val/top1"
    comparison = compared([replace(record, state="running") for record in runs])
    with pytest.raises(RequestError, match="toy has selected nothing yet"):
        select_model(comparison)
    assert select_model(comparison, setting="zero_shot").run.seed is None
    with pytest.raises(RequestError, match=r"no run of car_ft kl_weight=0\.3 in toy is done"):
        select_model(comparison, setting="car_ft kl_weight=0.3")


def test_a_model_without_weights_names_its_command(toy_cli: ToySweep, carft: Carft) -> None:
    file, home = toy_cli.file(**ONE_RUN), toy_cli.folder / "other"
    carft("run", file, "--set", "name=zzz", "--home", home)
    refusal = carft("export", "zzz", "--home", home, code=2).err
    assert f"run {file} --set name=zzz --fresh --home {home}" in refusal
