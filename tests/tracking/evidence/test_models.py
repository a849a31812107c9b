"""The front holds what nothing beats, and models on show are those that stand for something."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.tracking.charted import grid_runs
from tests.tracking.made_up import kl_sweep, metrics, run, zero_shot
from tracking.comparison.compare import compare
from tracking.comparison.spec import ComparisonSpec, SelectionRule
from tracking.evidence.data import gather
from tracking.evidence.models import front

fractions = st.integers(0, 6).map(lambda n: n / 6)
points = st.lists(st.tuples(fractions, fractions), max_size=12)


@given(points)
def test_on_the_front_is_exactly_what_no_other_beats(found: list[tuple[float, float]]) -> None:
    beaten = {
        (x, y) for x, y in found if any(a >= x and b >= y and (a, b) != (x, y) for a, b in found)
    }
    assert front(found) == set(found) - beaten


def test_every_model_is_there_once_and_the_front_is_of_all_of_them() -> None:
    evidence = gather(compare(kl_sweep(), sweep="s"))
    labels = [model.label for model in evidence.models]
    assert len(labels) == len(set(labels))
    # Six settings, and three points of the curves of fine-tuning and the chosen CAR-FT.
    assert len(labels) == 6 + 2 * 3
    best = {(model.id, model.ood) for model in evidence.models if model.on_front}
    assert best == front((model.id, model.ood) for model in evidence.models)
    assert {model.label for model in evidence.models if model.on_show} == {
        row.arm.label for row in evidence.on_show
    }


def test_on_show_is_what_stands_for_each_algorithm_and_its_merges() -> None:
    evidence = gather(compare(grid_runs(), sweep="s"))
    assert [row.arm.label for row in evidence.on_show] == [
        "zero_shot",
        "fine_tune lr=0.0001",
        "fine_tune lr=0.0001 + wise_ft@0.75",
        "car_ft kl_weight=0 lr=0.001",
        "car_ft kl_weight=0 lr=0.001 + wise_ft@0.75",
        "flyp lr=0.0001",
    ]
    assert evidence.reference is evidence.on_show[1]
    assert evidence.zero_shot is evidence.on_show[0]
    assert evidence.selected is not None
    assert evidence.value(evidence.settings[0]) == 0.55


def test_with_a_merge_in_the_rule_the_merged_rows_stand() -> None:
    rule = SelectionRule(merge="wise_ft@0.5")
    evidence = gather(compare(kl_sweep(), ComparisonSpec(rule=rule), sweep="s"))
    shown = {row.arm.label for row in evidence.on_show}
    assert {"zero_shot", "fine_tune", "fine_tune + wise_ft@0.5"} <= shown
    assert evidence.reference is not None
    assert evidence.reference.arm.label == "fine_tune + wise_ft@0.5"
    assert evidence.selected is not None
    assert evidence.selected.arm.label in shown
    assert len({row.arm.label for row in evidence.on_show if row.arm.merge is None}) == 3


def test_without_candidates_fine_tuning_is_the_reference_and_without_it_nobody() -> None:
    alone = gather(compare([zero_shot(), run("fine_tune", 0, metrics(0.6, 0.3))], sweep="s"))
    assert alone.reference is not None
    assert alone.reference.arm.label == "fine_tune"
    other = gather(compare([zero_shot(), run("car_ft", 0, metrics(0.6, 0.3), trial=0)], sweep="s"))
    assert other.reference is None
    assert other.distances == other.differences == other.class_differences == ()
