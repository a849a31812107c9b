"""Sweeps on a toy core: a second for a whole sweep, and everything around the core is real."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Protocol

import optuna
import pytest

from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.engines.base import Engine
from carft_sweep.sweeps.engines.local import InProcessEngine
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import Ledger, find_ledger
from carft_sweep.sweeps.ledger.optuna_copy import open_storage, study_name
from carft_sweep.sweeps.scheduler.progress import Progress
from carft_sweep.sweeps.scheduler.session import RunOptions, SweepResult, drive_sweep
from carft_sweep.sweeps.spec.spec import load_spec
from tests.sweeps import toy_core
from tests.tracking.memory_store import MemoryRun, MemoryTracker

TOY: dict[str, Any] = {
    "name": "toy",
    "method": "grid",
    "parameters": {"algorithm.kl_weight": {"values": [0.1, 0.3]}},
    "seeds": [0, 1],
    "baselines": ["zero_shot", "fine_tune"],
    "trial": {
        "algorithm": {"name": "car_ft"},
        "merges": [{"name": "wise_ft", "alphas": [0.5]}],
        "device": "cpu",
    },
}
ALONE: Mapping[str, Any] = {"seeds": [0], "baselines": []}
"""What changes it into a sweep of one run a trial."""
ONE_RUN: Mapping[str, Any] = {**ALONE, "parameters": {"algorithm.kl_weight": {"values": [0.3]}}}
"""What changes it into a sweep of a single run."""
RANGE = {"algorithm.kl_weight": {"min": 0.1, "max": 1.0}}
SEARCH: Mapping[str, Any] = {**ALONE, "method": "tpe", "run_cap": 12, "parameters": RANGE}
"""What changes it into one whose trials depend on those before."""


@dataclass
class ToySweep:
    """Runs sweep files in one home, and looks at what came of it."""

    folder: Path
    monkeypatch: pytest.MonkeyPatch
    tracker: MemoryTracker = field(default_factory=MemoryTracker)
    lines: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """What the projections of the last sweep lacked in the end."""

    @property
    def home(self) -> Home:
        return Home(self.folder / "home")

    def file(self, **changes: Any) -> Path:
        path = self.folder / "toy.yaml"
        path.write_text(json.dumps({**TOY, **changes}))  # JSON is YAML
        return path

    def plan(self, acts: Mapping[str, list[dict[str, Any]]]) -> None:
        """Let runs misbehave: `kl_weight/seed` to one act for each attempt."""
        path = self.folder / "plan.json"
        path.write_text(json.dumps(dict(acts)))
        self.monkeypatch.setenv("TOY_PLAN", str(path))

    def run(
        self,
        engine: Engine | None = None,
        *,
        fresh: bool = False,
        failed_again: bool = False,
        ended: Callable[[SweepResult], None] = lambda _: None,
        **changes: Any,
    ) -> SweepResult:
        self.home.prepare()
        self.lines.clear()
        self.complaints.clear()
        spec = load_spec(self.file(**changes))
        assert spec.trial_count  # which whoever makes an engine asks first
        options = RunOptions(
            fresh=fresh, failed_again=failed_again, ended=ended, undelivered=self.complaints.append
        )
        progress = Progress(self.lines.append)
        engine = engine or InProcessEngine(toy_core.ENTRY)
        return drive_sweep(spec, self.home, engine, self.tracker, progress, options)

    def command(self, *options: str, **changes: Any) -> int:
        """Run the sweep by its command, as `toy_cli` lets it; the exit code."""
        return main(["run", str(self.file(**changes)), "--in-process", *options])

    def ledger(self, name: str = "toy") -> Ledger:
        return find_ledger(self.home, name)

    def study(self, name: str = "toy") -> optuna.Study:
        """The Optuna study of the sweep's newest generation, as it is on disk."""
        study = study_name(self.home, name, self.ledger(name).generation)
        return optuna.load_study(study_name=study, storage=open_storage(self.home))

    def values(self) -> dict[float, float | None]:
        """KL weight to the value of its trial."""
        return {t.params["algorithm.kl_weight"]: t.value for t in self.ledger().trials()}

    def trained(self) -> Counter[str]:
        """Digest to how many epochs were really trained."""
        return Counter(line.split()[0] for line in self._log() if " epoch " in line)

    def evaluated(self) -> Counter[str]:
        """Label of a model to how often it was evaluated."""
        return Counter(line.split()[-1] for line in self._log() if " evaluated " in line)

    def _log(self) -> list[str]:
        log = self.home.runs / "toy.log"
        return log.read_text().splitlines() if log.exists() else []

    def tracked(self, sweep: str = "toy") -> dict[str, MemoryRun]:
        """The runs of a sweep by name."""
        runs = self.tracker.runs.items()
        return {run.name: run for key, run in runs if key.sweep == sweep and key.kind == "run"}

    def arms(self, sweep: str = "toy") -> dict[str, MemoryRun]:
        """What summarises the arms of a sweep, by label."""
        runs = self.tracker.runs.items()
        arms = [run for key, run in runs if key.sweep == sweep and key.kind == "arm"]
        by_label = {str(run.params["arm"]): run for run in arms}
        assert len(by_label) == len(arms)
        return by_label


class NamedRun(NamedTuple):
    """A run as progress shows it."""

    digest: str
    label: str


def named(label: str) -> NamedRun:
    """A run that no other has the label of."""
    return NamedRun(f"digest of {label}", label)


def _one_shift(config: object) -> SimpleNamespace:
    del config
    images = SimpleNamespace(units=tuple(map(str, range(400))))
    measured = dict.fromkeys(("id/test", "ood/dark"), images)
    return SimpleNamespace(
        **{"train": range(10_000), "test": images, "shifts": {"dark": images}},
        **{"outside_mean": frozenset(), "digest": "d" * 64, "notes": ()},
        measured=lambda: measured,
    )


def toy_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ToySweep:
    """A home in `folder` whose runs are the toy core's."""
    planner = "carft_sweep.sweeps.plan.planner"
    monkeypatch.setattr(f"{planner}.identify", toy_core.toy_identity)
    monkeypatch.setattr(f"{planner}.open_data", _one_shift)
    monkeypatch.setattr(f"{planner}.check_measured", lambda *_: None)  # of a real family's splits
    # The page takes longer than all the rest.
    monkeypatch.setattr("carft_sweep.sweeps.scheduler.session.PACE", 0.01)
    monkeypatch.setattr("carft_sweep.sweeps.scheduler.session.write_page", lambda *_: None)
    return ToySweep(folder, monkeypatch)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToySweep:
    """A fresh home."""
    return toy_in(tmp_path, monkeypatch)


@pytest.fixture
def labels() -> Callable[[ToySweep], list[str]]:
    """The labels of the runs that ended, in order."""

    def of(toy: ToySweep) -> list[str]:
        return [line.split("] ")[1].split("  ")[0] for line in toy.lines if line.startswith("[")]

    return of


@pytest.fixture
def toy_cli(toy: ToySweep, monkeypatch: pytest.MonkeyPatch) -> ToySweep:
    """The commands on the toy core, with runs kept in memory behind a real projection."""
    monkeypatch.setenv("CARFT_HOME", str(toy.home.path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(
        "carft_sweep.sweeps.api.make_engine", lambda *_, **__: InProcessEngine(toy_core.ENTRY)
    )
    for module in ("api", "cli.sync", "cli.removal"):
        monkeypatch.setattr(f"carft_sweep.sweeps.{module}.open_store", lambda *_, **__: toy.tracker)
    return toy


class Printed(NamedTuple):
    """What a command wrote."""

    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Carft(Protocol):
    """`carft("check", file)`: a command in this process, which must exit with `code`."""

    def __call__(self, *words: object, code: int = 0) -> Printed: ...


@pytest.fixture
def carft(capsys: pytest.CaptureFixture[str]) -> Carft:
    """Run commands, and read what each of them wrote."""

    def run(*words: object, code: int = 0) -> Printed:
        capsys.readouterr()
        assert main([*map(str, words)]) == code
        return Printed(*capsys.readouterr())

    return run
