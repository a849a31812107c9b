"""Several tasks are one comparison: DomainBed's choices and numbers, and a verdict on the mean."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest

from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.pooling import SweepRuns, compare_sweeps
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.selection import Budget
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.comparison.tasks import combined, compare_tasks, domainbed_table
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.report.formats import latex, to_csv, to_json
from carft_sweep.tracking.report.table import task_table
from tests.tracking.domains import FIELD, GROUPS, OUT, domain_run, domainbed, measured, random_runs
from tests.tracking.made_up import known

RULES = {"IID": SelectionRule(metric=GROUPS), "oracle": SelectionRule(metric=OUT, oracle=True)}


def compared(
    records: Sequence[RunRecord], rule: SelectionRule | None = None, **options: Any
) -> Comparison:
    spec = ComparisonSpec(tasks=FIELD, rule=rule or SelectionRule())
    return compare_tasks(records, spec, sweep="s", **options)


def printed(comparison: Comparison) -> dict[str, list[str]]:
    """The table of the tasks as text: the cells by the name of the line."""
    return {line.name: [c.text for c in line.cells] for line in known(task_table(comparison)).lines}


def line_of(comparison: Comparison, algorithm: str) -> Any:
    """Its numbers in that table."""
    (arm,) = (row.arm for row in comparison.rows if row.arm.label == algorithm)
    return known(known(domainbed_table(comparison)).of(arm))


def two_domains(seeds: int = 5) -> list[RunRecord]:
    """Fine-tuning and CAR-FT at two settings, on two domains that want different ones."""
    bases = {"art": 0.5, "photo": 0.7}
    runs = [domain_run("zero_shot", d, None, None, val=0.6, ood=o - 0.1) for d, o in bases.items()]
    for seed, (domain, base) in product(range(seeds), bases.items()):
        small = seed / 1000
        val, ood = 0.8 + small, base + small
        runs.append(domain_run("fine_tune", domain, seed, None, val=val, ood=ood))
        for setting in (0, 1):
            is_best = (setting == 0) == (domain == "art")
            ood = base + (0.06 if is_best else 0.2) + 1.5 * small
            val = 0.81 + small + 0.0002 * (-1) ** seed if is_best else 0.7
            merges = {"wise_ft@0.5": measured(domain, val=val + 0.01, ood=ood + 0.01)}
            made = domain_run("car_ft", domain, seed, setting, val=val, ood=ood, merges=merges)
            runs.append(made)
    return runs


@pytest.mark.parametrize("method", RULES)
@pytest.mark.parametrize("seed", range(4))
def test_the_table_is_domainbeds(method: str, seed: int) -> None:
    records = random_runs(np.random.default_rng(seed), settings=5, seeds=3)
    comparison = compared(records, RULES[method])
    table = known(domainbed_table(comparison))
    for algorithm in ("fine_tune", "car_ft"):
        expected = domainbed(records, algorithm, method)
        order = [*(expected.per_domain[d] for d in table.endpoints)]
        assert printed(comparison)[algorithm] == [
            f"{mean:.1f} ± {error:.1f}" for mean, error in (*order, expected.average)
        ]


def test_each_task_has_the_setting_of_its_validation_and_the_verdict_is_on_the_mean() -> None:
    comparison = compared(two_domains())
    settings = {"art": "car_ft weight_decay=0", "photo": "car_ft weight_decay=1"}
    assert dict(known(domainbed_table(comparison)).settings) == settings
    # 0.5 + 0.06 and 0.7 + 0.06, and 1.5 thousandths more with each of five seeds.
    line = line_of(comparison, "car_ft")
    assert line.cells["art"].mean == pytest.approx(0.563)
    assert line.average.mean == pytest.approx(0.663)
    assert line.average.error == pytest.approx(0.0015 * np.sqrt(2) / np.sqrt(5))
    assert list(comparison.tasks) == ["art", "photo"]
    assert comparison.tasks["art"].selected is not None
    # An algorithm is given settings on a task, and runs on all.
    assert comparison.budgets == (Budget("fine_tune", 1, 10), Budget("car_ft", 2, 20))
    # Settings that a condition leaves out still count as tried.
    sweep = SweepRuns("s", two_domains(), ComparisonSpec(tasks=FIELD))
    filtered = compare_sweeps([sweep], where=["weight_decay=0"])
    parts = [filtered, *filtered.tasks.values()]
    assert [verdict.tried for part in parts for verdict in part.verdicts] == [2, 2, 2]
    (verdict,) = comparison.verdicts
    assert verdict.outcome == "better"
    expected = pytest.approx([0.06 + s / 2000 for s in range(5)])
    assert known(verdict.pair.ood).differences == expected
    first = comparison.answer.lines[0]
    assert first.startswith("BETTER: car_ft against fine_tune: OOD mean +6.10 pp [")
    assert "], ID val +1.00 pp [" in first
    assert "mean over 2 tasks (art, photo)" in comparison.verdict
    best = "Over all seeds the best setting of each task is art: car_ft weight_decay=0; "
    assert best in comparison.verdict
    assert comparison.selected is None
    assert not any(row.selected for row in comparison.rows)


def test_rows_are_algorithms_and_zero_shot_stands_among_them() -> None:
    comparison = compared(two_domains())
    rows = {row.arm.label: row for row in comparison.rows}
    assert list(rows) == ["zero_shot", "fine_tune", "car_ft", "car_ft + wise_ft@0.5"]
    assert rows["zero_shot"].metric("ood/mean/top1").mean == pytest.approx(0.5)
    assert rows["zero_shot"].n == 1
    # Each domain has a name of its own, so its accuracy is no mean.
    assert comparison.metric_names == {"id/val/top1", GROUPS, "ood/mean/top1"}
    assert [line.arm.label for line in known(domainbed_table(comparison)).lines] == list(rows)
    assert printed(comparison)["zero_shot"] == ["40.0", "60.0", "50.0"]
    assert line_of(comparison, "car_ft + wise_ft@0.5").average.mean == pytest.approx(0.673)


def test_a_task_without_a_run_leaves_the_seed_out_of_every_mean() -> None:
    lost = ("car_ft-art-0-4", "car_ft-art-1-4")
    runs = {run.digest: run for run in two_domains()}
    runs |= {name: replace(runs[name], state="failed", metrics={}, merges={}) for name in lost}
    comparison = compared([*runs.values()])
    row = next(row for row in comparison.rows if row.arm.label == "car_ft")
    assert (row.n, dict(row.arm.states)) == (4, {"done": 4, "failed": 1})
    line = line_of(comparison, "car_ft")
    assert [len(cell.by_seed) for cell in (*line.cells.values(), line.average)] == [4, 5, 4]
    assert any(warning.startswith("art: 2 failed runs") for warning in comparison.warnings)
    # Where a task has none, a mean has no cell.
    rest = [run for run in two_domains() if not run.digest.startswith("fine_tune-art")]
    comparison = compared(rest)
    assert printed(comparison)["fine_tune"] == ["–", "70.2 ± 0.1", "–"]
    assert r"fine\_tune & -- & 70.2" in latex(comparison)
    row = next(row for row in comparison.rows if row.arm.label == "fine_tune")
    assert dict(row.arm.states) == {"missing": 5}


def test_facts_of_tasks_differ_where_one_of_them_does() -> None:
    facts: dict[str, dict[str, object]] = {
        "art": {"model": "m", "data": "a", "data_notes": ["x"], "only": 1},
        "photo": {"model": "m", "data": "b", "data_notes": ["x", "y"]},
    }
    both: dict[str, object] = {"data": "art: a; photo: b", "data_notes": ["x", "y"]}
    assert combined(facts) == {"model": "m", **both, "only": 1}
    for other in ("5 epochs", "9 epochs"):
        changed, runs = {("car_ft", "art"): other}, two_domains()
        budgets = [changed.get((run.algorithm, str(run.params[FIELD])), "5 epochs") for run in runs]
        runs = [replace(run, facts={"budget": own}) for run, own in zip(runs, budgets, strict=True)]
        warned = any("mixed training budgets" in warning for warning in compared(runs).warnings)
        assert warned == (other == "9 epochs")


def test_zero_shot_on_the_split_of_each_seed_is_no_training() -> None:
    runs = [run for run in two_domains() if run.algorithm != "zero_shot"]
    for seed, domain in product(range(5), ("art", "photo")):
        made = domain_run("zero_shot", domain, seed, None, val=0.6, ood=0.4 + seed / 100)
        runs.append(replace(made, untrained=True))
    comparison = compared(runs)
    zero_shot = comparison.rows[0].arm
    assert (zero_shot.algorithm, comparison.rows[0].n, zero_shot.trains) == ("zero_shot", 5, False)
    assert [budget.algorithm for budget in comparison.budgets] == ["fine_tune", "car_ft"]
    assert [verdict.pair.candidate.algorithm for verdict in comparison.verdicts] == ["car_ft"]
    (other,) = (row.arm for row in comparison.rows if row.arm.label == "car_ft")
    # Seed by seed: 0.66 + 1.5 thousandths a seed minus 0.4 + a hundredth a seed.
    expected = pytest.approx([0.26 - 0.0085 * seed for seed in range(5)])
    assert known(comparison.pair(other, zero_shot).tested).differences == expected


def test_sweeps_over_equal_tasks_are_one_comparison_and_a_run_without_a_task_is_told() -> None:
    runs = two_domains()
    mine = [run for run in runs if run.algorithm != "car_ft"]
    yours = [run for run in runs if run.algorithm != "fine_tune"]
    spec = ComparisonSpec(tasks=FIELD)
    fields = {run.digest: {**run.params, "algorithm.name": run.algorithm} for run in runs}
    parts = [SweepRuns("mine", mine, spec, fields), SweepRuns("yours", yours, spec, fields)]
    both, alone = compare_sweeps(parts), compared(runs)
    assert printed(both) == printed(alone)
    with pytest.raises(TrackingError, match=r"the tasks of one is data.test_domain, of the other"):
        compare_sweeps([parts[0], SweepRuns("yours", yours, ComparisonSpec(), fields)])
    with pytest.raises(TrackingError, match=r"has no data.test_domain, so it is of no task"):
        compared([replace(run, params={}) for run in two_domains()])


def test_a_spreadsheet_has_each_task_as_fractions_and_json_each_task_and_the_table() -> None:
    comparison = compared(two_domains())
    rows = {row["setting"]: row for row in csv.DictReader(io.StringIO(to_csv(comparison)))}
    assert float(rows["fine_tune"]["art mean"]) == pytest.approx(0.502)
    assert float(rows["fine_tune"]["Avg mean"]) == pytest.approx(0.602)
    assert rows["zero_shot"]["Avg error"] == ""
    more = replace(comparison, rows=(*comparison.rows, *comparison.tasks["art"].rows[-1:]))
    lines = [*csv.DictReader(io.StringIO(to_csv(more)))]
    assert [row["art mean"] == "" for row in lines] == [False] * (len(lines) - 1) + [True]
    plain = json.loads(json.dumps(to_json(comparison), allow_nan=False))["tasks"]
    metrics = {"art": "ood/mean/top1", "photo": "ood/mean/top1"}
    assert (plain["field"], plain["metrics"]) == (FIELD, metrics)
    assert set(plain["comparisons"]) == {"art", "photo"}
    row = next(row for row in plain["rows"] if row["label"] == "car_ft")
    assert row["average"]["mean"] == pytest.approx(0.663)
    assert [value["seed"] for value in row["average"]["values"]] == [0, 1, 2, 3, 4]
