"""What the tracker is told of a sweep, and what is remembered of having told it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from carft_sweep.carft_core.config.trial import flatten
from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.engines.entry import LOG
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import OUTCOME
from carft_sweep.sweeps.results.sync import SweepSync, sync_sweep
from carft_sweep.sweeps.scheduler.pruning import SeedwisePruner
from carft_sweep.sweeps.scheduler.session import Syncs
from carft_sweep.tracking.comparison.input_file import COMPARISON_INPUT, read_comparison_input
from carft_sweep.tracking.store.base import VARIED, RunKey
from tests.sweeps import toy_core
from tests.sweeps.conftest import ONE_RUN, ToySweep
from tests.sweeps.toy_runs import epoch_report
from tests.tracking.memory_store import MemoryRun, MemoryTracker

KL = "algorithm.kl_weight"
ONE = {KL: {"values": [0.3]}}
PRUNING: dict[str, Any] = {
    "parameters": {KL: {"values": [0.3, 0.4, 3.0]}},
    "early_terminate": {"type": "median", "startup_trials": 2, "min_epochs": 2, "allow_grid": True},
    "seeds": [0],
}


@pytest.mark.parametrize("dies", [False, True])
def test_an_epoch_that_is_trained_again_behind_a_checkpoint_is_told_once(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch, dies: bool
) -> None:
    clock = itertools.count(1_700_000_000_000)
    heard: list[tuple[SeedwisePruner, int]] = []

    def report(epoch: int, epochs: int) -> dict[str, Any]:
        return {**epoch_report(epoch, epochs), "timestamp": next(clock)}

    def judged(self: SeedwisePruner, number: int, seed: int, epoch: int, value: float) -> Any:
        handle = tell(self, number, seed, epoch, value)
        if handle is not None:  # it is new
            heard.append((self, epoch))
        return handle

    tell = SeedwisePruner._report
    monkeypatch.setattr(SeedwisePruner, "_report", judged)
    monkeypatch.setattr(toy_core, "epoch_report", report)
    toy.plan({"0.3/0": [{"do": "raise", "error": "key", "forget": 2}]})
    sweep = {**PRUNING, **ONE_RUN}
    toy.run(**sweep, retries=0 if dies else 1)
    if dies:
        toy.run(**sweep, failed_again=True)
    (digest,) = toy.trained()
    assert toy.trained()[digest] == toy_core.EPOCHS + 1 + 2
    (run,) = toy.tracked().values()
    for name in ("train/loss", "id/val/top1"):
        points = run.history[name]
        assert [point.step for point in points] == list(range(toy_core.EPOCHS + 1)), name
    epochs = [epoch for judge, epoch in heard if judge is heard[0][0]]
    assert epochs == list(range(1, toy_core.EPOCHS + 1))


def test_what_a_sweep_is_judged_by_is_told_of_merged_models_too(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy.run(parameters=ONE, seeds=[0])
    for file in toy.home.runs.glob("*/evaluations/*/metrics.json"):
        evaluation, when = json.loads(file.read_text()), file.stat().st_mtime_ns
        values = evaluation["metrics"].items()
        evaluation["metrics"] |= {name.replace("top1", "macro_f1"): value for name, value in values}
        file.write_text(json.dumps(evaluation))
        os.utime(file, ns=(when, when))  # it is told as of when it was measured
    measured = replace(FAMILIES["icon_shift"], metrics=("macro_f1",))
    monkeypatch.setattr("carft_sweep.sweeps.spec.validate.FAMILIES", {"icon_shift": measured})
    forget_what_was_sent(toy)
    toy.run(parameters=ONE, seeds=[0], report={"by": "macro_f1"})
    history = toy.tracked()["car_ft kl_weight=0.3 s0"].history
    for metric in ("id/test", "ood/mean"):
        assert history[f"wise_ft_0.5/{metric}/macro_f1"] == history[f"wise_ft_0.5/{metric}/top1"]
    parent = toy.tracker.runs[RunKey("toy")]
    comparison = json.loads(parent.artifacts["comparison.json"])
    assert comparison["by"] == "macro_f1"
    assert comparison["tests"][0]["endpoint"] == "ood/mean/macro_f1"


def test_data_weights_and_every_field_are_named_in_a_run(toy: ToySweep) -> None:
    toy.run(**ONE_RUN)
    (run,) = toy.tracked().values()
    contexts = {entry.name: entry.context for entry in run.datasets}
    held_out = {"id/val": "validation", "id/test": "test", "ood/dark": "shift/dark"}
    known = {"train": "training", **held_out}
    assert contexts == {f"icon_shift/{split}": context for split, context in known.items()}
    assert {(entry.digest, entry.source) for entry in run.datasets} == {("d" * 12, "builtin")}
    assert toy.tracker.runs[RunKey("toy")].datasets == run.datasets
    assert run.params["model.digest"] == "m" * 64
    assert run.params["data.digest"] == "d" * 64
    (digest,) = toy.trained()
    config = json.loads((toy.home.runs / digest / "config.json").read_text())["config"]
    fields = {name: value for name, value in flatten(config) if value is not None}
    del fields["algorithm.name"]
    own = {"algorithm": "car_ft", "seed": "0"}
    assert run.params.keys() == {*fields, *own, "model.digest", "data.digest"}
    for name in ("optim.lr", "optim.epochs", "model.name", "data.family", "prompts.classes"):
        assert run.params[name] == str(fields[name]), name
    assert json.loads(run.tags[VARIED]) == ["algorithm.kl_weight"]


def test_who_and_with_what_stands_once_at_the_sweep_unless_a_run_was_made_otherwise(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    tags = {"carft.version.torch": "1", "mlflow.user": "ada"}
    monkeypatch.setattr("carft_sweep.sweeps.ledger.generations.provenance_tags", lambda: tags)
    toy.run(**ONE_RUN)
    tags = {**tags, "carft.version.torch": "2"}
    toy.run(parameters=ONE, seeds=[0, 1], baselines=[])
    sweep = toy.tracker.runs[RunKey("toy")]
    assert (sweep.tags["carft.version.torch"], sweep.tags["mlflow.user"]) == ("1", "ada")
    first, second = (toy.tracked()[f"car_ft kl_weight=0.3 s{seed}"].tags for seed in (0, 1))
    assert not [name for name in first if "version" in name]
    assert (second["carft.version.torch"], second["mlflow.user"]) == ("2", "ada")
    toy.tracker = MemoryTracker()
    toy.run(parameters=ONE, seeds=[0, 1], baselines=[])
    assert toy.tracker.runs[RunKey("toy")].tags["carft.version.torch"] == "1"
    assert toy.tracked()["car_ft kl_weight=0.3 s1"].tags["carft.version.torch"] == "2"


def forget_what_was_sent(toy: ToySweep) -> None:
    for file in (toy.home.sweep("toy") / "sent").iterdir():
        file.unlink()


def test_a_link_that_leads_out_of_the_home_is_not_sent(toy: ToySweep) -> None:
    toy.run(**ONE_RUN)
    private = toy.folder / "id_ed25519"
    private.write_text("a private key")
    (digest,) = toy.trained()
    (toy.home.runs / digest / LOG).symlink_to(private)
    copy = toy.home.sweep("toy") / "sweep.yaml"
    copy.unlink()
    copy.symlink_to(private)
    toy.tracker = MemoryTracker()
    sync = sync_sweep(toy.home, "toy", toy.tracker)
    assert set(sync.refused) == {(digest, LOG), ("", "sweep.yaml")}
    reason = "a link leads out of the home, and only files in it are sent"
    assert {*sync.refused.values()} == {reason}
    for run in toy.tracker.runs.values():
        assert "a private key" not in str(run.artifacts)
        assert str(toy.folder) not in str({**run.tags, "carft.overrides": ""})
    (run,) = toy.tracked().values()
    assert (run.state, "config.json" in run.artifacts) == ("finished", True)


@pytest.mark.parametrize("digest", ["../../elsewhere", ".locks", ""])
def test_a_digest_that_leads_out_of_the_runs_is_refused(toy: ToySweep, digest: str) -> None:
    toy.run(**ONE_RUN)
    (before,) = toy.trained()
    shutil.move(toy.home.runs / before, toy.folder / "elsewhere")
    ledger = toy.home.sweep("toy") / "ledger.jsonl"
    ledger.write_text(ledger.read_text().replace(before, digest))
    with pytest.raises(RequestError, match="is no digest of a run"):
        sync_sweep(toy.home, "toy", MemoryTracker())
    before_it = {*toy.folder.rglob("*")}
    with pytest.raises(RequestError, match="is no digest of a run"):
        RunStore(toy.home.runs).acquire(digest, "car_ft", "toy")
    assert {*toy.folder.rglob("*")} == before_it


def whole(run: MemoryRun) -> tuple[Any, ...]:
    """What is kept of a run, without when it was told and how it came to be."""
    apart = ("carft.attempt", "carft.worker", "carft.reused_from")
    tags = {name: value for name, value in run.tags.items() if name not in apart}
    # As text: one NaN is not equal to another. What the sweep came to bears the time of its end.
    of_run = VARIED in run.tags
    history = {
        name: str(sorted(points) if of_run else [point.value for point in points])
        for name, points in run.history.items()
    }
    return run.state, run.params, tags, history, sorted(run.artifacts), run.datasets


@pytest.mark.parametrize("changes", [{}, PRUNING])
def test_another_place_or_an_emptied_one_is_told_everything_and_the_first_one_nothing_again(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    toy.plan({"0.3/0": [{"do": "raise", "error": "nan"}]} if not changes else {})
    toy.run(**changes)
    first, trained = toy.tracker, toy.trained()
    before = str(first.runs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:5000")
    second = toy.tracker = MemoryTracker()
    toy.run(**changes)
    assert toy.trained() == trained
    assert second.runs.keys() == first.runs.keys()
    for key, run in first.runs.items():
        if key.digest:
            assert whole(second.runs[key]) == whole(run)
    assert second.runs[RunKey("toy")].state == first.runs[RunKey("toy")].state
    sent = str(second.runs)
    toy.run(**changes)
    assert str(second.runs) == sent
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    toy.tracker = MemoryTracker()
    toy.run(**changes)
    assert toy.tracker.runs.keys() == first.runs.keys()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME")
    toy.tracker = first
    toy.run(**changes)
    assert str(first.runs) == before
    emptied = toy.tracker = MemoryTracker()
    toy.run(**changes)
    assert emptied.runs.keys() == first.runs.keys()
    for key, run in first.runs.items():
        assert whole(emptied.runs[key]) == whole(run)
        assert emptied.runs[key].ended == run.ended or not key.digest


def test_a_seed_that_was_done_before_its_trial_was_pruned_stays_done(toy: ToySweep) -> None:
    for _ in range(2):
        toy.run(parameters={KL: {"values": [0.3, 3.0]}}, race_seeds={"margin": 0.05}, baselines=[])
        child = toy.tracked()["car_ft kl_weight=3 s0"]
        assert (child.state, child.tags["carft.state"]) == ("finished", "done")


def test_a_torn_line_costs_a_sending_and_late_news_have_their_time(toy: ToySweep) -> None:
    toy.run(**ONE_RUN)
    (file,) = toy.home.sweep("toy").glob("sent/*.jsonl")
    before = str(toy.tracked()["car_ft kl_weight=0.3 s0"].history)
    file.write_bytes(file.read_bytes()[:-40])
    toy.run(**ONE_RUN)
    (run,) = toy.tracked().values()
    assert (run.state, str(run.history)) == ("finished", before)
    for measured in toy.home.runs.glob("*/evaluations/*/metrics.json"):
        os.utime(measured, ns=(0, 1_790_000_000_000_000_000))
    shutil.move(toy.home.runs, toy.folder / "large")
    toy.home.runs.symlink_to(toy.folder / "large")  # a link may keep them on another disk
    toy.tracker = MemoryTracker()
    forget_what_was_sent(toy)
    toy.run(**ONE_RUN)
    assert toy.complaints == []
    (run,) = toy.tracked().values()
    assert (run.ended, "config.json" in run.artifacts) == (1_790_000_000_000, True)


def test_the_sweep_sends_its_rule_and_its_runs_with_their_results(toy: ToySweep) -> None:
    toy.plan({"0.3/1": [{"do": "raise", "error": "nan"}]})
    toy.run(selection={"within": 0.01}, report={"id_margin": 0.02}, tags={"paper": "icml"})
    parent = toy.tracker.runs[RunKey("toy")]
    assert (parent.tags["paper"], toy.tracked()["zero_shot"].tags["paper"]) == ("icml", "icml")
    generation, part = read_comparison_input(parent.artifacts[COMPARISON_INPUT].decode(), "toy")
    assert (generation, parent.tags["carft.generation"]) == (1, "1")
    spec = part.spec
    assert (spec.rule.within, spec.seeds, spec.endpoint.id_margin) == (0.01, (0, 1), 0.02)
    states = [(r.algorithm, r.role, r.seed, r.state) for r in part.records]
    assert states[0] == ("zero_shot", "baseline", None, "done")
    assert states[-1] == ("car_ft", "trial", 1, "failed")
    assert len(states) == 7
    done = next(run for run in part.records if (run.params.get(KL), run.seed) == (0.3, 0))
    assert set(done.merges) == {"wise_ft@0.5"}
    assert part.fields[done.digest]["optim.batch_size"] == 64
    assert toy.tracked()["car_ft kl_weight=0.3 s0"].tags["carft.generation"] == "1"


def newest(run: MemoryRun) -> tuple[Any, ...]:
    """What is kept of a run, as a reader sees it: a sweep that ends twice has its values twice."""
    state, params, tags, _, *files = whole(run)
    values = {name: str(points[-1].value) for name, points in run.history.items()}
    return state, params, tags, values, *files


def test_the_next_run_mends_what_the_store_has_lost(toy: ToySweep) -> None:
    toy.run()
    store, trained = toy.tracker, toy.trained()
    before = {key: newest(run) for key, run in store.runs.items()}
    first, second, *_ = (key for key in store.runs if key.digest)
    del store.runs[first], store.runs[next(key for key in store.runs if key.arm)]
    store.runs[second].state = "running"
    toy.run()
    assert toy.complaints == []
    assert {key: newest(run) for key, run in store.runs.items()} == before
    assert toy.trained() == trained


def test_a_killed_sweep_keeps_its_last_verdict_and_has_no_new_arms(toy: ToySweep) -> None:
    toy.run()
    names = {"carft.verdict", "carft.answer", "carft.selected", "mlflow.note.content"}
    before = {name: toy.tracker.runs[RunKey("toy")].tags[name] for name in names}
    toy.ledger().remember(OUTCOME, {"state": "running"})
    (toy.home.sweep("toy") / "comparison.json").unlink()
    sync_sweep(toy.home, "toy", toy.tracker)
    run = toy.tracker.runs[RunKey("toy")]
    assert (run.state, run.tags["carft.state"]) == ("killed", "interrupted")
    assert {name: run.tags[name] for name in names} == before
    forget_what_was_sent(toy)
    sync_sweep(toy.home, "toy", emptied := MemoryTracker())
    assert emptied.runs[RunKey("toy")].state == "killed"
    assert not [key for key in emptied.runs if key.arm]


class RecordingEntry(dict[str, str]):
    """A run's entry that another run's record follows whenever somebody reads it."""

    def __init__(self, record: Callable[[], None], **texts: str) -> None:
        super().__init__(**texts)
        self._record = record

    def __getitem__(self, key: str) -> str:
        self._record()
        return super().__getitem__(key)


def test_unsent_runs_are_counted_while_the_tracking_thread_records_another(toy: ToySweep) -> None:
    toy.run(**ONE_RUN)
    sync = SweepSync(toy.home, toy.ledger(), MemoryTracker())
    before = sync.count_unsent()
    numbers = itertools.count()

    def record() -> None:
        sync._sent.record(f"late{next(numbers)}", "id", "done")

    sync._sent.runs["left"] = RecordingEntry(record, **{"run": "left", "id": "", "as": "running"})
    assert sync.count_unsent() == before + 1
    assert next(numbers) > 0


def test_complaints_are_listed_while_the_tracking_thread_leaves_out_another_run(
    toy: ToySweep,
) -> None:
    toy.run(**ONE_RUN)
    syncs = Syncs(toy.home, toy.ledger(), MemoryTracker(), "nobody")
    syncs.flush(haste=True)
    for digest in ("first", "second"):
        syncs._runs._leave_out(digest, RequestError("it is damaged"))
    complaints = syncs.complaints()
    assert "first" in next(complaints)
    syncs._runs._leave_out("third", RequestError("it is damaged"))
    assert "second" in next(complaints)
    syncs.close()
