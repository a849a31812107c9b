"""What runs on a GPU runs on a CPU at the smallest size."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks.gpu import smoke
from carft_sweep.carft_core.training import compilation

OPTIONS = "--device cpu --model tiny --steps 2 --batch 8 --images 16 --workers 0 --bare-steps 1"
Figures = dict[str, dict[str, object]]


def figures(printed: str) -> Figures:
    return {figure["name"]: figure for figure in json.loads(printed)["figures"]}


def test_the_smoke_runs_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["smoke", *OPTIONS.split()])
    assert smoke.main() == 0
    measured = figures(capsys.readouterr().out)
    assert (measured["KL before the first step"]["value"], measured["loader"]["ok"]) == (0, None)
    assert measured["evaluation on three splits"]["beside"] == {"models": 12}
    assert all(figure["value"] for name, figure in measured.items() if not name.startswith("KL"))


@pytest.mark.slow
def test_the_ways_to_compute_the_same_steps_agree_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["smoke", *OPTIONS.split(), "--all"])
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    assert smoke.main() == 0
    measured = figures(capsys.readouterr().out)
    assert all(
        measured[name]["ok"] for name in ("grad_checkpointing", "two runs at once", "two ranks")
    )
