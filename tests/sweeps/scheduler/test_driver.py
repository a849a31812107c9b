"""A sweep trains each run once, tells each trial once, and every ending is told truthfully."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import digest_of, write_json
from carft_sweep.carft_core.runs.identity import Identity
from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.base import Failure, Handler, Job, Wait
from carft_sweep.sweeps.engines.local import InProcessEngine, LocalEngine
from carft_sweep.sweeps.ledger.runs import Lease, RunStore
from carft_sweep.sweeps.ledger.status import OUTCOME
from carft_sweep.sweeps.results.artifacts import write_comparison
from carft_sweep.sweeps.results.records import records
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.store.base import RunKey
from tests.sweeps import toy_core
from tests.sweeps.conftest import ONE_RUN, ToySweep
from tests.sweeps.scheduler.dying import Crash, Hooked, at, dying, interrupt, state_of
from tests.sweeps.toy_runs import epoch_report

ROOT = Path(__file__).parents[3]
RUNS = 1 + 2 + 4  # zero-shot, fine-tuning and two weights with two seeds each
CRASH = {"do": "raise", "error": "key"}
NAN = {"do": "raise", "error": "nan"}


def test_each_run_is_trained_and_tracked_once_in_order_and_the_same_sweep_again_does_nothing(
    toy: ToySweep, labels: Callable[[ToySweep], list[str]]
) -> None:
    assert toy.run().state == "done"
    assert labels(toy) == [
        "zero_shot",
        *(f"fine_tune seed {seed}" for seed in (0, 1)),
        *(f"car_ft kl_weight={weight} seed {seed}" for weight in (0.1, 0.3) for seed in (0, 1)),
    ]
    children = toy.tracked()
    assert len(children) == RUNS == len(toy.tracker.runs) - 1 - len(toy.arms())
    assert {run.state for run in toy.tracker.runs.values()} == {"finished"}
    child = children["car_ft kl_weight=0.3 s1"]
    own = {"algorithm": "car_ft", "algorithm.kl_weight": "0.3", "seed": "1"}
    assert {name: child.params[name] for name in own} == own
    assert child.tags["carft.trial"] == "1"
    assert [point.step for point in child.history["train/loss"]] == list(range(toy_core.EPOCHS + 1))
    assert [point.step for point in child.history["curve/wise_ft/id/val/top1"]] == [1]
    assert {"config.json"} <= set(child.artifacts)
    parent = toy.tracker.runs[RunKey("toy")]
    assert {"sweep.yaml", "comparison.json", "comparison.md"} <= set(parent.artifacts)
    trained, tracked = toy.trained(), str(toy.tracker.runs)
    assert toy.run().state == "done"
    assert toy.trained() == trained
    assert str(toy.tracker.runs) == tracked
    assert len(toy.ledger().proposals()) == 2


def test_a_changed_sweep_or_another_one_reuses_what_there_is(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_code(*args: Any, **fields: Any) -> Any:
        parts = {**toy_core.toy_identity(*args, **fields).parts, "own_code": 2}
        return Identity(digest_of(parts), parts)

    toy.run()
    trained, evaluated = toy.trained(), toy.evaluated()
    merges = [{"name": "wise_ft", "alphas": [0.5, 0.7]}]
    trial = {"algorithm": {"name": "car_ft"}, "merges": merges, "device": "cpu"}
    rows = toy.run(trial=trial).comparison.rows
    assert toy.trained() == trained
    assert toy.evaluated() - evaluated == {"wise_ft@0.7": RUNS - 1}
    assert toy.ledger().generation == 1
    assert ("car_ft", "wise_ft@0.7") in {(row.arm.algorithm, row.arm.merge) for row in rows}
    history = toy.tracked()["car_ft kl_weight=0.3 s1"].history
    assert len(history["curve/wise_ft/id/val/top1"]) == 2
    assert {"wise_ft_0.5/id/val/top1", "wise_ft_0.7/id/val/top1"} <= history.keys()
    toy.run(name="other", trial=trial, parameters={"algorithm.kl_weight": {"values": [0.3, 1.0]}})
    assert sum(toy.trained().values()) - sum(trained.values()) == 2 * (toy_core.EPOCHS + 1)
    reused = toy.tracked("other")["car_ft kl_weight=0.3 s0"]
    assert reused.tags["carft.reused_from"] == "toy"
    assert reused.history == toy.tracked("toy")["car_ft kl_weight=0.3 s0"].history
    assert "carft.reused_from" not in toy.tracked("other")["car_ft kl_weight=1 s0"].tags
    trained = toy.trained()
    toy.run(seeds=[0, 1, 2])
    assert toy.values() == {0.1: pytest.approx(0.79), 0.3: pytest.approx(0.81)}
    assert len(toy.trained() - trained) == 3
    assert any("extended" in line for line in toy.lines)
    assert any("seeds: [0, 1] -> [0, 1, 2]" in line for line in toy.lines)
    trained = toy.trained()
    changed: dict[str, Any] = {"metric": {"name": "id/test/top1"}, "selection": "oracle"}
    toy.run(seeds=[0, 1, 2], **changed)
    assert toy.trained() == trained
    assert any("begins anew as generation 3" in line for line in toy.lines)
    monkeypatch.setattr("carft_sweep.sweeps.plan.planner.identify", other_code)
    toy.run(seeds=[0, 1, 2], **changed)
    assert len(toy.trained() - trained) == 3 * 3  # zero-shot trains no epoch
    assert any("your own code changed: the sweep begins anew" in line for line in toy.lines)


def test_a_crashed_run_is_tried_as_often_as_told_and_by_the_next_driver(toy: ToySweep) -> None:
    toy.plan({"0.1/0": [CRASH] * 3})
    ended = toy.run(retries=1)
    assert ended.state == "done"
    assert ended.failures == ("crashed: KeyError: 'weights'",)
    failed, other = toy.ledger().trials()
    assert (failed.state, failed.value, other.state) == ("failed", None, "complete")
    assert failed.reason == {"kind": "crashed", "message": "KeyError: 'weights'"}
    child = toy.tracked()["car_ft kl_weight=0.1 s0"]
    assert (child.state, child.tags["carft.failure"]) == ("failed", "crashed")
    # Its other seed is there, and counts in no mean of a whole setting.
    assert toy.tracked()["car_ft kl_weight=0.1 s1"].state == "finished"
    assert toy.run(retries=1).state == "done"
    assert toy.values() == {0.1: pytest.approx(0.785), 0.3: pytest.approx(0.805)}
    state = state_of(toy, failed.runs["0"])
    assert (state.state, state.attempts, state.failure) == ("done", 4, None)
    assert [t.state.name for t in toy.study().trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert child.state == "finished"


def test_a_nan_is_not_tried_again_and_without_a_success_the_end_is_1(toy: ToySweep) -> None:
    toy.plan({f"{weight}/{seed}": [NAN] * 2 for weight in (0.1, 0.3) for seed in (0, 1)})
    assert toy.run(retries=5, baselines=[]).state == "failed"
    reason = {"kind": "nan", "message": "train/loss is nan in epoch 3"}
    assert toy.ledger().trials()[0].reason == reason
    trained = toy.trained()
    toy.run(retries=5, baselines=[], name="other")
    assert toy.ledger("other").trials()[0].state == "failed"
    assert toy.trained() == trained
    assert toy.tracked("other")["car_ft kl_weight=0.1 s0"].state == "failed"


def test_after_an_interrupt_the_command_goes_on(toy: ToySweep) -> None:
    ended = toy.run(Hooked(epoch=at(8, interrupt)))
    assert ended.state == "interrupted"
    assert {run.state for run in toy.tracker.runs.values()} == {"finished", "killed"}
    assert sum(run.state == "killed" for run in toy.tracked().values()) == 1
    assert toy.run().state == "done"
    assert set(toy.trained().values()) == {toy_core.EPOCHS + 1}
    assert {run.state for run in toy.tracker.runs.values()} == {"finished"}
    assert toy.values() == {0.1: pytest.approx(0.785), 0.3: pytest.approx(0.805)}


def test_an_interrupt_of_the_last_run_ends_the_sweep_as_done(toy: ToySweep) -> None:
    ended = toy.run(Hooked(epoch=at(toy_core.EPOCHS + 1, interrupt)), **ONE_RUN)
    assert (ended.state, ended.done) == ("done", 1)
    assert {run.state for run in toy.tracker.runs.values()} == {"finished"}

    class AtOnce(InProcessEngine):
        def run(self, handler: Handler) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            super().run(handler)

    toy.run()
    assert toy.run(AtOnce(toy_core.ENTRY)).state == "done"
    assert toy.run(AtOnce(toy_core.ENTRY), seeds=[0, 1, 2]).state == "interrupted"


def test_an_interrupt_while_results_are_written_lets_them_be_finished_and_a_second_does_not(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    presses = [1]

    def interrupted(*args: Any) -> Comparison:
        for _ in range(presses.pop()):
            os.kill(os.getpid(), signal.SIGINT)
        return write_comparison(*args)

    place = "carft_sweep.sweeps.scheduler.session.write_comparison"
    monkeypatch.setattr(place, interrupted)
    assert toy.run(**ONE_RUN).state == "done"
    assert toy.lines[-1].startswith("the results are being written")
    presses.append(2)
    with pytest.raises(KeyboardInterrupt):
        toy.run(**ONE_RUN, name="other")
    presses.append(0)
    assert toy.run(**ONE_RUN, name="other").state == "done"


@pytest.mark.parametrize("victim", ["complete", "add_trial"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_driver_that_dies_loses_nothing(toy: ToySweep, victim: str, when: str) -> None:
    with dying(victim, before=when == "before"):
        toy.run()
    assert toy.run().state == "done"
    assert [t.state.name for t in toy.study().trials] == ["COMPLETE", "COMPLETE"]
    assert set(toy.trained().values()) == {toy_core.EPOCHS + 1}
    assert len(toy.tracked()) == RUNS
    assert {run.state for run in toy.tracker.runs.values()} == {"finished"}


def test_what_a_dead_driver_left_open_is_ended(toy: ToySweep) -> None:
    class Dying(InProcessEngine):
        def run(self, handler: Any) -> None:
            job = handler.next_job()
            begin(job, handler)
            while not toy.tracked():  # the projection sends in a thread
                time.sleep(0.01)
            raise Crash

    with pytest.raises(Crash):
        toy.run(Dying(), baselines=[])
    assert toy.tracked()["car_ft kl_weight=0.1 s0"].state == "running"
    toy.run(baselines=[], parameters={"algorithm.kl_weight": {"values": [3.0]}})
    assert toy.tracked()["car_ft kl_weight=0.1 s0"].state == "killed"


def test_a_mistake_amid_the_sweep_leaves_nothing_open(toy: ToySweep) -> None:
    class Failing(InProcessEngine):
        def run(self, handler: Any) -> None:
            handler.started(handler.next_job(), "w")
            raise RequestError("the data are gone")

    with pytest.raises(RequestError, match="the data are gone"):
        toy.run(Failing())
    assert {run.state for run in toy.tracker.runs.values()} == {"killed"}
    (digest,) = RunStore(toy.home.runs).digests()
    assert state_of(toy, digest).state == "stopped"
    assert toy.run().state == "done"


def test_who_lost_its_claim_writes_no_more(toy: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("carft_sweep.sweeps.ledger.runs.RENEW_AFTER", 0.05)
    file = toy.home.sweep("toy") / "driver.json"
    successor = replace(Lease.mine(), host="elsewhere", pid=12)

    def stall(_: int) -> None:
        """Sleep in the first run for so long that another host takes over."""
        successor.write(file)
        time.sleep(0.1)

    with pytest.raises(RequestError, match="toy was taken over by process 12 on elsewhere"):
        toy.run(Hooked(run=stall))
    assert Lease.read(file) == successor
    assert toy.ledger().trials() == []
    assert toy.ledger().recall(OUTCOME) == {"state": "running"}
    assert toy.tracker.runs == {}


def test_a_run_that_another_sweep_trains_is_waited_for_and_reused(toy: ToySweep) -> None:
    toy.run(**ONE_RUN)
    digest = toy.ledger().trials()[0].runs["0"]
    folder, other = toy.home.runs / digest, RunStore(toy.home.runs)
    (folder / "trained.json").rename(folder / "elsewhere.json")
    assert other.acquire(digest, "car_ft", "other")

    class Waiting(InProcessEngine):
        waits = 0

        def run(self, handler: Any) -> None:
            while (job := handler.next_job()) is not Wait.NEVER:
                assert job is Wait.LATER
                self.waits += 1
                if self.waits == 3:
                    (folder / "elsewhere.json").rename(folder / "trained.json")
                    other.release(digest, "done")

    engine = Waiting()
    ended = toy.run(engine, name="second", **ONE_RUN)
    assert (ended.state, engine.waits) == ("done", 3)
    assert toy.ledger("second").trials()[0].state == "complete"


def test_fresh_trains_all_again_and_what_fails_keeps_its_earlier_result(toy: ToySweep) -> None:
    toy.run()
    before = toy.trained()
    assert toy.run(fresh=True).state == "done"
    assert toy.trained() == {digest: 2 * count for digest, count in before.items()}
    assert list(toy.home.runs.glob(".*.before")) == []
    toy.plan({"0.3/0": [NAN]})
    toy.run(fresh=True)
    failed = toy.ledger().trials()[1]
    assert (failed.state, state_of(toy, failed.runs["0"]).state) == ("failed", "done")
    assert toy.run(name="other").state == "done"
    assert toy.ledger("other").trials()[1].state == "complete"
    toy.plan({"3/0": [NAN] * 2})
    for _ in range(2):  # without an earlier result it is no done one
        toy.run(**{**ONE_RUN, "parameters": {"algorithm.kl_weight": {"values": [3.0]}}}, fresh=True)
        (digest,) = toy.ledger().trials()[0].runs.values()
        assert state_of(toy, digest).state == "failed"


def test_a_fresh_sweep_that_is_resumed_trains_the_rest_again_too(toy: ToySweep) -> None:
    toy.run()
    before, engine = toy.trained(), Hooked(run=at(3, interrupt))
    alone: dict[str, Any] = {"baselines": ["zero_shot"]}
    assert toy.run(engine, fresh=True, **alone).state == "interrupted"
    assert [toy.run(**alone).state for _ in range(2)] == ["done", "done"]
    again = {digest for trial in toy.ledger().trials() for digest in trial.runs.values()}
    twice = {digest: count * (1 + (digest in again)) for digest, count in before.items()}
    assert toy.trained() == twice
    toy.run()  # what is added later is not
    assert (toy.ledger().generation, toy.trained()) == (2, twice)


def test_readers_see_the_earlier_result_until_the_new_one_is_whole(toy: ToySweep) -> None:
    def seen() -> dict[str, tuple[str, object, bool]]:
        loaded = records(toy.ledger(), RunStore(toy.home.runs))
        present = [record.folder is not None and record.folder.is_dir() for record in loaded]
        return {r.digest: (r.state, r.metrics, d) for r, d in zip(loaded, present, strict=True)}

    toy.run(**ONE_RUN)
    before = seen()
    assert {state for state, *_ in before.values()} == {"done"}
    assert toy.run(Hooked(run=at(1, interrupt)), fresh=True, **ONE_RUN).state == "interrupted"
    assert seen() == before
    assert toy.run(**ONE_RUN).state == "done"
    assert seen() == before
    assert list(toy.home.runs.glob(".*.before")) == []
    (record,) = records(toy.ledger(), RunStore(toy.home.runs))
    folder = toy.home.runs / record.digest
    # A backup that a driver leaves which was killed is not read.
    shutil.copytree(folder, folder.with_name(f".{record.digest}.before"))
    assert RunStore(toy.home.runs).results(record.digest) == folder


def test_a_point_proposed_twice_is_told_the_known_value_at_once(toy: ToySweep) -> None:
    toy.run(**ONE_RUN, method="random", run_cap=3)
    assert [t.value for t in toy.ledger().trials()] == [pytest.approx(0.8)] * 3
    assert len(toy.trained()) == 1


def begin(job: Job, handler: Handler) -> None:
    """Start a run as a worker does, which then writes down what it computes with."""
    claim = {"digest": job.digest, "seed": job.seed, "identity": {}, "config": job.config}
    write_json(Path(job.workdir, "config.json"), claim)
    handler.started(job, "w")


class SideBySide(InProcessEngine):
    """Begins three runs at once; the first one becomes NaN, then the others report an epoch."""

    def run(self, handler: Handler) -> None:
        jobs = [job for _ in range(3) if isinstance(job := handler.next_job(), Job)]
        assert len(jobs) == 3
        for job in jobs:
            begin(job, handler)
        handler.failed(jobs[0], Failure("nan", "train/loss is nan"))
        for job in jobs[1:]:
            assert handler.reported(job, epoch_report(1, 4)) is Decision.STOP
            handler.stopped(job)
        assert handler.next_job() is Wait.NEVER


def test_a_nan_ends_the_other_seeds_of_its_trial_too(toy: ToySweep) -> None:
    only: dict[str, Any] = {**ONE_RUN, "seeds": [0, 1, 2, 3, 4]}
    ended = toy.run(SideBySide(), **only)
    assert ended.state == "failed"
    assert [trial.state for trial in toy.ledger().trials()] == ["failed"]
    assert [run.state for run in toy.tracked().values()] == ["failed", "killed", "killed"]
    assert toy.run(**only).state == "failed"
    assert toy.trained() == {}


def test_a_killed_worker_costs_an_attempt(toy: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    toy.plan({"0.3/0": [{"do": "kill"}]})
    with closing(LocalEngine(toy_core.ENTRY)) as engine:
        ended = toy.run(engine, **ONE_RUN)
    assert ended.state == "done"
    assert toy.values() == {0.3: pytest.approx(0.8)}
    assert any("SIGKILL" in line and "tried again" in line for line in toy.lines)
    (child,) = toy.tracked().values()
    assert (child.state, child.tags["carft.attempt"]) == ("finished", "2")
    assert "log.txt" in child.artifacts


def test_another_sweep_does_not_replace_one_of_another_user_by_its_name(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(user: str, **changes: Any) -> None:
        monkeypatch.setenv("CARFT_USER", user)
        toy.run(**{**ONE_RUN, **changes})

    other: dict[str, Any] = {"metric": {"name": "id/test/top1"}, "selection": "oracle"}
    run("ada")
    run("bob", seeds=[0, 1])  # the same sweep goes on, whoever runs it
    run("ada", **other)  # hers too, whoever went on with it
    with pytest.raises(RequestError, match="the sweep toy is ada's, and another one"):
        run("eve")
    run("eve", fresh=True)
    assert toy.ledger().generation == 4
    with pytest.raises(RequestError, match="the sweep toy is eve's, and another one"):
        run("ada", **other)
