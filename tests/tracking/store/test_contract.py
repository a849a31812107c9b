"""What every tracker promises, whatever keeps the runs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.store import base
from tests.tracking.subjects import Subject, points

pytestmark = pytest.mark.xdist_group("ui")
SWEEP = base.RunKey("kl weight's")
RUN = base.RunKey("kl weight's", "ab" * 32)
NOW = 1_790_000_000_000

PARENT = base.RunStart(SWEEP, "kl_weight", NOW)
CHILD = base.RunStart(
    RUN,
    "car_ft-0003-seed1",
    NOW + 1,
    parent=SWEEP,
    params={"optim.lr": 1e-5, "algorithm.kl_weight": 1, "nothing": None, "flag": True, "e": ""},
    tags={"carft.seed": "1", "free": "text"},
)
TRAIN = base.DatasetInput("icon_shift/train", "d" * 64, "/data/icons", "training")
SKETCHES = base.DatasetInput("sketches", "e" * 8, "https://example.org/s.zip", "shift/sketch")


def open_runs(subject: Subject) -> None:
    subject.tracker.start_run(PARENT)
    subject.tracker.start_run(CHILD)


def test_a_run_is_kept_as_it_was_opened_and_opening_twice_is_opening_once(subject: Subject) -> None:
    for _ in range(2):
        open_runs(subject)
        seen = subject.see(RUN)
        assert (seen.name, seen.state, seen.started) == ("car_ft-0003-seed1", "running", NOW + 1)
        assert (seen.ended, seen.parent) == (None, SWEEP)
        texts = {"optim.lr": "1e-05", "algorithm.kl_weight": "1", "nothing": "null"}
        assert seen.params == {**texts, "flag": "true", "e": ""}
        assert seen.tags == {"carft.seed": "1", "free": "text"}
        assert (seen.history, seen.artifacts, seen.datasets) == ({}, {}, [])
    # A parameter keeps its first value, and a tag tells of the other.
    subject.tracker.start_run(replace(CHILD, params={"optim.lr": 0.5, "late": "x"}))
    seen = subject.see(RUN)
    assert (seen.params["optim.lr"], seen.params["late"]) == ("1e-05", "x")
    changed = {name: text for name, text in seen.tags.items() if "changed" in name}
    assert changed == {"carft.param_changed.optim.lr": "0.5"}


def test_a_dataset_is_kept_once_with_all_contexts_and_a_digest_that_fits(subject: Subject) -> None:
    open_runs(subject)
    for _ in range(2):
        subject.tracker.log_datasets(RUN, [TRAIN, SKETCHES])
        subject.tracker.log_datasets(RUN, [])
    assert subject.see(RUN).datasets == [replace(TRAIN, digest="d" * 36), SKETCHES]
    subject.tracker.log_datasets(SWEEP, [TRAIN, replace(TRAIN, context="test")])
    assert [entry.context for entry in subject.see(SWEEP).datasets] == ["training,test"]
    with pytest.raises(TrackingError, match="never opened"):
        subject.tracker.log_datasets(base.RunKey("unknown"), [TRAIN])


def test_a_run_ends_at_its_time_and_may_be_opened_again(subject: Subject) -> None:
    open_runs(subject)
    states: tuple[base.EndState, ...] = ("killed", "failed", "finished")
    for place, state in enumerate(states):
        subject.tracker.start_run(CHILD)
        assert subject.see(RUN).state == "running"
        for _ in range(2):
            subject.tracker.end_run(RUN, state, timestamp=NOW + 60 + place)
            seen = subject.see(RUN)
            assert (seen.state, seen.ended, seen.started) == (state, NOW + 60 + place, NOW + 1)


def test_a_metric_told_twice_is_one_point_and_an_infinite_value_a_tag(subject: Subject) -> None:
    open_runs(subject)
    values = [base.Metric("id/val/top1", 0.5, 1, NOW), base.Metric("id/val/top1", math.nan, 2, NOW)]
    for batch in ([*values, values[0]], values, [base.Metric("a/b", -math.inf, 7, NOW)]):
        subject.tracker.log_metrics(RUN, batch)
    seen = subject.see(RUN)
    assert seen.history == {"id/val/top1": points([(1, NOW, 0.5), (2, NOW, math.nan)])}
    assert seen.tags["carft.not_finite.a/b"] == "-inf at step 7"


def test_any_name_is_made_to_fit_long_values_are_cut_and_many_are_sent_in_several_requests(
    subject: Subject,
) -> None:
    names = ("gap(id=ood)", "/lead//..", "wise_ft@0.5/top1%", "a\nb", "x" * 400, "", "..", "π")
    for number, name in enumerate(names):
        key = base.RunKey(f"sweep {number}")
        subject.tracker.start_run(base.RunStart(key, "n", NOW, params={name: 1}, tags={name: "t"}))
        subject.tracker.log_metrics(key, [base.Metric(name, 1.0, 0, NOW)])
        subject.tracker.set_tags(key, {name: "u"})
        seen = subject.see(key)
        assert len(seen.params) == len(seen.history) == len(seen.tags) == 1, name
        assert set(seen.params) == set(seen.history) == set(seen.tags)
        assert set(seen.tags.values()) == {"u"}
    numbered = {f"n{i}": str(i) for i in range(230)}
    long = replace(PARENT, params={**numbered, "p": "p" * 7000}, tags={**numbered, "t": "t" * 9000})
    for _ in range(2):
        subject.tracker.start_run(long)
        seen = subject.see(SWEEP)
        assert seen.params == {**numbered, "p": "p" * 5999 + "…"}
        assert seen.tags == {**numbered, "t": "t" * 4999 + "…"}


def test_an_artifact_is_kept_and_replaced(subject: Subject, tmp_path: Path) -> None:
    open_runs(subject)
    file = tmp_path / "config.json"
    for content in (b"{}", b'{"new": 1}'):
        file.write_bytes(content)
        subject.tracker.log_artifact(RUN, file)
        assert subject.see(RUN).artifacts == {"config.json": content}


def test_runs_of_two_sweeps_and_an_arm_of_a_runs_name_are_kept_apart(subject: Subject) -> None:
    open_runs(subject)
    neighbours = base.RunKey("other", RUN.digest), base.RunKey(SWEEP.sweep, arm=RUN.digest)
    for key, parent in zip(neighbours, (None, SWEEP), strict=True):
        start = base.RunStart(key, "another", NOW, parent=parent, params={"n": 2})
        subject.tracker.start_run(start)
        subject.tracker.log_metrics(key, [base.Metric("m", 2.0, 0, NOW)])
        seen = subject.see(key)
        assert (seen.params, seen.parent) == ({"n": "2"}, parent)
    assert subject.see(RUN).history == subject.see(SWEEP).history == {}
    assert len({subject.tracker.run_id(key) for key in (*neighbours, RUN, SWEEP)}) == 4


def test_a_run_that_was_removed_begins_anew_and_a_replaced_one_keeps_what_somebody_noted(
    subject: Subject,
) -> None:
    open_runs(subject)
    subject.tracker.log_metrics(RUN, [base.Metric("m", 1.0, 0, NOW)])
    assert subject.tracker.run_id(RUN) is not None
    for _ in range(2):
        subject.tracker.remove_run(RUN)
        assert subject.look(RUN) is None
        assert subject.tracker.run_id(RUN) is None
    assert subject.see(SWEEP).state == "running"
    subject.tracker.start_run(replace(CHILD, params={"optim.lr": 0.5}))
    seen = subject.see(RUN)
    assert (seen.params, seen.history) == ({"optim.lr": "0.5"}, {})
    subject.tracker.log_metrics(RUN, [base.Metric("m", 1.0, 0, NOW)])
    subject.tracker.set_tags(RUN, {"reviewed by": "ada", "carft.old": "1"})
    for _ in range(2):
        subject.tracker.start_run(replace(CHILD, params={"lr": 2}, tags={}, replaces=True))
        seen = subject.see(RUN)
        assert (seen.params, seen.history) == ({"lr": "2"}, {})
        assert seen.tags == {"reviewed by": "ada", "free": "text"}


def test_a_sweep_is_removed_with_all_its_runs_and_no_others(subject: Subject) -> None:
    open_runs(subject)
    arm, other = base.RunKey(SWEEP.sweep, arm="an arm"), base.RunKey("another", RUN.digest)
    subject.tracker.start_run(base.RunStart(arm, "the arm", NOW, parent=SWEEP))
    kinds: tuple[base.Kind, ...] = ("sweep", "arm", "run")
    for title, kind in itertools.product(("one", "another"), kinds):
        view = base.RunsView(title, kind, ["id/val/top1"])
        subject.tracker.keep_view(view, SWEEP, timestamp=NOW)
        with pytest.raises(TrackingError, match="never opened"):
            subject.tracker.keep_view(view, base.RunKey("unknown"), timestamp=NOW)
    subject.tracker.start_run(base.RunStart(other, "one more", NOW))
    for _ in range(2):
        subject.tracker.remove_sweep(SWEEP.sweep)
        assert [subject.look(key) for key in (SWEEP, RUN, arm)] == [None] * 3
        assert subject.tracker.run_id(RUN) is None
    assert subject.see(other).name == "one more"
    open_runs(subject)
    assert subject.see(RUN).state == "running"


def test_every_run_of_a_sweep_is_looked_up_with_its_state(subject: Subject) -> None:
    tracker, arm = subject.tracker, base.RunKey(SWEEP.sweep, arm="car_ft kl_weight=1")
    assert tracker.runs_of(SWEEP.sweep) == {}
    open_runs(subject)
    tracker.start_run(base.RunStart(arm, "car_ft", NOW, parent=SWEEP))
    tracker.start_run(base.RunStart(base.RunKey("another"), "another", NOW))
    tracker.end_run(RUN, "killed", timestamp=NOW + 2)
    tracker.end_run(arm, "finished", timestamp=NOW + 2)
    runs = tracker.runs_of(SWEEP.sweep)
    states = {name: run.state for name, run in runs.items()}
    assert states == {"": "running", RUN.digest: "killed", arm.name: "finished"}
    assert all(runs[key.name].run_id == tracker.run_id(key) for key in (SWEEP, RUN, arm))
    tracker.remove_run(RUN)
    assert RUN.digest not in tracker.runs_of(SWEEP.sweep)
