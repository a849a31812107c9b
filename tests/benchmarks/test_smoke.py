"""What runs on a GPU runs on a CPU at the smallest size."""

from __future__ import annotations

import sys

import pytest

from benchmarks.gpu import smoke
from carft_sweep.carft_core.training import compilation


def test_the_smoke_runs_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--device cpu --model tiny --steps 2 --batch 8 --images 16 --workers 0 --bare-steps 1"
    monkeypatch.setattr(sys, "argv", ["smoke", *options.split()])
    assert smoke.main() == 0
    told = capsys.readouterr().out
    assert "ok KL before the first step: 0.00e+00 nats" in told
    assert "ok evaluation: 12 models" in told


@pytest.mark.slow
def test_the_ways_to_compute_the_same_steps_agree_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = "--device cpu --model tiny --steps 2 --batch 8 --images 16 --workers 0 --bare-steps 1"
    monkeypatch.setattr(sys, "argv", ["smoke", *options.split(), "--all"])
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    assert smoke.main() == 0
    printed = capsys.readouterr().out
    assert all(f"ok {name}: loss" in printed for name in ("grad_checkpointing", "two processes"))


def test_the_memory_of_a_vit_b16_is_what_it_was_counted_to() -> None:
    """84 MB an image of a ViT-B/16 in bf16; 22 bytes a weight beside."""
    model = {
        "vision": {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12},
        "parameters": {"image": 86_000_000, "all": 150_000_000},
    }
    of_weights = smoke.estimate_mb(model, 0, "bf16")
    assert of_weights == pytest.approx(86e6 * 22 / 2**20)
    of_image = (smoke.estimate_mb(model, 1, "bf16") - of_weights) * 2**20
    assert of_image == pytest.approx(83.6e6, rel=0.01)
