"""The comparison reads well at every width, and nothing of it is lost in Markdown and CSV."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from rich.cells import cell_len

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec, SelectionRule
from carft_sweep.tracking.report import formats
from carft_sweep.tracking.report import terminal as report
from carft_sweep.tracking.report.table import TableOptions
from tests.tracking.made_up import KL, arm, bent, kl_sweep, metrics, run, zero_shot

GOLDEN = Path(__file__).parents[2] / "golden"


def troubled() -> Comparison:
    """Three seeds of which some failed, an oracle, contexts that tell, other data, no tuning."""
    facts = {"data": "a" * 64}
    runs: list[RunRecord] = [zero_shot(facts=facts)]
    for record in kl_sweep(3)[1:]:
        other = {"data": "b" * 64, "contexts_name": ["pixel"]}
        lost = record.trial == 2 and record.seed == 1
        runs.append(
            run(
                record.algorithm,
                record.seed,
                None if lost else record.metrics,
                trial=record.trial,
                params={**record.params, "optim.lr": 3e-4} if record.trial else record.params,
                merges=record.merges,
                facts=other if record.trial is not None else facts,
            )
        )
    rule = SelectionRule(metric="ood/mean/top1", oracle=True, within=0.005, strength={KL: 1})
    return compare(runs, ComparisonSpec(rule=rule), sweep="troubled")


SWEEP = compare(kl_sweep(), sweep="kl_weight")
TEXTS = {
    "comparison_80.txt": lambda: report.terminal(SWEEP, width=80),
    "comparison_100.txt": lambda: report.terminal(SWEEP, width=100),
    "comparison_120.txt": lambda: report.terminal(SWEEP, width=120),
    "comparison_troubled_80.txt": lambda: report.terminal(troubled(), width=80),
    "comparison_all_alphas_120.txt": lambda: report.terminal(
        SWEEP, width=120, options=TableOptions(all_alphas=True)
    ),
    "comparison.md": lambda: formats.markdown(SWEEP),
    "comparison.csv": lambda: formats.to_csv(SWEEP),
}


@pytest.mark.parametrize("name", TEXTS)
def test_the_text_is_the_one_that_was_looked_at(name: str) -> None:
    """CARFT_WRITE_GOLDEN=1 writes the new text after a wanted change; read it then."""
    text = TEXTS[name]()
    path = GOLDEN / name
    if os.environ.get("CARFT_WRITE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"{name} was written; read it, then run again without CARFT_WRITE_GOLDEN")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("all_alphas", [False, True])
@pytest.mark.parametrize("width", [40, 79, 100, 200])
def test_no_line_is_wider_than_asked_and_no_number_is_cut(width: int, all_alphas: bool) -> None:
    for comparison in (SWEEP, troubled()):
        text = report.terminal(comparison, width=width, options=TableOptions(all_alphas=all_alphas))
        assert max(map(cell_len, text.splitlines())) <= width
        assert "…" not in text


def test_many_shifts_take_several_tables_rather_than_being_left_out() -> None:
    shifts = {f"ood/corruption_{i}/top1": 0.3 for i in range(15)}
    runs = [run("car_ft", s, metrics(0.6, 0.3) | shifts, trial=0) for s in range(3)]
    text = report.terminal(compare(runs, sweep="s"), width=80)
    assert text.count("setting ") > 2
    assert text.count("corruption") == 15
    assert max(map(cell_len, text.splitlines())) <= 80


def test_colour_is_asked_for_and_never_in_the_way() -> None:
    plain = report.terminal(SWEEP, width=100)
    coloured = report.terminal(SWEEP, width=100, colour=True)
    assert "\x1b[" not in plain
    assert "\x1b[1mBETTER CURVE: car_ft kl_weight=1 beats fine_tune" in coloured


def test_what_has_no_number_is_a_dash() -> None:
    text = report.terminal(compare([run("car_ft", 0, trial=0), zero_shot()], sweep="s"), width=100)
    line = next(line for line in text.splitlines() if line.startswith("  car_ft"))
    assert set(line.split()[2:]) == {"–"}
    assert line.split()[1] == "0/1"


def test_nothing_at_all_still_gives_a_text() -> None:
    empty = compare([], sweep="s")
    nothing = "UNDECIDED: no trial has ended with a value to select on."
    assert nothing in report.terminal(empty, width=80)
    assert nothing in formats.markdown(empty)
    assert formats.to_csv(empty).startswith("setting,")


def crowd(trials: int) -> Comparison:
    """Fine-tuning and so many settings of CAR-FT, the best ones in the middle."""
    runs = [zero_shot(), *arm("fine_tune", [0.6] * 3, [0.3] * 3)]
    for trial in range(trials):
        test = 0.7 - abs(trial - trials / 2) / 1000
        merges = bent(test, 0.35)
        runs += [
            run("car_ft", s, metrics(test, 0.35), trial=trial, params={KL: trial}, merges=merges)
            for s in range(3)
        ]
    return compare(runs, sweep="crowd")


def test_of_many_trials_the_best_are_shown_with_what_they_are_compared_with() -> None:
    comparison = crowd(300)
    text = report.terminal(comparison, width=100)
    assert len({*re.findall(r"^..car_ft kl_weight=\S+", text, re.MULTILINE)}) == 50
    assert "\n▸ car_ft kl_weight=150 " in text
    assert "\n  zero_shot " in text
    assert "\n  fine_tune " in text
    assert "52 of 302 settings, the best by id/val/top1." in " ".join(text.split())
    everything = report.terminal(comparison, width=100, options=TableOptions(max_trials=None))
    assert len({*re.findall(r"^..car_ft kl_weight=\S+", everything, re.MULTILINE)}) == 300
    assert "settings, the best" not in everything
    assert "52 of 302 settings" in formats.markdown(comparison)
    assert (
        formats.markdown(comparison, options=TableOptions(max_trials=None)).count(
            "car_ft kl_weight"
        )
        > 300
    )


def test_the_selected_setting_is_shown_even_when_its_value_is_not_among_the_best() -> None:
    runs = [
        run("car_ft", 0, metrics(0.7 - trial / 10_000, 0.3), trial=trial, params={KL: trial + 1})
        for trial in range(80)
    ]
    rule = SelectionRule(within=0.5, strength={KL: 1})
    text = report.terminal(compare(runs, ComparisonSpec(rule=rule), sweep="s"), width=100)
    assert "\n▸ car_ft kl_weight=80 " in text
