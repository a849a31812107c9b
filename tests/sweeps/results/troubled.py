"""A store in trouble, and a sweep whose files are written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from carft_sweep.carft_core.files import append_lines
from carft_sweep.carft_core.training.step_log import FILE, read_points
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import Ledger
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.ledger.status import OUTCOME
from carft_sweep.sweeps.results.artifacts import write_comparison
from carft_sweep.sweeps.results.records import load_part
from carft_sweep.sweeps.results.sync import SweepSync
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.store.base import EndState, Metric, RunKey, RunStart, Tracker
from tests.sweeps.toy_runs import epoch_report
from tests.tracking.memory_store import MemoryTracker

SPEC: Mapping[str, Any] = {
    **{"name": "made", "description": "", "selection": "best_val", "seeds": [0]},
    "metric": {"name": "id/val/top1", "goal": "maximize", "merge": None},
    "report": {"id_margin": 0.005, "ood_margin": 0.005},
    "parameters": {"algorithm.kl_weight": {"values": [0, 1, 2, 3]}},
}
EXECUTION = {"at": 1.0, "tags": {"carft.version.python": "3"}, "overrides": ["seeds=1"]}
EPOCHS = 3


class Troubled(MemoryTracker):
    """A store that refuses some metrics, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[], None] = lambda: None
        """Called before each call is carried out, to raise what it likes."""
        self.after: Callable[[], None] = lambda: None
        """And after it: what it raises is an answer that was lost."""
        self.calls = 0
        self.poison: Mapping[str, Exception] = {
            "poison": TrackingError("poisonous"),
            "bug": KeyError("bug"),
        }

    def _around(self, call: Callable[[], None]) -> None:
        self.before()
        self.calls += 1
        call()
        self.after()

    def start_run(self, start: RunStart) -> None:
        self._around(lambda: MemoryTracker.start_run(self, start))

    def log_metrics(self, key: RunKey, values: Sequence[Metric]) -> None:
        for metric in values:
            if metric.name in self.poison:
                raise self.poison[metric.name]
        self._around(lambda: MemoryTracker.log_metrics(self, key, values))

    def set_tags(self, key: RunKey, values: Mapping[str, str]) -> None:
        self._around(lambda: MemoryTracker.set_tags(self, key, values))

    def log_artifact(self, key: RunKey, path: Path) -> None:
        self._around(lambda: MemoryTracker.log_artifact(self, key, path))

    def end_run(self, key: RunKey, state: EndState, *, timestamp: int) -> None:
        self._around(lambda: MemoryTracker.end_run(self, key, state, timestamp=timestamp))

    def run_id(self, key: RunKey) -> str | None:
        self.before()
        return super().run_id(key)


class MadeSweep:
    """A sweep of one run a trial, whose driver and workers do what a test says."""

    def __init__(self, folder: Path) -> None:
        self.home = Home(folder / "home")
        self.ledger = Ledger.create(self.home.sweep("made"), 1, SPEC, EXECUTION)
        self.runs = RunStore(self.home.runs)

    def sync(self, store: Tracker, *, driven: bool = True) -> SweepSync:
        owner = self.runs.owner if driven else None
        return SweepSync(self.home, self.ledger, store, owner=owner)

    def propose(self) -> int:
        number = len(self.ledger.proposals())
        setting = {"algorithm": "car_ft", "params": {"algorithm.kl_weight": number}}
        setting |= {"runs": {"0": digest_of(number)}, "merges": ["wise_ft@0.5"]}
        return self.ledger.add_trial(number, setting).number

    def start(self, number: int) -> None:
        digest = digest_of(number)
        self.runs.acquire(digest, f"run {number}", "made")
        self.runs.begin(digest, "host:1")
        identity = {"data": {"digest": "d" * 64}, "model": "m" * 64}
        sections: dict[str, Any] = {name: {} for name in ("model", "prompts", "algorithm", "optim")}
        config = {"data": {"family": "icon_shift"}, "device": "cpu", **sections}
        claim = {"digest": digest, "seed": 0, "identity": identity, "config": config}
        self.write(number, "config.json", claim)

    def epoch(self, number: int, metrics: Mapping[str, float] | None = None) -> None:
        file = self.runs.folder(digest_of(number)) / "history.json"
        history = json.loads(file.read_text()) if file.exists() else []
        report = epoch_report(len(history), EPOCHS)
        report["metrics"] |= metrics or {}
        self.write(number, "history.json", [*history, report])

    def point(self, number: int) -> None:
        """Write what is measured within an epoch."""
        folder = self.runs.folder(digest_of(number))
        step = 1 + len(read_points(folder))
        metrics = {"train/loss_step": 1 / step, "system/cpu_utilization_percentage": 50.0}
        point = {"step": step, "timestamp": 1_700_000_000_000 + step, "metrics": metrics}
        append_lines(folder / FILE, [json.dumps(point)])

    def finish(self, number: int) -> None:
        for step, label in enumerate(("unmerged", "wise_ft@0.5")):
            accuracies = {"id/val/top1": 0.5 + number / 10, "ood/mean/top1": step / 2}
            measured = {"digest": label, "step": step, "values": {}, "metrics": accuracies}
            self.write(number, f"evaluations/{label}/metrics.json", {**measured, "facts": {}})
        self.runs.release(digest_of(number), "done")
        self.ledger.complete(number, [0.5 + number / 10])

    def fail(self, number: int) -> None:
        failure = {"kind": "nan", "message": "train/loss is nan", "log_tail": ""}
        self.runs.release(digest_of(number), "failed", failure)
        self.ledger.fail(number, "nan", "train/loss is nan")

    def stop(self, number: int) -> None:
        self.runs.release(digest_of(number), "stopped")

    def prune(self, number: int) -> None:
        self.ledger.prune(number, "pruned", "worse than the median")
        self.runs.release(digest_of(number), "stopped")

    def end(self) -> None:
        write_comparison(self.home.sweep("made"), load_part(self.ledger, self.runs))
        self.ledger.remember(OUTCOME, {"state": "done", "at": 2.0})

    def write(self, number: int, name: str, data: object) -> None:
        file = self.runs.folder(digest_of(number)) / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(data))


def digest_of(number: int) -> str:
    return f"{number:064x}"
