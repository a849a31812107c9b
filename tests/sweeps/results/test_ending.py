"""What a worker makes at a sweep's end, and what this process makes where no worker could."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.engines.base import Engine, Failure, Handler, Job
from carft_sweep.sweeps.engines.factory import workers_here
from carft_sweep.sweeps.engines.local import InProcessEngine, LocalEngine
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results.ending import EXPORT, PAGE, Ending
from carft_sweep.sweeps.results.export import Exporter, SelectedModel, select_model
from carft_sweep.sweeps.results.records import comparison
from carft_sweep.sweeps.spec.spec import load_spec
from tests.sweeps.conftest import ONE_RUN, ToySweep


class Worker(InProcessEngine):
    """Returns what `results` has, by the digests of jobs, and fails at the others."""

    def __init__(self, results: Mapping[str, Any], kind: Any = "crashed") -> None:
        super().__init__()
        self.results, self.failure = results, Failure(kind, "of a reason")
        self.jobs: list[str] = []

    def _execute(self, handler: Handler, job: Job) -> None:
        json.dumps(vars(job))  # as it goes to a worker
        self.jobs.append(job.digest)
        if job.digest in self.results:
            handler.finished(job, self.results[job.digest])
        else:
            handler.failed(job, self.failure)


class Ended:
    """A toy sweep of one run, whose model has weights, with the end that a worker made of it."""

    def __init__(self, toy: ToySweep, monkeypatch: pytest.MonkeyPatch) -> None:
        @contextmanager
        def workers(engine: Engine) -> Iterator[Engine]:
            yield engine

        def write(_: Exporter, model: SelectedModel, folder: Path) -> None:
            folder.mkdir()
            self.made.append(model.run.digest)

        self.made: list[str] = []
        """What this process made: `page`, or the run whose model it exported."""
        self.notes: list[str] = []
        toy.run(**ONE_RUN)
        self.ledger = toy.ledger()
        self.compared = comparison(self.ledger, RunStore(toy.home.runs))
        self.model = select_model(self.compared)
        self._spec, self._home = load_spec(toy.file(**ONE_RUN)), toy.home
        monkeypatch.setattr("carft_sweep.sweeps.results.ending.workers_here", workers)
        monkeypatch.setattr(
            "carft_sweep.sweeps.results.ending.keep", lambda *_: self.made.append(PAGE)
        )
        monkeypatch.setattr(Exporter, "has_weights", lambda *_: True)
        monkeypatch.setattr(Exporter, "write", write)

    def make(self, worker: Worker, folder: Path) -> None:
        with closing(Ending(self._home, self._spec, self.notes.append)) as ending:
            ending.make(worker, self.ledger, self.compared, page=True)
            models = Exporter(self._home, self._spec, self.ledger, self.compared)
            ending.write(models, self.model, folder)


@pytest.fixture
def ended(toy: ToySweep, monkeypatch: pytest.MonkeyPatch) -> Ended:
    return Ended(toy, monkeypatch)


def test_what_a_worker_made_is_taken(ended: Ended, tmp_path: Path) -> None:
    export = tmp_path / "scratch"
    export.mkdir()
    (export / "README.md").write_text("a card")
    worker = Worker({PAGE: {"notes": ["no font"]}, EXPORT: {"folder": str(export)}})
    ended.make(worker, tmp_path / "toy")
    assert sorted(worker.jobs) == [EXPORT, PAGE]
    assert (tmp_path / "toy/README.md").read_text() == "a card"
    assert ended.made == []
    assert ended.notes == ["no font"]


def test_what_no_worker_could_make_is_made_here(ended: Ended, tmp_path: Path) -> None:
    ended.make(Worker({}), tmp_path / "toy")
    assert ended.made == [PAGE, ended.model.run.digest]
    assert (tmp_path / "toy").is_dir()


def test_an_engine_that_was_stopped_holds_nothing_up(ended: Ended, tmp_path: Path) -> None:
    worker = Worker({PAGE: {"notes": []}})
    worker.stop()
    ended.make(worker, tmp_path / "toy")
    assert (worker.jobs, ended.made) == ([], [PAGE, ended.model.run.digest])


def test_a_model_that_cannot_be_exported_is_not_tried_again(ended: Ended, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="of a reason"):
        ended.make(Worker({PAGE: {"notes": []}}, "data"), tmp_path / "toy")
    assert ended.made == []


def test_workers_are_the_engines_own_where_they_are_on_this_machine() -> None:
    with closing(LocalEngine()) as local, workers_here(local) as workers:
        assert workers is local
    with workers_here(InProcessEngine()) as workers:
        assert workers is None
