"""Compiled towers: what they leave alone, when they pay, and what happens when they cannot be."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from carft_sweep.carft_core.models.clip import OpenedClip
from carft_sweep.carft_core.testing import toy_teacher
from carft_sweep.carft_core.training import compilation
from carft_sweep.carft_core.training.compilation import IMAGES_THAT_PAY, should_compile
from carft_sweep.carft_core.training.setup import open_setup
from tests.carft_core.trained import Config, stopped, trained, weights

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
RELATIVE, ABSOLUTE = 1e-4, 1e-5
"""Tolerances of weights after a few steps of AdamW, which makes a whole step of the smallest
gradient."""


def test_auto_compiles_long_runs_on_cuda() -> None:
    rows: list[tuple[Any, torch.device, int, bool]] = [
        ("auto", CUDA, IMAGES_THAT_PAY, True),
        ("auto", CUDA, IMAGES_THAT_PAY - 1, False),
        ("auto", CPU, 10 * IMAGES_THAT_PAY, False),
        (True, CPU, 1, True),
        (False, CUDA, 10 * IMAGES_THAT_PAY, False),
    ]
    for *asked, expected in rows:
        assert should_compile(*asked) is expected


@pytest.mark.slow
def test_what_cannot_be_compiled_is_trained_as_it_is_written_and_says_so(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def broken(module: nn.Module, _: object) -> Any:
        raise ValueError(f"no code:\n for {type(module).__name__}")

    monkeypatch.setattr(compilation, "BACKEND", broken)
    result = trained(toy_config({"compile": True}), tmp_path / "one")
    (warning,) = result.warnings
    assert "no code: for GraphModule" in warning
    assert [record.getMessage() for record in caplog.records].count(warning) == 1
    recorded = json.loads((tmp_path / "one" / "trained.json").read_text())
    assert recorded["warnings"] == result.warnings
    plain = trained(toy_config(), tmp_path / "two")
    assert (plain.warnings, plain.digest, plain.metrics) == ([], result.digest, result.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["car_ft", {"name": "ema", "of": "car_ft"}])
def test_a_compiled_run_is_that_of_the_plain_one_up_to_rounding(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, algorithm: object
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    changes: dict[str, Any] = {
        "algorithm": algorithm,
        "optim.micro_batch": 3,
        "optim.grad_checkpointing": True,
        "merges": ["wise_ft"],
    }
    results, states = [], []
    for compile_ in (False, True):
        config, folder = toy_config({**changes, "compile": compile_}), tmp_path / str(compile_)
        stopped(config, folder, after=1)
        results.append(trained(config, folder))
        states.append(weights(folder))
    plain, compiled = results
    assert compiled.warnings == plain.warnings == []
    assert compiled.digest == plain.digest
    assert compiled.metrics == pytest.approx(plain.metrics, rel=1e-3, abs=1e-4)
    assert states[0].keys() == states[1].keys()
    torch.testing.assert_close(states[1], states[0], rtol=RELATIVE, atol=ABSOLUTE)
    tower = open_setup(toy_config({**changes, "compile": True})).teacher.classifier.visual
    assert tower._compiled_call_impl is not None
    assert copy.deepcopy(tower)._compiled_call_impl is None


@pytest.mark.slow
def test_this_compiler_gives_the_weights_up_to_rounding(toy_config: Config, tmp_path: Path) -> None:
    # AdamW makes whole steps of the gradient of the keys' biases, which is nothing but rounding.
    changes = {"algorithm": "fine_tune", "optim.epochs": 1, "optim.name": "sgd", "optim.lr": 0.1}
    states = []
    for compile_ in (False, True):
        folder = tmp_path / str(compile_)
        assert trained(toy_config({**changes, "compile": compile_}), folder).warnings == []
        states.append(weights(folder))
    torch.testing.assert_close(states[1], states[0], rtol=RELATIVE, atol=ABSOLUTE)
    before = open_setup(toy_config(changes)).teacher.classifier.visual.state_dict()
    moved = [(states[0][f"visual.{name}"] - old).abs().max() for name, old in before.items()]
    assert min(moved) > 10 * ABSOLUTE


def test_each_batch_size_is_compiled(
    tiny_clip: OpenedClip, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch keeps eight graphs of a function, here four, as two runs have, and computes on
    without a word when it has them."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 4)
    graphs = 0

    def counting(module: nn.Module, _: object) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return module.forward

    monkeypatch.setattr(compilation, "BACKEND", counting)
    teacher = toy_teacher(tiny_clip)
    for size in (5, 4, 3):
        graphs, model = 0, teacher.new_classifier()
        assert compilation.compile_towers(model, teacher, size) is None
        assert graphs == 2, f"{size}: that of the student and that of the teacher"
        for count in (size, size - 2):
            images = torch.zeros(count, 3, 32, 32).contiguous(memory_format=torch.channels_last)
            with compilation.eager_unless(size, count):
                model.features(images).sum().backward()
                teacher.image_features(images)
        assert graphs == 2, f"{size}: the short last batch is computed as it is written"
