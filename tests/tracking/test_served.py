"""What a sweep sends for others to compare is read back; sweeps on a server are found by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carft_sweep.tracking.comparison.input_file import comparison_input, read_comparison_input
from carft_sweep.tracking.comparison.pooling import SweepRuns
from carft_sweep.tracking.comparison.spec import ComparisonSpec
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.mlflow_reader import ServedSweep, find
from tests.tracking.made_up import KL, run, zero_shot

RECORD = run(
    "car_ft",
    1,
    {"id/test/top1": 0.6},
    trial=3,
    params={KL: 0.3},
    digest="a" * 64,
    merges={"wise_ft@0.5": {"id/test/top1": 0.7}},
    facts={"data": "d", "images": {"id/test": 50}},
)
PART = SweepRuns(
    "toy",
    [RECORD, zero_shot(digest="z"), run("car_ft", 0, digest="f", trial=1)],
    ComparisonSpec(seeds=(0, 1)),
    {RECORD.digest: {"optim.lr": 1e-5}},
)


def sweep(home: str = "mine") -> ServedSweep:
    tags = {"carft.sweep": "toy", "carft.home": home, "carft.state": "done", "mlflow.user": "me"}
    return ServedSweep(tags, "f" * 32, 1_790_000_000_000)


def test_what_is_compared_is_read_back_as_it_was_written() -> None:
    assert read_comparison_input(comparison_input(PART, 4), "toy") == (4, PART)


def test_a_list_of_runs_names_no_folder_to_read() -> None:
    data = json.loads(comparison_input(PART, 1))
    data["runs"][0] |= {"folder": "/home/ada/.ssh", "parts": {"art": {"folder": "/home/ada"}}}
    _, part = read_comparison_input(json.dumps(data), "toy")
    assert (part.records[0].folder, part.records[0].parts) == (None, {})


DEEP = "[" * 200_000


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", "7", "\x00", DEEP, '{"generation": 1, "rule": {}, "runs": 3}'),
        '{"generation": 1e999, "rule": {}, "runs": []}',
    ],
    ids=lambda text: text[:45],
)
def test_a_file_that_is_none_of_ours_is_refused(text: str) -> None:
    with pytest.raises(TrackingError, match=r"comparison_input\.json is not one"):
        read_comparison_input(text, "toy")


@pytest.mark.parametrize(
    ("field", "text"),
    [
        ("metrics", '{"id/test/top1": "x"}'),
        ("metrics", '{"id/test/top1": 1e308}'),
        ("metrics", f'{{"id/test/top1": {"9" * 400}}}'),
        ("metrics", f'{{"id/test/top1": {"9" * 5_000}}}'),
        ("merges", '{"wise_ft@0.5": {"id/test/top1": 1e308}}'),
        ("facts", '{"images": {"id/test": "x"}}'),
        ("facts", '{"images": {"id/test": 0}}'),
        ("role", '"x"'),
        ("seed", '"x"'),
    ],
    ids=lambda text: text[:45],
)
def test_a_run_that_cannot_be_one_makes_the_file_none(field: str, text: str) -> None:
    """Whoever may write to a team's server decides what stands in it."""
    whole: dict[str, Any] = json.loads(comparison_input(PART, 1))
    whole["runs"][0][field] = "HERE"
    with pytest.raises(TrackingError, match="is not one"):
        read_comparison_input(json.dumps(whole).replace('"HERE"', text), "toy")


def test_a_name_finds_its_sweep_and_a_home_tells_two_apart() -> None:
    mine, yours = sweep(home="1f3a9c02aa"), sweep(home="77aa")
    assert find([mine], "toy") is mine
    assert find([mine, yours], "toy@1f3a") is mine
    assert mine.place == "toy@1f3a9c02"
    with pytest.raises(TrackingError, match=r"2 homes have a sweep 'toy'; say which:\n  toy@1f3a"):
        find([mine, yours], "toy")
    with pytest.raises(TrackingError, match="no home '9' has"):
        find([mine, yours], "toy@9")
    with pytest.raises(TrackingError, match="unknown sweep 'tay'; did you mean 'toy'"):
        find([mine], "tay")
    with pytest.raises(TrackingError, match="Known: none"):
        find([], "toy")
    assert mine.line() == "toy@1f3a9c02  done, begun 2026-09-21 14:13 UTC by me"
