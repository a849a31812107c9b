"""What a server knows of a sweep becomes records, whole or as far as it goes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from carft_sweep.tracking.comparison import runs as kept_results
from carft_sweep.tracking.comparison.pooling import SweepRuns
from carft_sweep.tracking.comparison.runs import Result, RunRecord, read_result, read_settings
from carft_sweep.tracking.comparison.spec import USUAL
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.mlflow_reader import (
    ServedRun,
    ServedSweep,
    find,
    read_part,
)
from tests.tracking.made_up import KL, run, zero_shot

EVALUATIONS = {
    "unmerged": {"step": 0, "values": {}, "metrics": {"id/test/top1": 0.6}, "facts": {"data": "d"}},
    "wise_ft@0.5": {"step": 500, "values": {"alpha": 0.5}, "metrics": {"id/test/top1": 0.7}},
}
RECORD = run("car_ft", 1, {"id/test/top1": 0.6}, trial=3, params={KL: 0.3}, digest="a" * 64)
CLAIMED = {"config": {"optim": {"lr": 1e-5}}, "identity": {"optim": {"lr": 1e-5}}, "seed": 1}


def sweep(state: str = "done", *, generation: str = "1", home: str = "mine") -> ServedSweep:
    tags = {
        "carft.sweep": "toy",
        "carft.home": home,
        "carft.state": state,
        "carft.generation": generation,
        kept_results.RULE: USUAL.model_dump_json(),
        "mlflow.user": "me",
    }
    return ServedSweep(ServedRun(tags), "f" * 32, 1_790_000_000_000)


def child(record: RunRecord, **tags: str) -> ServedRun:
    told = {
        "carft.run": record.digest,
        "carft.role": record.role,
        "carft.state": record.state,
        "carft.varied": json.dumps([KL, "optim.name"]),
        **{f"carft.{name}": value for name, value in tags.items()},
    }
    own = {KL: "0.3", "algorithm": record.algorithm, "optim.name": "adam", "optim.lr": "1e-05"}
    own |= {} if record.seed is None else {"seed": str(record.seed)}
    told |= {} if record.trial is None else {"carft.trial": str(record.trial)}
    return ServedRun(told, own)


def served(
    of: ServedSweep, *children: ServedRun, listed: Any = None, results: Any = None
) -> SweepRuns:
    runs = {item.digest: item for item in children}
    settings = None if listed is None else read_settings(json.dumps(listed))
    return read_part(of, runs, settings, results or {}, "toy")


def test_a_result_is_read_back_as_it_was_written() -> None:
    text = json.dumps(kept_results.result(RECORD, CLAIMED, EVALUATIONS))
    assert read_result(text) == Result(
        params={KL: 0.3},
        metrics={"id/test/top1": 0.6},
        merges={"wise_ft@0.5": {"id/test/top1": 0.7}},
        facts={"data": "d"},
        fields={"optim.lr": 1e-5},
    )


def test_a_list_of_runs_names_no_folder_to_read() -> None:
    listed = kept_results.settings([RECORD], 1)
    listed["runs"][0] |= {"folder": "/home/ada/.ssh", "metrics": {"id/test/top1": 1.0}}
    read = read_settings(json.dumps(listed))
    assert read is not None
    assert (read.records[0].folder, read.records[0].metrics) == (None, {})


def test_a_list_of_runs_is_read_back_as_it_was_written() -> None:
    records = [RECORD, zero_shot(digest="z"), run("car_ft", 0, digest="f", trial=1)]
    told = read_settings(json.dumps(kept_results.settings(records, 4)))
    assert told is not None
    assert told.generation == 4
    bare = [replace(record, metrics={}, merges={}) for record in records]
    assert list(told.records) == bare


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", "7", '{"version": 2}', '{"version": 1, "runs": 3, "evaluations": 5}'],
)
def test_a_file_that_is_none_of_ours_counts_as_none(text: str) -> None:
    assert read_result(text) is None
    assert read_settings(text) is None


@pytest.mark.parametrize("value", ["x", None, [1]])
def test_a_metric_that_is_no_number_makes_a_result_none(value: object) -> None:
    broken = {"unmerged": {"metrics": {"id/test/top1": value}}}
    assert read_result(json.dumps(kept_results.result(RECORD, CLAIMED, broken))) is None


def test_the_list_of_the_sweep_decides_which_runs_count_and_in_which_role() -> None:
    found = Result({KL: 0.3}, {"id/test/top1": 0.6}, {"wise_ft@0.5": {}, "wise_ft@0.9": {}})
    listed = kept_results.settings([replace(RECORD, merges={"wise_ft@0.5": {}})], 1)
    old = child(run("car_ft", 5, {}, trial=9, digest="old"))
    told = served(sweep(), child(RECORD), old, listed=listed, results={RECORD.digest: found})
    (record,) = told.records
    assert (record.trial, record.role, set(record.merges)) == (3, "trial", {"wise_ft@0.5"})
    assert not [said for said in told.warnings if "result.json" in said]


def test_a_finished_run_without_a_result_is_named_and_left_out() -> None:
    result = Result({KL: 0.3}, {"id/test/top1": 0.6}, {})
    runs = (child(RECORD), child(zero_shot(digest="z")))
    part = served(sweep("running"), *runs, results={"z": result})
    assert [record.digest for record in part.records] == ["z"]
    assert "of toy only the runs that have begun are known: it has not ended" in part.warnings[0]
    assert part.warnings[1] == (
        "1 run is left out of toy: aaaaaaaaaaaa (no result.json on the server)"
    )
    several = [child(run("car_ft", seed, {}, digest=f"{seed}")) for seed in range(5)]
    assert (
        served(sweep(), *several)
        .warnings[1]
        .startswith("5 runs are left out of toy: 0 (no result.json on the server), 1 (")
    )


def test_what_has_begun_is_known_by_its_tags_and_parameters() -> None:
    (found,) = served(sweep("running"), child(replace(RECORD, state="running"))).records
    assert (found.algorithm, found.seed, found.trial, found.state) == ("car_ft", 1, 3, "running")
    assert found.params == {KL: 0.3, "optim.name": "adam"}
    assert (found.metrics, found.merges) == ({}, {})


def test_a_run_that_has_a_seed_for_its_split_alone_is_told_apart_from_training() -> None:
    record = run("zero_shot", 3, state="running")
    found = [
        served(sweep(), child(record, **tags)).records[0] for tags in ({"trains": "false"}, {})
    ]
    assert [(known.seed, known.untrained) for known in found] == [(3, True), (3, False)]


def test_of_a_running_sweep_the_newest_states_count_and_what_has_begun_since() -> None:
    listed = kept_results.settings([replace(RECORD, state="stopped")], 1)
    new = run("car_ft", 0, trial=4, digest="new", state="running")
    older = child(run("car_ft", 0, trial=1, digest="older"), generation="0")
    runs = (child(replace(RECORD, state="running")), child(new, generation="1"), older)
    told = served(sweep("running"), *runs, listed=listed)
    assert {r.digest: r.state for r in told.records} == {RECORD.digest: "running", "new": "running"}
    ended = served(sweep("interrupted"), *runs, listed=listed)
    assert {r.digest: r.state for r in ended.records} == {RECORD.digest: "stopped"}


def test_a_list_of_an_earlier_generation_is_not_taken() -> None:
    listed = kept_results.settings([replace(RECORD, digest="gone")], 1)
    results = {RECORD.digest: Result({KL: 0.3}, {}, {})}
    told = served(
        sweep(generation="2"), child(RECORD, generation="2"), listed=listed, results=results
    )
    assert [record.digest for record in told.records] == [RECORD.digest]


def test_a_list_that_the_server_has_lost_is_told_from_one_that_it_never_had() -> None:
    lost = replace(sweep(), run=ServedRun(sweep().run.tags, artifacts="s3://gone"))
    (said, *_), (usual, *_) = (
        served(one, child(RECORD)).warnings for one in (lost, sweep("running"))
    )
    assert "settings.json is not at s3://gone" in said
    assert "it has not ended" in usual


@pytest.mark.parametrize("rule", [None, "{"])
def test_a_rule_that_cannot_be_read_is_an_error(rule: str | None) -> None:
    broken = sweep()
    tags = {name: text for name, text in broken.run.tags.items() if name != kept_results.RULE}
    run_of = ServedRun(tags if rule is None else {**tags, kept_results.RULE: rule})
    with pytest.raises(TrackingError, match=r"carft\.rule: this is no rule of a sweep"):
        served(replace(broken, run=run_of))


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
