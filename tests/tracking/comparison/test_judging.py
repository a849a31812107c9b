"""How a sweep judges survives its way through a tag, and what is no rule is refused."""

from __future__ import annotations

import json

import pytest

from tracking.comparison.spec import Judging, Rule, Terms, agreed
from tracking.errors import TrackingError

EVERY = [
    Judging(),
    Judging(Rule("id/val/nll", "minimize", within=0.01, strength={"optim.lr": -1}), (0, 3)),
    Judging(Rule("ood/mean/top1", oracle=True), (), terms=Terms(id_margin=0.02)),
    Judging(Rule(merge="wise_ft@0.5"), (1,), (2, 3)),
    Judging(Rule("ood/{task}_out/top1", oracle=True), (0,), tasks="data.test_domain"),
    Judging(Rule(named="leave_one_domain_out"), (0,), tasks="data.test_domain"),
    Judging(Rule(named="training_domain"), (0,)),
    Judging(terms=Terms(by="macro_f1")),
    Judging(terms=Terms(by_task={"a": "macro_f1", "b": "top1"}), tasks="data.family"),
]


@pytest.mark.parametrize("judging", EVERY, ids=lambda judging: judging.rule.name)
def test_it_is_read_back_as_it_was_told(judging: Judging) -> None:
    assert Judging.of_plain(json.loads(json.dumps(judging.plain()))) == judging


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"metric": "ood/mean/top1"},
        {"within": -1},
        {"strength": {"a": 7}},
        {"seeds": "x"},
        {"confirm_seeds": None},
        {"id_margin": None},
        {"by": "f1"},
    ],
    ids=str,
)
def test_what_no_sweep_tells_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(TrackingError, match="no rule of a sweep"):
        Judging.of_plain({**Judging().plain(), **change})
    with pytest.raises(TrackingError, match="no rule of a sweep"):
        Judging.of_plain({})


def test_what_an_earlier_version_told_has_no_tasks_and_is_judged_by_top1() -> None:
    plain = Judging().plain()
    del plain["tasks"], plain["by"]
    assert Judging.of_plain(plain) == Judging()


def test_other_tasks_are_settled_by_no_option() -> None:
    mine, yours = Judging(tasks="data.test_domain"), Judging()
    with pytest.raises(TrackingError) as caught:
        agreed({"mine": mine, "yours": yours})
    assert str(caught.value).endswith(
        "the tasks of one is data.test_domain, of the other none; look at each by itself"
    )


def test_what_one_sweep_has_chosen_on_confirms_nothing_in_another() -> None:
    mine, yours = Judging(seeds=(0, 1), confirm_seeds=(5, 6, 7)), Judging(seeds=(0, 1, 5))
    assert agreed({"mine": mine}) is mine
    both = agreed({"mine": mine, "yours": yours})
    assert (both.seeds, both.confirm_seeds) == ((0, 1), (6, 7))
    theirs = Judging(seeds=(0,), confirm_seeds=(7, 8))
    assert agreed({"mine": mine, "theirs": theirs}).confirm_seeds == (7,)
    assert agreed({"a": yours, "b": yours}).confirm_seeds == ()


def test_sweeps_without_a_common_seed_have_settings_that_are_whole_with_all() -> None:
    found = agreed({"a": Judging(seeds=(0,)), "b": Judging(seeds=(1,))})
    assert found.seeds is None
