"""Quoted numbers are as their sources print them, and stand only beside what they speak of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from carft_sweep.tracking.comparison.compare import Comparison, compare
from carft_sweep.tracking.comparison.runs import RunRecord
from carft_sweep.tracking.comparison.spec import ComparisonSpec
from carft_sweep.tracking.comparison.tasks import compare_tasks
from carft_sweep.tracking.report import formats
from carft_sweep.tracking.report import terminal as report
from carft_sweep.tracking.report.published import (
    FILE,
    PublishedFile,
    Subject,
    footnotes,
    none_published,
    published,
    quoted,
    quoted_beside,
)
from carft_sweep.tracking.report.table import TableOptions
from tests.tracking.domains import domain_run
from tests.tracking.made_up import arm, metrics, run, zero_shot

DATA: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
B16 = Subject("ViT-B-16", "openai", "imagenet")
SHIFTS = ("v2", "r", "a", "sketch")


def imagenet(names: tuple[str, ...] = SHIFTS) -> Comparison:
    """A made-up sweep on ImageNet and these of its shifts."""
    runs: list[RunRecord] = [zero_shot(), *arm("fine_tune", [0.8] * 3, [0.5] * 3)]
    runs += arm("car_ft", [0.81] * 3, [0.55] * 3, trial=0)
    return compare([on_shifts(record, names) for record in runs], sweep="ours")


def on_shifts(record: RunRecord, names: tuple[str, ...]) -> RunRecord:
    kept = {n: v for n, v in record.metrics.items() if not n.startswith("ood/") or "mean" in n}
    return replace(record, metrics={**kept, **{f"ood/{name}/top1": 0.5 for name in names}})


def beside(comparison: Comparison, subject: Subject = B16) -> dict[str, dict[str, float]]:
    quotes = quoted([subject], comparison.metric_names)
    return {row.label: dict(row.values) for row in quotes}


def printed() -> Iterator[tuple[str, float, float, float]]:
    """Averages that a source prints, each with the mean of the numbers that it is over, and how far
    rounding may take them apart.
    """
    for table in DATA["tables"]:
        averages: dict[str, tuple[float, list[float]]] = {}
        for method, numbers in table["rows"].items():
            row = dict(zip(table["columns"], numbers, strict=True))
            over: list[float] = [row[name] for name in table["shifts"] if name in row]
            if "mean" in row and len(over) == len(table["shifts"]):
                averages[method] = row["mean"], over
        for method, average in table.get("printed_average", {}).items():
            averages[method] = average, table["rows"][method]
        step = unit([average for average, _ in averages.values()])
        for method, (average, over) in averages.items():
            yield method, average, sum(over) / len(over), (step + unit(over)) / 2


def unit(numbers: list[float]) -> float:
    """That of the last digit which some number has."""
    return float(10.0 ** -max((len(str(it).partition(".")[2]) for it in numbers), default=0))


def test_every_printed_average_is_that_of_the_numbers_beside_it() -> None:
    averages = list(printed())
    assert len(averages) > 40
    for method, average, mean, rounding in averages:
        # TRACER's zero-shot model, 58.39 of numbers that make 58.40, is off by half a digit more.
        assert mean == pytest.approx(average, abs=rounding + 0.005), method


def test_what_merges_says_how_its_weight_was_chosen() -> None:
    merging = ("WiSE-FT", "VRF", "R-Adapter", "Model Stock")
    rows = [row for row in published() if any(name in row.method for name in merging)]
    assert len(rows) > 12
    assert all(row.alpha_selection != "none" for row in rows)


def test_numbers_of_the_same_backbone_and_family_stand_beside_ours() -> None:
    quotes = beside(imagenet())
    assert quotes["CAR-FT §2"] == {
        "id/test/top1": pytest.approx(0.8327),
        "ood/v2/top1": pytest.approx(0.7403),
        "ood/r/top1": pytest.approx(0.7537),
        "ood/a/top1": pytest.approx(0.4953),
        "ood/sketch/top1": pytest.approx(0.5297),
        "ood/mean/top1": pytest.approx(0.6298),  # as printed
    }
    assert {label for label in quotes if label.startswith("zero-shot")} == {
        "zero-shot §1",
        "zero-shot §3",
        "zero-shot §4",
        "zero-shot §6",
    }


def test_the_mean_is_given_only_over_the_shifts_that_were_measured_here() -> None:
    five = beside(imagenet((*SHIFTS, "objectnet")))
    assert "ood/mean/top1" not in five["CAR-FT §2"]
    assert five["FLYP §1"]["ood/mean/top1"] == pytest.approx(0.5945)
    two = beside(imagenet(("v2", "a")))
    assert two["CAR-FT §2"]["ood/mean/top1"] == pytest.approx((0.7403 + 0.4953) / 2)
    printed = beside(imagenet((*SHIFTS, "objectnet")), Subject("ViT-L-14", "openai", "imagenet"))
    assert printed["CaRot §1"] == {
        "id/test/top1": pytest.approx(0.8695),
        "ood/mean/top1": pytest.approx(0.7413),
    }
    four = beside(imagenet(), Subject("ViT-L-14", "openai", "imagenet"))
    assert four["CaRot §1"] == {"id/test/top1": pytest.approx(0.8695)}


def test_a_mean_is_the_printed_one_over_its_shifts_else_computed_and_said_to_be() -> None:
    quotes = {row.label: row for row in quoted([B16], imagenet().metric_names)}
    assert (quotes["CAR-FT §2"].mean, quotes["TRACER §1"].mean) == ("printed", "computed")
    expected = (0.7414 + 0.7933 + 0.5492 + 0.5369) / 4
    assert quotes["TRACER §1"].values["ood/mean/top1"] == pytest.approx(expected)
    (note,) = (line for line in footnotes([*quotes.values()]) if "computed" in line)
    signs = note.partition("(")[2]
    assert "§1," in signs
    assert "§2," not in signs
    two = quoted([B16], imagenet(("v2", "a")).metric_names)
    assert {row.mean for row in two} == {"computed"}


def test_corruptions_outside_of_our_mean_take_no_mean_away() -> None:
    comparison = imagenet((*SHIFTS, "c-fog-3", "c"))
    runs = [
        replace(run, facts={"outside_means": ["ood/c-fog-3", "ood/c"]}) for run in comparison.runs()
    ]
    with_corruptions = quoted_beside([B16], compare(runs, sweep="ours"))
    values = next(row.values for row in with_corruptions if row.label == "CAR-FT §2")
    assert values["ood/mean/top1"] == pytest.approx(0.6298)


def test_domainbeds_means_stand_only_beside_all_domains_of_a_set() -> None:
    subject = Subject("ViT-B-16", "openai", "pacs")
    whole = beside(imagenet(("art_painting", "cartoon", "photo", "sketch")), subject)
    assert whole["CAR-FT §1"] == {"ood/mean/top1": pytest.approx(0.968)}
    assert len(whole) == 10
    assert beside(imagenet(("sketch",)), subject) == {}


def over_tasks(domains: tuple[str, ...], field: str = "data.test_domain") -> Comparison:
    """A made-up sweep that holds out each of these."""
    runs = [
        replace(domain_run("car_ft", name, 0, 0, val=0.9, ood=0.8), params={field: name})
        for name in domains
    ]
    return compare_tasks(runs, ComparisonSpec(tasks=field), sweep="ours")


def test_beside_a_sweep_over_held_out_domains_stands_the_published_mean_over_them() -> None:
    subject = Subject("ViT-B-16", "openai", "pacs")
    whole = over_tasks(("art_painting", "cartoon", "photo", "sketch"))
    quotes = quoted_beside([subject], whole)
    by_label = {row.label: row.values for row in quotes}
    assert by_label["CAR-FT §1"] == {"ood/mean/top1": pytest.approx(0.968)}
    text = report.terminal(whole, width=120, options=TableOptions(quoted=quotes))
    (ours,), (theirs,) = (
        re.findall(rf"^  {name}.*$", text, re.MULTILINE) for name in ("car_ft", "CAR-FT")
    )
    assert (ours.split()[3], theirs.split()[4]) == ("80.0", "96.8")
    plain = imagenet()
    assert quoted_beside([B16], plain) == quoted([B16], plain.metric_names) != ()


@pytest.mark.parametrize(
    ("domains", "field"),
    [
        (("art_painting", "cartoon", "photo"), "data.test_domain"),
        (("art_painting", "cartoon", "photo", "sketch"), "data.family"),
    ],
)
def test_beside_a_mean_over_other_tasks_stands_nothing_and_why_is_said(
    domains: tuple[str, ...], field: str
) -> None:
    subject = Subject("ViT-B-16", "openai", "pacs")
    assert quoted_beside([subject], over_tasks(domains, field)) == ()
    assert "on pacs: what is published there is of other splits" in none_published([subject])


@pytest.mark.parametrize(
    "names", [("ImageNet-V2", "imagenet_r"), ("V2", "R"), ("imagenet-v2", "r")]
)
def test_a_shift_may_carry_its_familys_name(names: tuple[str, ...]) -> None:
    quotes = beside(imagenet(names))["CAR-FT §2"]
    assert quotes[f"ood/{names[0]}/top1"] == pytest.approx(0.7403)
    assert quotes["ood/mean/top1"] == pytest.approx((0.7403 + 0.7537) / 2)


@pytest.mark.parametrize(
    "subject",
    [
        Subject("builtin", None, "icon_shift"),
        Subject("ViT-B-16", "laion2b_s34b_b88k", "imagenet"),
        Subject("ViT-B-16", None, "imagenet"),
        Subject("ViT-H-14", "openai", "imagenet"),
        Subject("ViT-B-16", "openai", "icon_shift"),
    ],
)
def test_nothing_stands_beside_another_backbone_or_family(subject: Subject) -> None:
    assert beside(imagenet(), subject) == {}
    sentence = none_published([subject])
    assert f"{subject.model}" in sentence
    assert "CLIP ViT-B/16 (OpenAI) on imagenet" in sentence


def test_no_quoted_row_changes_choice_test_rank_or_verdict() -> None:
    comparison = imagenet()
    view = TableOptions(quoted=quoted([B16], comparison.metric_names))
    plain = report.terminal(comparison, width=160)
    with_quoted = report.terminal(comparison, width=160, options=view)
    assert comparison.statistics
    assert all(
        " ".join(sentence.split()) in " ".join(text.split())
        for text in (plain, with_quoted)
        for sentence in comparison.statistics
    )
    ours = [
        line for line in plain.splitlines() if re.match(r"..(zero_shot|fine_tune|car_ft)", line)
    ]
    theirs = [" ".join(line.split()) for line in with_quoted.splitlines()]
    assert all(" ".join(line.split()) in theirs for line in ours)
    assert with_quoted.count("§1") > 3


def test_each_source_is_named_once_with_its_recipe_and_the_sign_is_explained() -> None:
    rows = quoted([B16], imagenet().metric_names)
    notes = footnotes(rows)
    assert notes[0].startswith("§ quoted, not measured here")
    sources = {row.published.source for row in rows}
    assert all(sum(source in line for line in notes) == 1 for source in sources)
    assert any(line.startswith("CAR-FT §2: ±0.06") for line in notes)
    assert footnotes(()) == []


def test_a_footnote_states_the_shifts_the_runs_and_alpha_and_a_row_what_differs() -> None:
    notes = footnotes(quoted([B16], imagenet().metric_names))
    (table,) = (line for line in notes if "VRF" in line and line.startswith("§"))
    assert "Table 2. 5 shifts: v2, sketch, a, r, objectnet. Run by: VRF's authors." in table
    assert "Nothing is merged. Recipe: WiSE-FT's: AdamW" in table
    (own,) = (line for line in notes if line.startswith("WiSE-FT §6:"))
    assert own == "WiSE-FT §6: alpha: by accuracy on the ID validation set."
    (inside,) = (line for line in notes if line.startswith("R-Adapter §7:"))
    assert "scaled by it at inference; run by: R-Adapter's authors." in inside
    user = footnotes(quoted([Subject("ViT-B-32", "openai", "imagenet")], imagenet().metric_names))
    assert any("the asker's numbers, not the authors'" in line for line in user)


def test_each_statement_has_a_line_of_its_own() -> None:
    comparison = imagenet()
    view = TableOptions(quoted=quoted([B16], comparison.metric_names))
    statements = footnotes(view.quoted)
    lines = report.terminal(comparison, width=4000, options=view).splitlines()
    assert {*statements} <= {*lines}
    page = formats.markdown(comparison, options=view).splitlines()
    assert {f"- {text}" for text in statements} <= {*page}
    paper = formats.latex(comparison, options=view).splitlines()
    starts = [line for line in paper if line.startswith(r"{\footnotesize \S{}")]
    assert len(starts) == 1 + len({row.footnote for row in view.quoted})


def test_every_form_of_the_table_carries_them_with_their_sign() -> None:
    comparison = imagenet()
    view = TableOptions(quoted=quoted([B16], comparison.metric_names))
    assert "| CAR-FT §2 | – |" in formats.markdown(comparison, options=view)
    (line,) = (
        line
        for line in formats.to_csv(comparison, options=view).splitlines()
        if line.startswith("CAR-FT §2,")
    )
    assert ",quoted," in line
    assert "0.7403" in line
    every = formats.to_json(comparison, options=view)["quoted"]
    plain = next(row for row in every if row["method"] == "CAR-FT")
    assert plain["quoted"] is True
    assert "TRACER" in str(plain["source"])
    assert (plain["shifts"], plain["mean"]) == (("v2", "r", "a", "sketch"), "printed")
    assert plain["alpha_selection"] == "none"
    assert "not established" in str(plain["run_by"])


def test_a_comparison_without_shifts_gets_the_id_numbers() -> None:
    runs = [run("car_ft", seed, metrics(0.8, None), trial=0) for seed in range(3)]
    quotes = beside(compare(runs, sweep="s"))
    assert quotes["CAR-FT §2"] == {"id/test/top1": pytest.approx(0.8327)}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"run_by": ""}, "run_by"),
        ({"shifts": None}, "shifts"),
        ({"alpha_selection": None}, "alpha_selection"),
        ({"source": ""}, "source"),
        ({"shifts": ["v2"]}, "not among the shifts"),
        ({"shifts": ["v2", "r", "a", "sketch", "moon"]}, "shifts that imagenet has not"),
        ({"rows": {"FT": [80.0]}}, "FT has 1 numbers for"),
        ({"exceptions": {"nobody": {}}}, "no such row"),
        ({"backbone": "vgg"}, "no such backbone"),
        ({"comment": "x"}, "comment"),
    ],
)
def test_a_table_that_leaves_a_statement_out_or_is_inconsistent_is_refused(
    change: dict[str, Any], said: str
) -> None:
    table = {**DATA["tables"][1], **change}
    table = {name: value for name, value in table.items() if value is not None}
    exceptions = {} if "rows" in change else table["exceptions"]
    data = {**DATA, "tables": [{**table, "exceptions": exceptions}]}
    with pytest.raises(ValidationError, match=re.escape(said)):
        PublishedFile.model_validate(data)
