"""Zero-shot accuracies are compared with LAION's, where model, data and their extent are equal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from carft_sweep.tracking.comparison.compare import compare
from carft_sweep.tracking.comparison.runs import RunRecord, Scalar
from carft_sweep.tracking.report import published_zero_shot as published
from carft_sweep.tracking.report import terminal as report
from carft_sweep.tracking.report.published_zero_shot import Deviation, check_zero_shot, sentences
from carft_sweep.tracking.report.table import TableOptions
from tests.tracking.made_up import arm, metrics, run

B16 = ("ViT-B-16", "openai", "imagenet")
SETS = {
    **{"id/test": (50_000, 0.6835), "ood/v2": (10_000, 0.6188), "ood/r": (30_000, 0.7767)},
    **{"ood/a": (7_500, 0.5007), "ood/sketch": (50_889, 0.4814), "ood/objectnet": (18_574, 0.5544)},
}
"""What the table has for B/16 of OpenAI."""
IMAGES = {name: images for name, (images, _) in SETS.items()}
EQUAL = {f"{name}/top1": accuracy for name, (_, accuracy) in SETS.items()}


def zero_shot(
    measured: Mapping[str, float] = EQUAL, images: Mapping[str, int] = IMAGES, **changes: Any
) -> RunRecord:
    facts = {"images": dict(images)}
    return run("zero_shot", None, {**metrics(0.5, None), **measured}, facts=facts, **changes)


def fields(
    subject: tuple[str, str | None, str] = B16, templates: str = "openai"
) -> dict[str, Scalar]:
    names = ("model.name", "model.pretrained", "data.family", "prompts.classes")
    return dict(zip(names, (*subject, templates), strict=True))


def calibrated(record: RunRecord, own: Mapping[str, Scalar] | None = None) -> list[Deviation]:
    images: Any = record.facts["images"]
    return [*published.deviations(fields() if own is None else own, images, record.metrics)]


def points(record: RunRecord) -> dict[str, float]:
    return {deviation.split.metric: deviation.points for deviation in calibrated(record)}


def test_a_number_is_that_of_laions_file() -> None:
    """One of each row and column, by benchmark/benchmark.csv of CLIP_benchmark at 48de38c1."""
    table, by_class = published.published_table(), "id/test/mean_per_class_top1"
    columns = [(split.family, split.metric) for split in table.columns]
    for model, family, metric, printed in (
        ("ViT-B-16 openai", "imagenet", "id/test/top1", 0.68352),
        ("ViT-B-32 openai", "imagenet", "ood/v2/top1", 0.5596),
        ("ViT-B-16 openai", "imagenet", "ood/objectnet/top1", 0.5544309249488533),
        ("ViT-B-16-plus-240 laion400m_e32", "dtd", "id/test/top1", 0.5569148936170213),
        ("ViT-B-16 openai", "oxford_pets", by_class, 0.884512216368383),
        ("ViT-B-32-quickgelu laion400m_e32", "flowers102", by_class, 0.6628139602370955),
    ):
        number = table.rows[model][columns.index((family, metric))]
        assert number == pytest.approx(100 * printed, abs=0.005)


def test_a_measured_model_differs_by_points_on_each_whole_set() -> None:
    measured = zero_shot({**EQUAL, "id/test/top1": 0.68352, "ood/v2/top1": 0.6208})
    assert points(measured) == {**dict.fromkeys(EQUAL, 0.0), "ood/v2/top1": 0.2}
    (text,) = sentences(calibrated(measured))
    assert text.startswith(
        "Zero-shot ViT-B-16 (openai) on imagenet differs from LAION's table (CLIP_benchmark, "
        "17 June 2025) by, in points: +0.00 on ID test, +0.20 on v2, +0.00 on r, "
    )
    assert "on objectnet (LAION's class names are ObjectNet's own" in text
    assert published.warnings(calibrated(measured)) == ()
    part = zero_shot(images={**IMAGES, "id/test": 49_999, "ood/objectnet": 18_514})
    assert points(part).keys() == {f"ood/{name}/top1" for name in ("v2", "r", "a", "sketch")}
    assert points(zero_shot(images={})) == {}


def test_half_a_point_is_warned_of_and_two_of_objectnet_with_both_numbers() -> None:
    for metric, difference, warned in (
        ("id/test/top1", 0.005, False),
        ("id/test/top1", 0.0052, True),
        ("ood/objectnet/top1", -0.019, False),
        ("ood/objectnet/top1", -0.021, True),
    ):
        every = calibrated(zero_shot({**EQUAL, metric: EQUAL[metric] + difference}))
        beyond = [deviation.split.metric for deviation in every if deviation.is_beyond]
        assert (beyond, len(published.warnings(every))) == ([metric] * warned, warned)
    (text,) = published.warnings(calibrated(zero_shot({**EQUAL, "ood/a/top1": 0.4507})))
    assert text == (
        "zero-shot ViT-B-16 (openai) on imagenet differs from LAION's table: -5.00 points on a "
        "(45.07, there 50.07; up to 0.5 is usual); look at images, transform and weights before "
        "you trust the rows"
    )


def test_other_templates_are_said_and_not_warned_of_and_what_the_table_lacks_is_neither() -> None:
    every = calibrated(zero_shot({**EQUAL, "id/test/top1": 0.66}), fields(templates="photo"))
    (text,) = sentences(every)
    assert "-2.35 on ID test" in text
    note = "Its templates are photo, there openai: some difference is to be expected."
    assert text.endswith(note)
    assert published.warnings(every) == ()
    for subject in (
        ("builtin", None, "icon_shift"),
        ("ViT-B-16", "laion2b_s34b_b88k", "imagenet"),
        ("ViT-B-32", "laion400m_e32", "imagenet"),  # another activation than the table's
        ("ViT-B-16", "openai", "icon_shift"),
    ):
        assert calibrated(zero_shot(), fields(subject)) == []
    assert sentences([]) == published.warnings([]) == ()


def test_only_finished_zero_shot_models_count_and_each_number_once() -> None:
    shots = [zero_shot(digest=name) for name in ("one", "two")]
    tuned = run("fine_tune", 0, EQUAL, facts={"images": IMAGES}, digest="tuned")
    soup = zero_shot(digest="soup", role="soup")
    failed = replace(zero_shot(digest="failed"), state="failed")
    runs = [*shots, tuned, soup, failed, zero_shot(digest="without fields")]
    known = {record.digest: fields() for record in runs[:-1]}
    _, (text,) = check_zero_shot(compare(runs, sweep="s"), known)
    assert text.count(" on ") == 1 + 6
    assert check_zero_shot(compare([tuned, soup, failed, runs[-1]], sweep="s"), known)[1] == ()


def test_before_anything_is_measured_the_numbers_to_expect_are_named() -> None:
    every = [*published.deviations(fields(), IMAGES, metrics=None)]
    assert {deviation.measured for deviation in every} == {None}
    (text,) = sentences(every)
    assert text.startswith(
        "Expect of zero-shot ViT-B-16 (openai) on imagenet, by LAION's table (CLIP_benchmark, "
        "17 June 2025): ID test: 68.35, v2: 61.88, r: 77.67, a: 50.07, sketch: 48.14, objectnet ("
    )
    assert published.warnings(every) == ()


def test_the_table_says_it_below_and_warns_above() -> None:
    record = zero_shot({**EQUAL, "ood/r/top1": 0.70})
    runs, known = [record, *arm("fine_tune", [0.8] * 3, [0.5] * 3)], {record.digest: fields()}
    comparison, texts = check_zero_shot(compare(runs, sweep="s"), known)
    options = TableOptions(published_zero_shot=texts)
    text = " ".join(report.terminal(comparison, width=160, options=options).split())
    above, _, below = text.partition("s: settings chosen by")
    assert "! zero-shot ViT-B-16 (openai) on imagenet differs from LAION's table:" in above
    assert "-7.67 on r" in below.partition("Zero-shot ViT-B-16")[2]
    assert check_zero_shot(comparison, known)[0].warnings == comparison.warnings
