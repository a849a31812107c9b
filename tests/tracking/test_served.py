"""What a sweep sends for others to compare is read back; sweeps on a server are found by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from carft_sweep.tracking.comparison.input_file import comparison_input, read_comparison_input
from carft_sweep.tracking.comparison.pooling import SweepRuns
from carft_sweep.tracking.comparison.runs import Scalar
from carft_sweep.tracking.comparison.spec import ComparisonSpec
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.mlflow_reader import ServedSweep, find
from tests.tracking.made_up import KL, run, zero_shot

RECORD = replace(
    run("car_ft", 1, {"id/test/top1": 0.6}, trial=3, params={KL: 0.3}, digest="a" * 64),
    merges={"wise_ft@0.5": {"id/test/top1": 0.7}},
    facts={"data": "d", "images": {"id/test": 50}},
)
RUNS = [RECORD, zero_shot(digest="z"), run("car_ft", 0, digest="f", trial=1)]
FIELDS: dict[str, dict[str, Scalar]] = {RECORD.digest: {"optim.lr": 1e-5}}
PART = SweepRuns("toy", RUNS, ComparisonSpec(seeds=(0, 1)), FIELDS)


def sweep(home: str = "mine") -> ServedSweep:
    tags = {"carft.sweep": "toy", "carft.home": home, "carft.state": "done", "mlflow.user": "me"}
    return ServedSweep(tags, "f" * 32, 1_790_000_000_000)


def test_what_is_compared_is_read_back_as_it_was_written_without_any_folder() -> None:
    text = comparison_input(PART, 4)
    assert read_comparison_input(text, "toy") == (4, PART)
    data = json.loads(text)
    data["runs"][0] |= {"folder": "/home/ada/.ssh", "parts": {"art": {"folder": "/home/ada"}}}
    _, part = read_comparison_input(json.dumps(data), "toy")
    assert (part.records[0].folder, part.records[0].parts) == (None, {})


WRONG = [
    *("", "{", "[]", "{}", "7", "\x00", "[" * 200_000),
    *('{"generation": 1, "rule": {}, "runs": 3}', '{"generation": 1e999, "rule": {}, "runs": []}'),
]
WRONG_FIELDS = [
    ("metrics", '{"id/test/top1": "x"}'),
    ("metrics", '{"id/test/top1": 1e308}'),
    ("metrics", f'{{"id/test/top1": {"9" * 400}}}'),
    ("metrics", f'{{"id/test/top1": {"9" * 5_000}}}'),
    ("merges", '{"wise_ft@0.5": {"id/test/top1": 1e308}}'),
    ("facts", '{"images": {"id/test": "x"}}'),
    ("facts", '{"images": {"id/test": 0}}'),
    ("role", '"x"'),
    ("seed", '"x"'),
]


def spoilt(field: str, text: str) -> str:
    """A file with another value in a field of its first run."""
    whole: dict[str, Any] = json.loads(comparison_input(PART, 1))
    whole["runs"][0][field] = "HERE"
    return json.dumps(whole).replace('"HERE"', text)


@pytest.mark.parametrize(
    "text", [*WRONG, *(spoilt(*wrong) for wrong in WRONG_FIELDS)], ids=lambda text: text[-45:]
)
def test_a_file_that_is_none_of_ours_is_refused(text: str) -> None:
    """Whoever may write to a team's server decides what stands in it."""
    with pytest.raises(TrackingError, match=r"comparison_input\.json is not one"):
        read_comparison_input(text, "toy")


def test_a_name_finds_its_sweep_and_a_home_tells_two_apart() -> None:
    mine, yours = sweep(home="1f3a9c02aa"), sweep(home="77aa")
    assert find([mine], "toy") is mine
    assert find([mine, yours], "toy@1f3a") is mine
    assert mine.place == "toy@1f3a9c02"
    assert mine.line() == "toy@1f3a9c02  done, begun 2026-09-21 14:13 UTC by me"
    for sweeps, name, message in (
        ([mine, yours], "toy", r"2 homes have a sweep 'toy'; say which:\n  toy@1f3a"),
        ([mine, yours], "toy@9", "no home '9' has"),
        ([mine], "tay", "unknown sweep 'tay'; did you mean 'toy'"),
        ([], "toy", "Known: none"),
    ):
        with pytest.raises(TrackingError, match=message):
            find(sweeps, name)
