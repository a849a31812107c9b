"""The bare loop does the work of a run: what it comes to is what the product comes to."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.floor.bare import Bare
from benchmarks.floor.preload import preload, recipe_config
from benchmarks.floor.training import ALGORITHMS
from carft_sweep.carft_core.training.loop import epochs, train


@pytest.mark.parametrize(
    "algorithm",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "fine_tune")) for name in ALGORITHMS],
)
def test_the_bare_loop_agrees_with_the_product(algorithm: str, tmp_path: Path) -> None:
    data, merge = {"train_fraction": 0.1, "shifts": ["pixel"]}, {"name": "wise_ft", "alphas": [0.5]}
    config = recipe_config(algorithm, data=data, optim={"epochs": 1}, merges=[merge])
    history = [report.metrics for report in epochs(config, 0, workdir=tmp_path)]
    result = train(config, 0, workdir=tmp_path)
    assert result is not None

    bare = Bare(preload(config, 0)).run(ALGORITHMS[algorithm])

    assert bare["history"][1]["train/loss"] == pytest.approx(history[1]["train/loss"], abs=1e-3)
    merged = {label: item["metrics"] for label, item in result.merges.items()}
    assert bare["metrics"].keys() == {"unmerged", *merged}
    for label, expected in {"unmerged": result.metrics, **merged}.items():
        for name, value in bare["metrics"][label].items():
            if name.endswith("/nll"):
                assert value == pytest.approx(expected[name], abs=1e-2), (label, name)
        # An image of the shift is about half a percent of it.
        assert bare["metrics"][label]["ood/mean/top1"] == pytest.approx(
            expected["ood/mean/top1"], abs=0.005
        )
