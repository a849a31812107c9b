"""LP-FT: the head it starts from, and what it trains."""

from __future__ import annotations

from pathlib import Path

import torch

from carft_sweep.carft_core.training.loop import epochs
from tests.carft_core.trained import Config, trained, weights

LP_FT = {"name": "lp_ft", "C": 3.0}


def test_it_starts_where_the_linear_probe_ends(toy_config: Config) -> None:
    fine_tuned = next(iter(epochs(toy_config({"algorithm": LP_FT}), 0)))
    *_, probe = epochs(toy_config({"algorithm": {**LP_FT, "name": "linear_probe"}}), 0)
    measured = {key: value for key, value in probe.metrics.items() if key.startswith("id/")}
    assert {key: fine_tuned.metrics[key] for key in measured} == measured


def test_it_trains_tower_and_head_and_is_merged(toy_config: Config, tmp_path: Path) -> None:
    merge = {"name": "wise_ft", "alphas": [0.5]}
    config = toy_config({"algorithm": LP_FT, "optim.epochs": 1, "merges": [merge]})
    result = trained(config, tmp_path / "lp_ft")
    assert result.merges["wise_ft@0.5"]["metrics"] != result.metrics
    probe = toy_config({"algorithm": {**LP_FT, "name": "linear_probe"}})
    trained(probe, tmp_path / "probe")
    one, two = (weights(tmp_path / name) for name in ("lp_ft", "probe"))
    assert not any(torch.equal(one[key], two[key]) for key in ("head.weight", "visual.proj"))
