"""Quoted numbers are as their sources print them, and stand only beside what they speak of."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import yaml

from tests.tracking.domains import domain_run
from tests.tracking.made_up import arm, metrics, run, zero_shot
from tracking.comparison.compare import Comparison, compare
from tracking.comparison.runs import RunRecord
from tracking.comparison.spec import ComparisonSpec
from tracking.comparison.tasks import compare_tasks
from tracking.report import formats
from tracking.report import terminal as report
from tracking.report.published import (
    FILE,
    Subject,
    footnotes,
    none_published,
    published,
    quoted,
    quoted_beside,
)
from tracking.report.table import TableOptions

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


def printed() -> Iterator[tuple[str, float, float]]:
    """Averages that a source prints, each with the mean of the numbers that it is over."""
    for table in DATA["tables"]:
        for method, numbers in table["rows"].items():
            row = dict(zip(table["columns"], numbers, strict=True))
            over = table.get("mean_over") or [n for n in row if n not in ("id", "mean")]
            if "mean" in row and all(row.get(name) is not None for name in over):
                yield method, row["mean"], sum(row[name] for name in over) / len(over)
        for method, average in table.get("printed_average", {}).items():
            yield method, average, sum(table["rows"][method]) / len(table["rows"][method])


def test_every_printed_average_is_that_of_the_numbers_beside_it() -> None:
    averages = list(printed())
    assert len(averages) > 20
    for method, average, mean in averages:
        # Sources round to one or two digits what they averaged unrounded.
        assert mean == pytest.approx(average, abs=0.06), method


def test_every_row_names_its_source_recipe_and_backbone_and_is_a_share() -> None:
    rows = published()
    assert len(rows) > 60
    for row in rows:
        assert row.source
        assert row.recipe
        assert row.backbone.names
        assert row.values
        assert all(0.2 < value < 1 for value in row.values.values()), row
        shifts = {*DATA["families"][row.family], "id", "mean"}
        assert set(row.values) <= shifts
    assert {row.method for row in rows} >= {"CAR-FT", "FT", "zero-shot", "FLYP", "Lipsum-FT"}


def test_numbers_of_the_same_backbone_and_family_stand_beside_ours() -> None:
    quotes = beside(imagenet())
    assert quotes["CAR-FT §1"] == {
        "id/test/top1": pytest.approx(0.8327),
        "ood/v2/top1": pytest.approx(0.7403),
        "ood/r/top1": pytest.approx(0.7537),
        "ood/a/top1": pytest.approx(0.4953),
        "ood/sketch/top1": pytest.approx(0.5297),
        "ood/mean/top1": pytest.approx(0.62975),
    }
    assert {label for label in quotes if label.startswith("zero-shot")} == {
        "zero-shot §1",
        "zero-shot §3",
        "zero-shot §4",
    }


def test_the_mean_is_given_only_over_the_shifts_that_were_measured_here() -> None:
    five = beside(imagenet((*SHIFTS, "objectnet")))
    assert "ood/mean/top1" not in five["CAR-FT §1"]
    assert five["FLYP §1"]["ood/mean/top1"] == pytest.approx(0.59454)
    two = beside(imagenet(("v2", "a")))
    assert two["CAR-FT §1"]["ood/mean/top1"] == pytest.approx((0.7403 + 0.4953) / 2)
    printed = beside(imagenet((*SHIFTS, "objectnet")), Subject("ViT-L-14", "openai", "imagenet"))
    assert printed == {
        "CaRot §1": {
            "id/test/top1": pytest.approx(0.8695),
            "ood/mean/top1": pytest.approx(0.7413),
        }
    }


def test_domainbeds_means_stand_only_beside_all_domains_of_a_set() -> None:
    subject = Subject("ViT-B-16", "openai", "pacs")
    whole = beside(imagenet(("art_painting", "cartoon", "photo", "sketch")), subject)
    assert whole["CAR-FT §1"] == {"ood/mean/top1": pytest.approx(0.968)}
    assert len(whole) == 11
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
    quotes = beside(imagenet(names))["CAR-FT §1"]
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
    assert any(line.startswith("CAR-FT §1: with ±0.06") for line in notes)
    assert footnotes(()) == []


def test_every_form_of_the_table_carries_them_with_their_sign() -> None:
    comparison = imagenet()
    view = TableOptions(quoted=quoted([B16], comparison.metric_names))
    assert "| CAR-FT §1 | – |" in formats.markdown(comparison, options=view)
    (line,) = (
        line
        for line in formats.to_csv(comparison, options=view).splitlines()
        if line.startswith("CAR-FT §1,")
    )
    assert ",quoted," in line
    assert "0.7403" in line
    every = formats.to_json(comparison, options=view)["quoted"]
    plain = next(row for row in every if row["method"] == "CAR-FT")
    assert plain["quoted"] is True
    assert "TRACER" in str(plain["source"])


def test_a_comparison_without_shifts_gets_the_id_numbers() -> None:
    runs = [run("car_ft", seed, metrics(0.8, None), trial=0) for seed in range(3)]
    quotes = beside(compare(runs, sweep="s"))
    assert quotes["CAR-FT §1"] == {"id/test/top1": pytest.approx(0.8327)}
