"""How a sweep compares survives its way through a file, and what is no rule is refused."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from carft_sweep.tracking.comparison.spec import ComparisonSpec, Endpoint, SelectionRule, agreed
from carft_sweep.tracking.errors import TrackingError

TASKS = "data.test_domain"
RULES = [
    SelectionRule(),
    SelectionRule(metric="id/val/nll", goal="minimize", within=0.01, strength={"optim.lr": -1}),
    SelectionRule(metric="ood/mean/top1", oracle=True),
    SelectionRule(merge="wise_ft@0.5"),
]
EVERY = [
    *(ComparisonSpec(rule=rule, seeds=(0, 3)) for rule in RULES),
    ComparisonSpec(seeds=(), endpoint=Endpoint(id_margin=0.02)),
    ComparisonSpec(seeds=(1,), confirm_seeds=(2, 3)),
    ComparisonSpec(rule=SelectionRule(metric="ood/{task}_out/top1", oracle=True), tasks=TASKS),
    ComparisonSpec(seeds=(0,), tasks=TASKS),
    ComparisonSpec(endpoint=Endpoint(by="macro_f1"), reference="flyp"),
    ComparisonSpec(endpoint=Endpoint(by_task={"a": "macro_f1", "b": "top1"}), tasks="data.family"),
]


@pytest.mark.parametrize("spec", EVERY, ids=lambda spec: spec.rule.name)
def test_it_is_read_back_as_it_was_written(spec: ComparisonSpec) -> None:
    assert ComparisonSpec.model_validate(json.loads(spec.model_dump_json())) == spec


@pytest.mark.parametrize(
    "change",
    [
        {"rule": {"metric": "ood/mean/top1"}},
        {"rule": {"within": -1}},
        {"rule": {"strength": {"a": 7}}},
        {"rule": {"margin": 1}},
        {"seeds": "x"},
        {"endpoint": {"id_margin": None}},
        {"endpoint": {"by": "f1"}},
        {"version": 2},
    ],
    ids=str,
)
def test_what_no_sweep_writes_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ComparisonSpec.model_validate(change)


def test_what_was_measured_decides_the_endpoint_and_is_not_written() -> None:
    endpoint = Endpoint().suited(["id/val/top1"])
    assert (endpoint.has_test, endpoint.metric) == (False, "ood/mean/top1")
    assert set(ComparisonSpec(endpoint=endpoint).model_dump()["endpoint"]) == {
        "id_margin",
        "ood_margin",
        "by",
        "by_task",
    }


def test_other_tasks_are_settled_by_no_option() -> None:
    mine, yours = ComparisonSpec(tasks=TASKS), ComparisonSpec()
    with pytest.raises(TrackingError) as caught:
        agreed({"mine": mine, "yours": yours})
    assert str(caught.value).endswith(
        "the tasks of one is data.test_domain, of the other none; look at each by itself"
    )


def test_what_one_sweep_has_selected_on_confirms_nothing_in_another() -> None:
    mine = ComparisonSpec(seeds=(0, 1), confirm_seeds=(5, 6, 7))
    yours = ComparisonSpec(seeds=(0, 1, 5))
    assert agreed({"mine": mine}) is mine
    both = agreed({"mine": mine, "yours": yours})
    assert (both.seeds, both.confirm_seeds) == ((0, 1), (6, 7))
    theirs = ComparisonSpec(seeds=(0,), confirm_seeds=(7, 8))
    assert agreed({"mine": mine, "theirs": theirs}).confirm_seeds == (7,)
    assert agreed({"a": yours, "b": yours}).confirm_seeds == ()
