"""Another accuracy than top-1 takes its place everywhere, by name, and nothing stands in for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from carft_sweep.sweeps.spec.metrics import FURTHER
from carft_sweep.tracking.comparison import metrics
from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec, Endpoint
from carft_sweep.tracking.comparison.tasks import compare_tasks, domainbed_table
from carft_sweep.tracking.report import terminal as report
from carft_sweep.tracking.report.formats import to_json
from carft_sweep.tracking.report.table import resolve_columns, usual_columns
from tests.tracking.made_up import kl_sweep, known, run, zero_shot

BY = "macro_f1"
CHOSEN_BY = "id/val/top1"
"""What settings are chosen by, whatever they are judged by."""


def by(kind: str, runs: list[RunRecord]) -> list[RunRecord]:
    """The same numbers under another kind, and of top-1 the same number everywhere."""
    renamed = []
    for record in runs:
        merges = {label: _renamed(measured, kind) for label, measured in record.merges.items()}
        renamed.append(replace(record, metrics=_renamed(record.metrics, kind), merges=merges))
    return renamed


def _renamed(metrics: Mapping[str, float], kind: str) -> dict[str, float]:
    splits = {name: value for name, value in metrics.items() if name.startswith(("id/", "ood/"))}
    renamed = {name.replace("/top1", f"/{kind}"): value for name, value in splits.items()}
    chosen_by = {CHOSEN_BY: metrics[CHOSEN_BY]} if CHOSEN_BY in metrics else {}
    return {**dict.fromkeys(splits, 0.5), **renamed, **chosen_by}


@pytest.fixture(scope="module")
def plain() -> Comparison:
    return compare(kl_sweep(), sweep="s")


@pytest.fixture(scope="module")
def other() -> Comparison:
    return compare(by(BY, kl_sweep()), ComparisonSpec(endpoint=Endpoint(by=BY)), sweep="s")


def test_every_kind_has_its_names_and_is_a_metric_and_a_fraction_and_no_other_is_taken() -> None:
    assert {*metrics.KINDS} == {"top1", *FURTHER}
    assert metrics.NOUNS.keys() == metrics.TITLES.keys() == {*metrics.KINDS, metrics.BENCHMARK}
    fractions = ("id/test/top1", "ood/x/ece", "gap/top1", "id/val/macro_f1")
    assert all(map(metrics.is_fraction, (*fractions, "id/test/mean_per_class_top1")))
    assert not any(map(metrics.is_fraction, ("id/test/nll", "id/test/brier", "context/id/test/kl")))
    for wrong in ({"by": "macro-f1"}, {"by_task": {"a": "macro-f1"}}):
        with pytest.raises(ValueError, match="did you mean 'macro_f1'"):
            Endpoint.model_validate(wrong)


def test_equal_numbers_under_other_names_judge_alike(plain: Comparison, other: Comparison) -> None:
    (by_top1,), (by_f1,) = plain.verdicts, other.verdicts
    assert by_f1.pair.endpoint.metric == "ood/mean/macro_f1"
    assert (by_f1.outcome, by_f1.p_better) == (by_top1.outcome, by_top1.p_better)
    (curve_by_top1,), (curve_by_f1,) = plain.curve_verdicts, other.curve_verdicts
    assert curve_by_f1.outcome == curve_by_top1.outcome
    assert curve_by_f1.pair.gain == curve_by_top1.pair.gain
    assert [curve.points for curve in other.curves] == [curve.points for curve in plain.curves]
    assert known(other.selected).arm.label == known(plain.selected).arm.label
    document = to_json(other)
    (test,) = document["tests"]
    assert {"ood/mean/macro_f1", "id/test/macro_f1"} <= test.keys()
    assert "ood/mean/top1" not in test
    assert document["by"] == BY
    # Word for word the same, but for the name of what is compared.
    sentences = " ".join(other.statistics)
    sentences = re.sub("(OOD mean|ID test) macro-F1", r"\1", sentences)
    assert sentences.replace("ID macro-F1", "ID accuracy") == " ".join(plain.statistics)


def test_the_table_has_its_columns_and_says_what_they_are(other: Comparison) -> None:
    shown = {column.header: column.metric for column in usual_columns(other)}
    names = {"ID val": "id/val", "ID test": "id/test", "OOD mean": "ood/mean"}
    names |= {name: f"ood/{name}" for name in ("flat_emoji", "outline", "pixel")}
    by_name = {header: f"{split}/macro_f1" for header, split in names.items()}
    assert shown == {"id/val/top1": CHOSEN_BY, **by_name}
    text = " ".join(report.terminal(other, width=100).split())
    assert "(best_val), 5 seeds, judged by macro-F1" in text
    assert "Macro-F1 in percent, mean over seeds" in text
    assert "Of top-1 accuracy: id/val/top1." in text
    assert "judged by" not in report.terminal(compare(kl_sweep(), sweep="s"))


def test_runs_that_lack_it_cannot_be_judged_by_it() -> None:
    comparison = compare(kl_sweep(), ComparisonSpec(endpoint=Endpoint(by=BY)), sweep="s")
    (verdict,) = comparison.verdicts
    assert verdict.outcome == "not_measured"
    assert comparison.answer.lines[0].startswith(
        "UNDECIDED: car_ft kl_weight=1 against fine_tune: not judged by macro-F1: the runs of "
        "car_ft kl_weight=1 and of fine_tune have no ood/mean/macro_f1."
    )
    assert [text for text in comparison.warnings if "macro" in text] == [
        "no run has ood/mean/macro_f1, so nothing can be judged by macro-F1; by top-1 accuracy it "
        "can (report.by: top1, --by top1)"
    ]
    assert comparison.curves == ()


def test_without_shifts_its_own_test_is_the_endpoint() -> None:
    names = {"id/val/top1", "id/test/top1", "id/val/macro_f1", "id/test/macro_f1"}
    spec = ComparisonSpec(endpoint=Endpoint(by=BY))
    endpoint = spec.endpoint.suited(names)
    assert (endpoint.metric, endpoint.id_metric) == ("id/test/macro_f1", "id/test/macro_f1")
    runs = [r for r in by(BY, kl_sweep()) if r.algorithm != "zero_shot"]
    flat = [
        replace(r, metrics={n: v for n, v in r.metrics.items() if n in names}, merges={})
        for r in runs
    ]
    claim = "BETTER: car_ft kl_weight=1 against fine_tune: ID test macro-F1 +"
    assert claim in compare(flat, spec, sweep="s").verdict
    alike = [replace(r, metrics=dict.fromkeys(names, 0.5 + (r.seed or 0) / 100)) for r in flat]
    first = next(n for n, r in enumerate(alike) if r.algorithm == "fine_tune")
    alike[first] = replace(alike[first], metrics=dict.fromkeys(names, 0.51))
    assert compare(alike, spec, sweep="s").verdicts[0].state == "NO GAIN"


def test_tasks_are_judged_each_by_its_own_and_the_mean_by_these() -> None:
    kinds = {"birds": "mean_per_class_top1", "cars": "top1"}
    runs = []  # each ranked in its own way, with a wrong answer under top-1
    for family, kind in kinds.items():
        for algorithm, trial, value in (("fine_tune", None, 0.6), ("car_ft", 0, 0.7)):
            for seed in range(5):
                small = seed * (2 if trial is None else 3) / 1000
                accuracies = {f"id/{split}/{kind}": value + small for split in ("val", "test")}
                own = {**zero_shot(ood=None).metrics, **accuracies}
                more: dict[str, Any] = {"trial": trial, "digest": f"{family}-{algorithm}-{seed}"}
                runs.append(run(algorithm, seed, own, params={"data.family": family}, **more))
    spec = ComparisonSpec(tasks="data.family", endpoint=Endpoint(by_task=kinds))
    comparison = compare_tasks(runs, spec, sweep="s")
    table = known(domainbed_table(comparison))
    assert table.endpoints == {"birds": "id/test/mean_per_class_top1", "cars": "id/test/top1"}
    assert "id/test/mean_per_class_top1 (birds) or id/test/top1 (cars)" in " ".join(table.notes)
    (row,) = (row for row in comparison.rows if row.arm.label == "car_ft")
    line = known(table.of(row.arm))
    assert line.average.mean == pytest.approx(0.706)
    assert row.metric("id/test/benchmark").mean == pytest.approx(0.706)
    (verdict,) = comparison.verdicts
    assert (verdict.pair.endpoint.metric, verdict.outcome) == ("id/test/benchmark", "better")
    assert "ID test benchmark accuracy +10.20 pp" in comparison.verdict
    text = " ".join(report.terminal(comparison).split())
    assert "Benchmark accuracy (mean-per-class accuracy of birds; top-1 of cars) in percent" in text
    assert [column.header for column in resolve_columns(comparison)][-1] == "ID test"


def test_of_hundreds_of_metrics_mlflow_has_a_series_of_those_that_runs_are_compared_by() -> None:
    # Settings may be chosen on those of ood/val and ood/test.
    own = ("ood/val/ece", "ood/test/worst_group_top1", "id/test/brier", "context/ood/x/kl")
    names = ("ood/mean/ece", "train/loss", "gap/top1", "ood/x/ece", "ood/x/nll")
    of_all = {"retention/dtd/top1", "ood/x/top1", "ood/x/macro_f1"}
    of_alpha = {"id/val/top1", "ood/mean/macro_f1"}
    every = {*own, *names, "context/id/test/entropy"} | of_all | of_alpha
    without = {"ood/x/ece", "ood/x/nll", "context/id/test/entropy"}
    assert {name for name in every if metrics.has_series(name)} == every - without
    judged = every - {"ood/val/ece", "ood/test/worst_group_top1"}
    assert {name for name in judged if metrics.has_series(name, of="merge")} == of_all | of_alpha
    assert {name for name in judged if metrics.has_series(name, of="alpha")} == of_alpha
