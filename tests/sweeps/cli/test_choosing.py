"""What is said on the command line goes before a sweep's own rule, and stays honest."""

from __future__ import annotations

import re

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli.compare import override, override_specs
from carft_sweep.sweeps.cli.parser import parse
from carft_sweep.tracking.comparison.pooling import SweepRuns
from carft_sweep.tracking.comparison.spec import ComparisonSpec, Endpoint, SelectionRule
from tests.tracking.made_up import kl_sweep

TOLD = ComparisonSpec(rule=SelectionRule(within=0.01, strength={"optim.lr": -1}), seeds=(0, 1))


def chosen(
    metric: str | None = None, selection: str | None = None, id_margin: float | None = None
) -> ComparisonSpec:
    return override(TOLD, metric=metric, selection=selection, id_margin=id_margin)


def test_nothing_said_changes_nothing() -> None:
    assert chosen() == TOLD


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("id/val/top1", ("id/val/top1", "maximize", None)),
        ("id/val/nll", ("id/val/nll", "minimize", None)),
        ("wise_ft@0.5/id/val/top1", ("id/val/top1", "maximize", "wise_ft@0.5")),
        ("wise_ft@0.5/id/val/ece", ("id/val/ece", "minimize", "wise_ft@0.5")),
    ],
)
def test_a_metric_brings_its_own_direction_and_maybe_a_merged_model(
    metric: str, expected: tuple[str, str, str | None]
) -> None:
    rule = chosen(metric).rule
    assert (rule.metric, rule.goal, rule.merge) == expected
    assert (rule.within, rule.strength) == (0.01, {"optim.lr": -1})
    assert chosen(metric).seeds == TOLD.seeds


@pytest.mark.parametrize(
    ("selection", "name"),
    [
        ("best_val", "best_val"),
        ("within=0.02", "within 0.02"),
        ("oracle", "oracle"),
    ],
)
def test_a_selection_replaces_the_sweeps_own(selection: str, name: str) -> None:
    assert chosen(selection=selection).rule.name == name


def test_a_margin_is_of_the_verdict_alone() -> None:
    found = chosen(id_margin=0.02)
    assert found.endpoint.id_margin == 0.02
    assert found.rule == TOLD.rule


@pytest.mark.parametrize(
    ("metric", "selection", "said"),
    [
        ("id/val/acc", None, "Validation accuracy is id/val/top1."),
        ("wise_ft/id/val/top1", None, "the merge's point apart"),
        ("id/val/top1:minimize", None, "id/val/top1"),
        ("ood/mean/top1", None, "(--selection oracle)"),
        ("id/test/top1", "best_val", "(--selection oracle)"),
        (None, "within", "oracle, or within=0.005"),
        (None, "within=2", "oracle, or within=0.005"),
        (None, "margin=0.1", "oracle, or within=0.005"),
    ],
)
def test_what_is_wrong_is_told_with_its_remedy(
    metric: str | None, selection: str | None, said: str
) -> None:
    with pytest.raises(RequestError, match=re.escape(said)):
        chosen(metric, selection)


def test_a_test_metric_may_be_chosen_on_if_it_is_called_an_oracle() -> None:
    assert chosen("ood/mean/top1", "oracle").rule.oracle


def test_a_merged_model_that_no_run_has_is_told() -> None:
    sweeps = [SweepRuns("kl", kl_sweep())]
    (whole,) = override_specs(
        sweeps, parse(["compare", "kl", "--metric", "wise_ft@0.5/id/val/top1"])
    )
    assert whole.spec.rule.merge == "wise_ft@0.5"
    with pytest.raises(RequestError, match=r"did you mean 'wise_ft@0\.5'"):
        override_specs(sweeps, parse(["compare", "kl", "--metric", "wise_ft@0.6/id/val/top1"]))


def test_what_only_tasks_have_is_refused_elsewhere() -> None:
    with pytest.raises(RequestError, match="goes with tasks"):
        override(TOLD, selection="oracle", metric="ood/{task}_out/top1")
    told = ComparisonSpec(tasks="data.test_domain")
    assert override(told, selection="oracle", metric="ood/{task}_out/top1").rule.is_of_task


def test_another_accuracy_is_of_the_verdict_alone_and_of_every_task() -> None:
    told = ComparisonSpec(rule=TOLD.rule, endpoint=Endpoint(by_task={"a": "macro_f1"}))
    found = override(told, metric=None, selection=None, id_margin=None, by="top1")
    assert (found.rule, found.endpoint) == (told.rule, Endpoint())


def test_an_accuracy_that_nobody_knows_is_told_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["compare", "x", "--by", "macro-f1"])
    assert caught.value.code == 2
    assert "did you mean 'macro_f1'?" in capsys.readouterr().err
