"""Tuned weights from a file: the layouts that are read, the refusals, and the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from carft_sweep.carft_core.algorithms.from_checkpoint import FromCheckpoint
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.evaluations import is_complete
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import identify
from carft_sweep.carft_core.training.loop import train
from tests.carft_core.refusals import refusal, refused
from tests.carft_core.trained import Config, same, trained

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def tuned(teacher: Teacher) -> State:
    return {key: value * 1.1 for key, value in teacher.new_classifier().state_dict().items()}


def written(path: Path, state: Mapping[str, Any]) -> str:
    if path.suffix == ".safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, path)
    else:
        torch.save(dict(state), path)
    return str(path)


def built(path: str, teacher: Teacher) -> State:
    classifier = FromCheckpoint(weights=path).build(teacher)
    assert isinstance(classifier, ImageClassifier)
    return classifier.state_dict()


def message_of(path: str, teacher: Teacher) -> str:
    return refusal(FromCheckpoint(weights=path).build, teacher)


def test_a_classifier_as_runs_keep_it_is_read_to_the_bit_and_computed_with_in_fp32(
    teacher: Teacher, tuned: State, tmp_path: Path
) -> None:
    for name in ("x.safetensors", "x.pt", "x.bin"):
        assert same(built(written(tmp_path / name, tuned), teacher), tuned)
    parallel = {f"module.{key}": value for key, value in tuned.items()}  # of several GPUs
    file = written(tmp_path / "x.ckpt", {"state_dict": parallel, "epoch": 3})
    assert same(built(file, teacher), tuned)
    half = {key: value.half() for key, value in tuned.items()}
    state = built(written(tmp_path / "half.safetensors", half), teacher)
    assert {value.dtype for value in state.values()} == {torch.float32}
    torch.testing.assert_close(state["head.weight"], tuned["head.weight"], rtol=1e-3, atol=1e-4)


def test_of_a_clip_the_tower_alone_is_taken(teacher: Teacher, tuned: State, tmp_path: Path) -> None:
    clip = {key: value * 1.1 for key, value in teacher.clip.model.state_dict().items()}
    tower = {key: value for key, value in clip.items() if key.startswith("visual.")}
    archive = {**clip, "input_resolution": torch.tensor(32), "vocab_size": torch.tensor(9)}
    expected = {**tuned, "head.weight": teacher.classifier.head.weight}
    for name, state in {"x.pt": clip, "y.safetensors": tower, "z.pt": archive}.items():
        assert same(built(written(tmp_path / name, state), teacher), expected)


def test_wise_fts_names_are_read(teacher: Teacher, tuned: State, tmp_path: Path) -> None:
    clip = teacher.clip.model.state_dict()
    state = {f"image_encoder.model.{key}": value for key, value in {**clip, **tuned}.items()}
    state["classification_head.weight"] = state.pop("image_encoder.model.head.weight")
    state["classification_head.bias"] = torch.zeros(3)
    assert same(built(written(tmp_path / "x.pt", state), teacher), tuned)
    state["classification_head.bias"] = torch.tensor([0.0, 0.1, 0.0])
    assert "a head with a bias" in message_of(written(tmp_path / "y.pt", state), teacher)


def test_tensors_that_do_not_fit_are_named(teacher: Teacher, tuned: State, tmp_path: Path) -> None:
    def without(key: str) -> State:
        return {name: value for name, value in tuned.items() if name != key}

    own_head = {**without("head.weight"), "fc.weight": torch.zeros(3, 32)}
    cases: dict[str, tuple[State, str]] = {
        "classes": (tuned | {"head.weight": torch.zeros(4, 32)}, "size mismatch for head.weight: "),
        "less": (without("visual.proj"), 'Missing key(s) in state_dict: "visual.proj"'),
        "own": (own_head, 'Unexpected key(s) in state_dict: "fc.weight"'),
        "nothing": ({"a": torch.zeros(1)}, 'Missing key(s) in state_dict: "visual.'),
    }
    for name, (state, words) in cases.items():
        message = message_of(written(tmp_path / f"{name}.pt", state), teacher)
        assert f"{name}.pt does not fit" in message
        assert words in message


class Code:
    def __reduce__(self) -> Any:
        return (print, ("run",))


def test_a_file_that_is_none_or_would_have_to_be_run_is_refused(
    teacher: Teacher, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(Code(), tmp_path / "model.pt")
    assert "reading it would run its code" in message_of(str(tmp_path / "model.pt"), teacher)
    assert "run" not in capsys.readouterr().out
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    broken = message_of(str(tmp_path / "broken.safetensors"), teacher)
    assert "is not a readable safetensors" in broken
    (tmp_path / "x.npz").write_bytes(b"")
    assert "a weights file ends in one of" in message_of(str(tmp_path / "x.npz"), teacher)
    for weights, message in (
        ("", "algorithm.weights: which file?"),
        (str(tmp_path / "none.pt"), "algorithm.weights: there is no file"),
        (str(tmp_path), "algorithm.weights: there is no file"),
    ):
        assert message in message_of(weights, teacher)
        refused(message, FromCheckpoint(weights=weights).identity)


def test_a_run_measures_what_the_one_that_trained_did(toy_config: Config, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"merges": [{"name": "wise_ft", "alphas": [0.0, 0.5, 1.0]}]}
    expected = trained(toy_config({"algorithm": "fine_tune"} | changes), tmp_path / "ft")
    file = RunFolder(tmp_path / "ft").weights("last")
    config = toy_config({"algorithm": {"name": "from_checkpoint", "weights": str(file)}} | changes)
    result = trained(config, tmp_path / "file")
    measured, original = (
        {"unmerged": run.metrics, **{label: of["metrics"] for label, of in run.merges.items()}}
        for run in (result, expected)
    )
    assert measured == original
    assert measured["wise_ft@0"] != measured["unmerged"] == measured["wise_ft@1"]
    assert (result.seed, result.seconds) == (None, 0)
    assert is_complete(tmp_path / "file", config)
    assert not (tmp_path / "file" / "weights").exists()
    assert train(config, 0, workdir=tmp_path / "file") == result
    save_file({"x": torch.zeros(1)}, file)
    # A file that changes is another.
    refused("holds another run", train, config, 0, workdir=tmp_path / "file")


def test_a_run_is_known_by_the_files_content_and_by_no_seed(
    toy_config: Config, tmp_path: Path, teacher: Teacher, tuned: State
) -> None:
    def digest(path: str, seed: int = 0) -> str:
        config = toy_config({"algorithm": {"name": "from_checkpoint", "weights": path}})
        return identify(config, seed).digest

    original, copy = written(tmp_path / "a.pt", tuned), tmp_path / "b.pt"
    copy.write_bytes(Path(original).read_bytes())
    assert digest(original) == digest(str(copy)) == digest(original, seed=1)
    other = written(tmp_path / "c.pt", teacher.classifier.state_dict())
    assert digest(original) != digest(other)
    refused(r"algorithm\.weights: which file", digest, "")
