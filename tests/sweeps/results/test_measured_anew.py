"""A run's folder keeps one evaluation of each model: a sweep says where another's lies there."""

from __future__ import annotations

from pathlib import Path

import pytest

from carft_sweep.carft_core.files import read_json, write_json
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results.records import comparison
from tests.sweeps.conftest import toy_in


def test_runs_that_another_sweep_measured_at_another_epoch_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = toy_in(tmp_path, monkeypatch)
    toy.run()
    ledger, runs = toy.ledger(), RunStore(toy.home.runs)
    trained = [*ledger.trials()[0].runs.values()]

    def told(result: str) -> list[str]:
        for digest in trained:
            file = runs.folder(digest) / "evaluations" / "unmerged" / "metrics.json"
            plain = read_json(file)
            write_json(file, {**plain, "facts": {**plain["facts"], "result": result}})
        found = comparison(ledger, runs)
        return [warning for warning in found.warnings if "measured runs" in warning]

    assert told("last") == []
    (note,) = told("best_val")
    assert "anew with keep.result: best_val, where this one asks for last" in note
