"""Runs on DomainBed's sets: budget, criterion, what is measured, and what comes of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.data import Family
from carft_sweep.carft_core.data.families.domainbed import DOMAIN_BED
from carft_sweep.carft_core.export.export import export
from carft_sweep.carft_core.runs.folder import RunFolder, RunResult
from carft_sweep.carft_core.runs.identity import identify
from carft_sweep.carft_core.runs.result import Decision, EpochReport
from carft_sweep.carft_core.training.loop import train
from tests.carft_core.trained import trained

Config = Callable[..., TrialConfig]
FIVE = {"optim.steps": 5}
Finished = tuple[RunFolder, RunResult]


@pytest.fixture(scope="module")
def finished(pacs_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("run")
    result = trained(pacs_config(FIVE), folder)
    return RunFolder(folder), result


@pytest.mark.parametrize("family", DOMAIN_BED, ids=lambda family: family.name)
def test_the_defaults_are_domainbeds_budget_and_batches(family: Family) -> None:
    given = {"data": {"family": family.name}, "algorithm": "car_ft"}
    config, by_epochs = trial_config(given), trial_config({**given, "optim": {"epochs": 3}})
    assert (config.optim.steps, config.optim.epochs, config.optim.batch_size) == (5000, None, 32)
    assert config.optim.steps_per_epoch == (1000 if family.name == "domain_net" else 300)
    assert config.data.balanced
    assert (config.data.val_fraction, config.data.augmentation) == (0.2, "domainbed")
    assert config.keep.result == "best_val"
    optim = by_epochs.optim
    assert (optim.epochs, optim.steps, optim.steps_per_epoch) == (3, None, None)


def test_a_run_measures_what_domainbed_measures_and_no_id_test(finished: Finished) -> None:
    folder, result = finished
    assert {name for name in result.metrics if name.endswith("/top1")} == {
        *("id/val/top1", "ood/sketch/top1", "ood/sketch_out/top1", "ood/sketch_all/top1"),
        *("ood/mean/top1", "gain/ood/top1"),
    }
    assert result.metrics["ood/mean/top1"] == result.metrics["ood/sketch/top1"]
    parts = [result.metrics[f"ood/{name}/top1"] for name in ("sketch", "sketch_out", "sketch_all")]
    assert parts[2] == pytest.approx(0.8 * parts[0] + 0.2 * parts[1])
    assert "ood/sketch/mean_group_top1" not in result.metrics
    rows = pq.read_table(folder.predictions("unmerged")).to_pylist()
    counts = {"id/val": 30, "ood/sketch": 40, "ood/sketch_out": 10, "ood/sketch_all": 50}
    assert Counter(row["split"] for row in rows) == counts
    assert result.facts["contexts"] == "known_domain_words without sketch"
    assert result.facts["contexts_name"] == []
    assert result.facts["budget"] == "5 steps, balanced"


def test_the_result_is_the_interval_that_is_best_over_the_training_domains(
    finished: Finished,
) -> None:
    folder, result = finished
    history = folder.history()
    assert [report["step"] for report in history] == [0, 2, 4, 5]
    values = [report["metrics"]["id/val/mean_group_top1"] for report in history[1:]]
    assert result.metrics["id/val/mean_group_top1"] == max(values)
    rows = pq.read_table(folder.predictions("unmerged")).to_pylist()
    by_domain: dict[str, list[bool]] = {}
    for row in rows:
        if row["split"] == "id/val":
            hit = row["label"] == row["prediction"]
            by_domain.setdefault(row["id"].partition("/")[0], []).append(hit)
    means = [sum(hits) / len(hits) for hits in by_domain.values()]
    assert len(means) == 3
    assert max(values) == pytest.approx(sum(means) / 3)


def test_a_run_stopped_in_the_middle_of_a_pass_ends_in_the_same_weights(
    pacs_config: Config, finished: Finished, tmp_path: Path
) -> None:
    def after_two_steps(report: EpochReport) -> Decision:
        return Decision.STOP if report.step == 2 else Decision.CONTINUE

    assert train(pacs_config(FIVE), 0, workdir=tmp_path, report=after_two_steps) is None
    result = trained(pacs_config({**FIVE, "workers": 1}), tmp_path)
    whole, resumed = (
        (
            folder.weights("last").read_bytes(),
            [report["metrics"].get("train/loss") for report in folder.history()],
        )
        for folder in (finished[0], RunFolder(tmp_path))
    )
    assert whole == resumed
    assert result.metrics == finished[1].metrics


def test_runs_differ_by_what_is_held_out_and_by_balance(pacs_config: Config) -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"data.test_domain": "photo"},
        {"data.split_seed": 1},
        {"data.balanced": False},
    ]
    assert len({identify(pacs_config(change), 0).digest for change in changes}) == len(changes)


def test_the_export_has_a_card_without_an_id_test(
    pacs_config: Config, finished: Finished, tmp_path: Path
) -> None:
    export(finished[0].path, pacs_config(FIVE), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "ood/sketch_out" in card
    assert "id/test" not in card
    assert "gap" not in card
    contexts = json.loads((tmp_path / "model" / "classes.json").read_text())["contexts"]
    assert "a sketch of a {}" not in contexts
    assert "a cartoon of a {}" in contexts
