"""A few mutations of every kind of input end as all of them do: accepted, or rejected by name."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos import input_kinds, inputs
from benchmarks.chaos.input_kinds import KINDS, SWEEP, Kind
from benchmarks.chaos.inputs import attempt
from benchmarks.chaos.mutations import Payload, canary, mutate
from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.export.export import export
from carft_sweep.carft_core.training.loop import train
from tests.sweeps.conftest import toy_in

MUTATIONS = 10


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a swept toy sweep, and a model that a trained run was exported to."""
    folder = tmp_path_factory.mktemp("originals")
    with pytest.MonkeyPatch.context() as patch:
        toy = toy_in(folder, patch)
        patch.setenv("CARFT_HOME", str(toy.home.path))
        toy.run(name=SWEEP)
        input_kinds.write_images(folder / "data")
        input_kinds.write_clip(folder / "clip")
        config = trial_config(input_kinds.trial(folder / "data", folder / "clip"))
        train(config, 0, workdir=folder / "run")
        export(folder / "run", config, folder / "model")
        patch.setitem(input_kinds.MADE, "home", folder)
        patch.setattr(input_kinds, "WORKS", ())
        yield folder


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_mutated_input_is_accepted_or_rejected_by_name(
    kind: Kind, originals: Path, tmp_path: Path, registries: None, caplog: pytest.LogCaptureFixture
) -> None:
    del originals, registries
    original = tmp_path / "original"
    original.mkdir()
    kind.make(original)
    outcomes = []
    for number in range(MUTATIONS):
        work = tmp_path / str(number)
        work.mkdir()
        outcomes.append(attempt(kind, original, number, 1, work))
    assert [outcome for outcome in outcomes if outcome.end == "failure"] == []
    is_rejected = "it counts as missing" in caplog.text or "rejected" in {of.end for of in outcomes}
    assert is_rejected or kind.name == "resume checkpoints"


def test_code_that_runs_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader that unpickles anything is caught by the trap."""

    def unpickle(folder: Path, target: Path, rng: random.Random) -> None:
        del folder, rng
        pickle.loads(target.read_bytes())

    def make(folder: Path) -> None:
        (folder / "a.pt").write_bytes(pickle.dumps(Payload(canary(tmp_path / "work" / "trap"))))

    (tmp_path / "original").mkdir()
    (tmp_path / "work").mkdir()
    make(tmp_path / "original")
    kind = Kind("pickles", make, ["a.pt"], unpickle)
    monkeypatch.setattr(inputs, "mutate", lambda *_: "nothing")
    outcome = attempt(kind, tmp_path / "original", 0, 0, tmp_path / "work")
    assert outcome.end == "failure"
    assert "code was run" in outcome.reason


def test_a_mutation_follows_from_its_seed(tmp_path: Path) -> None:
    contents = []
    for name in ("one", "two"):
        file = tmp_path / name / "a.json"
        file.parent.mkdir()
        file.write_text('{"a": [1, 2, {"b": "c"}], "d": null}')
        mutate(file, random.Random(7), tmp_path / "trap")
        contents.append(file.read_bytes())
    assert contents[0] == contents[1] != b'{"a": [1, 2, {"b": "c"}], "d": null}'
