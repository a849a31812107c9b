"""What every tracker promises, whatever keeps the runs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.store.base import (
    DatasetInput,
    EndState,
    Kind,
    Metric,
    RunKey,
    RunStart,
    RunsView,
)
from tests.tracking.subjects import Subject, points

pytestmark = pytest.mark.xdist_group("ui")
SWEEP = RunKey("kl weight's")
RUN = RunKey("kl weight's", "ab" * 32)
NOW = 1_790_000_000_000

PARENT = RunStart(SWEEP, "kl_weight", NOW)
CHILD = RunStart(
    RUN,
    "car_ft-0003-seed1",
    NOW + 1,
    parent=SWEEP,
    params={"optim.lr": 1e-5, "algorithm.kl_weight": 1, "nothing": None, "flag": True, "e": ""},
    tags={"carft.seed": "1", "free": "text"},
)
TRAIN = DatasetInput("icon_shift/train", "d" * 64, "/data/icons", "training")
SKETCHES = DatasetInput("sketches", "e" * 8, "https://example.org/s.zip", "shift/sketch")
VIEW = RunsView("v", "arm", ["id/val/top1"])


def opened(subject: Subject) -> None:
    subject.tracker.start_run(PARENT)
    subject.tracker.start_run(CHILD)


class TestEveryTracker:
    def test_a_run_is_kept_as_it_was_opened(self, subject: Subject) -> None:
        opened(subject)
        seen = subject.see(RUN)
        assert seen.name == "car_ft-0003-seed1"
        assert seen.state == "running"
        assert seen.started == NOW + 1
        assert seen.params == {
            "optim.lr": "1e-05",
            "algorithm.kl_weight": "1",
            "nothing": "null",
            "flag": "true",
            "e": "",
        }
        assert seen.tags == {"carft.seed": "1", "free": "text"}

    def test_a_dataset_is_kept_once_with_a_digest_that_fits(self, subject: Subject) -> None:
        opened(subject)
        for _ in range(2):
            subject.tracker.log_datasets(RUN, [TRAIN, SKETCHES])
            subject.tracker.log_datasets(RUN, [])
        assert subject.see(RUN).datasets == [replace(TRAIN, digest="d" * 36), SKETCHES]
        with pytest.raises(TrackingError, match="never opened"):
            subject.tracker.log_datasets(RunKey("unknown"), [TRAIN])

    def test_two_contexts_of_one_dataset_are_both_told(self, subject: Subject) -> None:
        opened(subject)
        subject.tracker.log_datasets(SWEEP, [TRAIN, replace(TRAIN, context="test")])
        assert [entry.context for entry in subject.see(SWEEP).datasets] == ["training,test"]

    def test_opening_twice_is_opening_once(self, subject: Subject) -> None:
        opened(subject)
        once = subject.see(RUN)
        opened(subject)
        assert subject.see(RUN) == once

    @pytest.mark.parametrize("state", ["finished", "failed", "killed"])
    def test_a_run_ends_at_its_time_and_may_be_opened_again(
        self, subject: Subject, state: EndState
    ) -> None:
        opened(subject)
        subject.tracker.end_run(RUN, state, timestamp=NOW + 60)
        subject.tracker.end_run(RUN, state, timestamp=NOW + 60)
        seen = subject.see(RUN)
        assert (seen.state, seen.ended) == (state, NOW + 60)
        subject.tracker.start_run(CHILD)
        assert subject.see(RUN).state == "running"
        subject.tracker.end_run(RUN, "finished", timestamp=NOW + 90)
        seen = subject.see(RUN)
        assert (seen.state, seen.ended, seen.started) == ("finished", NOW + 90, NOW + 1)

    def test_a_parameter_keeps_its_first_value_and_a_tag_tells_of_the_other(
        self, subject: Subject
    ) -> None:
        opened(subject)
        subject.tracker.start_run(replace(CHILD, params={"optim.lr": 0.5, "late": "x"}))
        seen = subject.see(RUN)
        assert seen.params["optim.lr"] == "1e-05"
        assert seen.params["late"] == "x"
        assert seen.tags["carft.param_changed.optim.lr"] == "0.5"
        assert [name for name in seen.tags if "changed" in name] == ["carft.param_changed.optim.lr"]

    def test_a_metric_told_twice_is_one_point(self, subject: Subject) -> None:
        opened(subject)
        values = [Metric("id/val/top1", 0.5, 1, NOW), Metric("id/val/top1", math.nan, 2, NOW)]
        subject.tracker.log_metrics(RUN, [*values, values[0]])
        subject.see(RUN)
        subject.tracker.log_metrics(RUN, values)
        expected = points([(1, NOW, 0.5), (2, NOW, math.nan)])
        assert subject.see(RUN).history == {"id/val/top1": expected}

    def test_an_infinite_value_becomes_a_tag(self, subject: Subject) -> None:
        opened(subject)
        subject.tracker.log_metrics(
            RUN, [Metric("a/b", -math.inf, 7, NOW), Metric("c", 1.0, 7, NOW)]
        )
        seen = subject.see(RUN)
        assert set(seen.history) == {"c"}
        assert seen.tags["carft.not_finite.a/b"] == "-inf at step 7"

    @pytest.mark.parametrize(
        "name", ["gap(id=ood)", "/lead//..", "wise_ft@0.5/top1%", "a\nb", "x" * 400, "", "..", "π"]
    )
    def test_any_name_is_made_to_fit(self, subject: Subject, name: str) -> None:
        subject.tracker.start_run(replace(PARENT, params={name: 1}, tags={name: "t"}))
        subject.tracker.log_metrics(SWEEP, [Metric(name, 1.0, 0, NOW)])
        subject.tracker.set_tags(SWEEP, {name: "u"})
        seen = subject.see(SWEEP)
        assert len(seen.params) == len(seen.history) == len(seen.tags) == 1
        assert set(seen.params) == set(seen.history) == set(seen.tags)
        assert set(seen.tags.values()) == {"u"}

    def test_long_values_are_cut(self, subject: Subject) -> None:
        subject.tracker.start_run(replace(PARENT, params={"p": "p" * 7000}, tags={"t": "t" * 9000}))
        once = subject.see(SWEEP)
        assert once.params["p"] == "p" * 5999 + "…"
        assert once.tags["t"] == "t" * 4999 + "…"
        subject.tracker.start_run(replace(PARENT, params={"p": "p" * 7000}, tags={"t": "t" * 9000}))
        assert subject.see(SWEEP) == once

    def test_more_tags_and_parameters_than_one_request_takes(self, subject: Subject) -> None:
        many = {f"n{i}": str(i) for i in range(230)}
        subject.tracker.start_run(replace(PARENT, params=many, tags=many))
        seen = subject.see(SWEEP)
        assert seen.params == seen.tags == many

    def test_an_artifact_is_kept_and_replaced(self, subject: Subject, tmp_path: Path) -> None:
        opened(subject)
        file = tmp_path / "config.json"
        file.write_bytes(b"{}")
        subject.tracker.log_artifact(RUN, file)
        assert subject.see(RUN).artifacts == {"config.json": b"{}"}
        file.write_bytes(b'{"new": 1}')
        subject.tracker.log_artifact(RUN, file)
        assert subject.see(RUN).artifacts["config.json"] == b'{"new": 1}'

    def test_runs_of_two_sweeps_do_not_mix(self, subject: Subject) -> None:
        other = RunKey("other", RUN.digest)
        opened(subject)
        subject.tracker.start_run(RunStart(other, "elsewhere", NOW, params={"optim.lr": 2}))
        subject.tracker.log_metrics(other, [Metric("m", 2.0, 0, NOW)])
        assert subject.see(RUN).history == {}
        assert subject.see(other).params == {"optim.lr": "2"}
        assert subject.tracker.run_id(RUN) != subject.tracker.run_id(other)

    def test_an_arm_is_neither_the_sweep_nor_a_run_of_its_name(self, subject: Subject) -> None:
        opened(subject)
        arm = RunKey(SWEEP.sweep, arm=RUN.digest)
        subject.tracker.start_run(RunStart(arm, "the arm", NOW, parent=SWEEP, params={"n": 2}))
        subject.tracker.log_metrics(arm, [Metric("mean/id/val/top1", 0.5, 0, NOW)])
        assert subject.see(arm).parent == SWEEP
        assert subject.see(RUN).history == subject.see(SWEEP).history == {}
        ids = {subject.tracker.run_id(key) for key in (arm, RUN, SWEEP)}
        assert len(ids) == 3

    def test_a_run_that_was_removed_begins_anew(self, subject: Subject) -> None:
        opened(subject)
        subject.tracker.log_metrics(RUN, [Metric("m", 1.0, 0, NOW)])
        before = subject.tracker.run_id(RUN)
        for _ in range(2):
            subject.tracker.remove_run(RUN)
            assert subject.look(RUN) is None
            assert subject.tracker.run_id(RUN) is None
        assert subject.see(SWEEP).state == "running"
        subject.tracker.start_run(replace(CHILD, params={"optim.lr": 0.5}))
        seen = subject.see(RUN)
        assert (seen.params, seen.history) == ({"optim.lr": "0.5"}, {})
        assert before is not None

    def test_a_run_that_is_replaced_keeps_what_somebody_noted_on_it_and_nothing_else(
        self, subject: Subject
    ) -> None:
        opened(subject)
        subject.tracker.log_metrics(RUN, [Metric("m", 1.0, 0, NOW)])
        subject.tracker.set_tags(RUN, {"reviewed by": "ada", "carft.old": "1"})
        for _ in range(2):
            subject.tracker.start_run(replace(CHILD, params={"lr": 2}, tags={}, replaces=True))
            seen = subject.see(RUN)
            assert (seen.params, seen.history) == ({"lr": "2"}, {})
            assert seen.tags == {"reviewed by": "ada", "free": "text"}

    def test_a_sweep_is_removed_with_all_its_runs_and_no_others(self, subject: Subject) -> None:
        opened(subject)
        arm, other = RunKey(SWEEP.sweep, arm="an arm"), RunKey("another", RUN.digest)
        subject.tracker.start_run(RunStart(arm, "the arm", NOW, parent=SWEEP))
        subject.tracker.keep_view(VIEW, SWEEP, timestamp=NOW)
        subject.tracker.start_run(RunStart(other, "one more", NOW))
        for _ in range(2):
            subject.tracker.remove_sweep(SWEEP.sweep)
            assert [subject.look(key) for key in (SWEEP, RUN, arm)] == [None] * 3
            assert subject.tracker.run_id(RUN) is None
        assert subject.see(other).name == "one more"
        opened(subject)
        assert subject.see(RUN).state == "running"

    def test_a_view_may_be_kept_of_all_sweeps_and_of_the_arms_and_runs_of_one(
        self, subject: Subject
    ) -> None:
        opened(subject)
        kinds: tuple[Kind, ...] = ("sweep", "arm", "run")
        for title, kind in itertools.product(("one", "another"), kinds):
            view = replace(VIEW, title=title, kind=kind)
            subject.tracker.keep_view(view, SWEEP, timestamp=NOW)
        with pytest.raises(TrackingError, match="never opened"):
            subject.tracker.keep_view(VIEW, RunKey("unknown"), timestamp=NOW)


class TestWhatIsLookedUp:
    def test_every_run_of_a_sweep_is_looked_up_with_its_state(self, subject: Subject) -> None:
        tracker, arm = subject.tracker, RunKey(SWEEP.sweep, arm="car_ft kl_weight=1")
        assert tracker.runs_of(SWEEP.sweep) == {}
        opened(subject)
        tracker.start_run(RunStart(arm, "car_ft", NOW, parent=SWEEP))
        tracker.start_run(RunStart(RunKey("another"), "another", NOW))
        tracker.end_run(RUN, "killed", timestamp=NOW + 2)
        tracker.end_run(arm, "finished", timestamp=NOW + 2)
        runs = tracker.runs_of(SWEEP.sweep)
        states = {name: run.state for name, run in runs.items()}
        assert states == {"": "running", RUN.digest: "killed", arm.name: "finished"}
        assert all(runs[key.name].run_id == tracker.run_id(key) for key in (SWEEP, RUN, arm))
        tracker.remove_run(RUN)
        assert RUN.digest not in tracker.runs_of(SWEEP.sweep)
