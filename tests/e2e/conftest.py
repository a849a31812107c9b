"""Sweeps of the real core on a tiny CLIP and images of noise, run as a user runs them."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from carft_sweep.sweeps.cli import main
from tests.image_files import noise_folder
from tests.services.processes import running

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

ROOT = Path(__file__).parents[2]
LIMIT = 300
"""Seconds for one command, with the start of Ray."""
WEIGHTS = [0.0, 0.5, 1.0, 1.5]
EPOCHS = 4
APART = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS", "COVERAGE_PROCESS_CONFIG")
"""Variables of the caller's that no test should see. Without the last one no coverage is measured,
which takes a command a quarter longer: what it runs is covered by tests beside the code."""


def printed_by(*words: object) -> str:
    """What a command that succeeds prints, in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([str(word) for word in words]) == 0, words
    return printed.getvalue()


def repeatable(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith("system/")}


@dataclass(frozen=True)
class Tiny:
    """A sweep file in a folder with its images, and one home for it."""

    file: Path
    home: Path

    def start(self, command: str = "run", *words: str, **environ: str) -> subprocess.Popen[str]:
        """`carft-sweep COMMAND FILE` (or the sweep's name), as a process."""
        outer = {name: value for name, value in os.environ.items() if name not in APART}
        subject = str(self.file) if command in ("run", "check") else self.file.stem
        line, pipe = (
            [sys.executable, "-m", "carft_sweep", command, subject, *words],
            subprocess.PIPE,
        )
        known = {**outer, "CARFT_HOME": str(self.home), "OMP_NUM_THREADS": "1", **environ}
        return subprocess.Popen(line, cwd=ROOT, env=known, stdout=pipe, stderr=pipe, text=True)

    def call(
        self, command: str = "run", *words: str, expect: int | None = 0, **environ: str
    ) -> tuple[str, str]:
        """The same to its end: what it printed, and what it said besides."""
        process = self.start(command, *words, **environ)
        out, err = process.communicate(timeout=LIMIT)
        assert expect in (None, process.returncode), f"{process.returncode}\n{out}\n{err}"
        return out, err

    def in_process(self, command: str = "run", *words: str) -> str:
        """What the same prints in this process, on one thread as there: its start and that of a
        worker, which there is where `words` name an engine, take longer than a small sweep.
        """
        where = [] if "--engine" in words else ["--in-process"]
        subject = [str(self.file), *where] if command == "run" else [self.file.stem]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return printed_by(command, *subject, *words, "--home", self.home)
        finally:
            torch.set_num_threads(threads)

    def show(self) -> dict[str, Any]:
        shown: dict[str, Any] = json.loads(self.in_process("show", "--json"))
        return shown

    def outcomes(self) -> dict[float, Any]:
        """KL weight to the trial's value and to every metric of its run, but for its time."""
        values = {}
        for trial in self.show()["trials"]:
            metrics = repeatable(trial["runs"][0]["metrics"])
            values[trial["params"]["algorithm.kl_weight"]] = (trial["value"], metrics)
        return values

    def workers(self) -> list[int]:
        """The processes that train runs of the home, whoever started them."""
        home = f"CARFT_HOME={self.home}\0".encode()
        return running(b"carft_sweep.sweeps.engines.worker", home)

    def mlflow(self, uri: str | None = None) -> list[dict[str, Any]]:
        """The sweeps and runs in an MLflow, the home's own if none is named: tags, status, and the
        epochs of the training loss. Arms are left out.
        """
        from mlflow import MlflowClient

        client = MlflowClient(uri or f"sqlite:///{self.home / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("carft-sweep")
        assert experiment is not None

        def epochs(run: str) -> list[int]:
            return sorted(point.step for point in client.get_metric_history(run, "train/loss"))

        return [
            {"tags": run.data.tags, "status": run.info.status, "epochs": epochs(run.info.run_id)}
            for run in client.search_runs([experiment.experiment_id], "tags.`carft.kind` != 'arm'")
        ]


@pytest.fixture(scope="module")
def driver() -> Iterator[Chrome]:
    from tests.e2e.browser import browser  # which needs this file

    with browser() as chrome:
        yield chrome


MakeTiny = Callable[..., Tiny]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    colours = {"red": [200, 60, 60], "blue": [60, 60, 200]}
    noise_folder(folder, {"train": 12, "test": 4, "shifts/dark": 4}, colours)
    return folder


def make_tiny(folder: Path, clip: Path, images: Path) -> MakeTiny:
    """Writes sweep files into a folder: KL weights of `weights`, one seed, and the keys given.

    `algorithm` and `optim` are those of the trial; what is None is left out.
    """

    def make(
        name: str,
        weights: list[float],
        *,
        epochs: int = EPOCHS,
        home: Path | None = None,
        **keys: Any,
    ) -> Tiny:
        algorithm = keys.pop("algorithm", {"name": "car_ft"})
        optim = {"lr": 0.0003, "epochs": epochs, "batch_size": 4, **keys.pop("optim", {})}
        spec = {
            **{"name": name, "method": "grid", "seeds": [0], "baselines": ["zero_shot"]},
            "parameters": {"algorithm.kl_weight": {"values": weights}},
            "resources": {"cpus": 1},
            "report": {"page": False, "model": False},  # they take longer than these sweeps
            "trial": {
                "model": {"name": str(clip)},
                "data": {"family": "image_folder", "root": str(images), "val_fraction": 0.25},
                "prompts": {"classes": "simple", "contexts": "simple"},
                "algorithm": algorithm,
                "optim": {key: value for key, value in optim.items() if value is not None},
                "merges": [{"name": "wise_ft", "alphas": [0.5]}],
                "device": "cpu",
            },
            **keys,
        }
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(spec))
        return Tiny(path, home or folder / "home")

    return make


@pytest.fixture
def tiny(tmp_path: Path, tiny_clip_files: Path, images: Path) -> MakeTiny:
    return make_tiny(tmp_path, tiny_clip_files, images)


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, tiny_clip_files: Path, images: Path
) -> dict[float, Any]:
    """KL weight to outcome of a sweep of WEIGHTS that nobody disturbs.

    Tests of it stand in the group `undisturbed`, so that one process makes it for all of them.
    """
    make = make_tiny(tmp_path_factory.mktemp("undisturbed"), tiny_clip_files, images)
    sweep = make("undisturbed", WEIGHTS)
    sweep.in_process("run")
    return sweep.outcomes()
