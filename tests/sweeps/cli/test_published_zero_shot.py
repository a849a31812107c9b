"""`check`, `run`, `compare` and `report` hold the zero-shot model against LAION's table."""

from __future__ import annotations

from typing import Any

import pytest

from carft_sweep.carft_core.files import read_json
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results.records import load_part
from tests.sweeps import reference_table
from tests.sweeps.conftest import Carft, ToySweep


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAION's table, as if it had 60 % for the built-in model on `icon_shift`."""
    reference_table.show_one_row(monkeypatch)


def measure(toy: ToySweep, top1: float, count: int | None = None) -> None:
    for record in load_part(toy.ledger(), RunStore(toy.home.runs)).records:
        if record.is_zero_shot:
            assert record.folder is not None
            reference_table.measure(record.folder, top1, count)


def printed(carft: Carft, *words: object) -> str:
    return " ".join(carft(*words).out.split())


def test_check_run_and_compare_name_what_to_expect_and_then_by_how_much_it_differs(
    toy_cli: ToySweep, carft: Carft
) -> None:
    file = str(toy_cli.file())
    expected = "Expect of zero-shot builtin on icon_shift, by LAION's table (CLIP_benchmark, 17 "
    assert expected in printed(carft, "check", file)
    (before,) = carft("check", file, "--json").json["published_zero_shot"]
    assert before.endswith(": ID test: 60.00.")
    toy_cli.run()
    measure(toy_cli, 0.597)
    text = printed(carft, "check", file)
    assert "differs from LAION's table" in text
    assert "-0.30 on ID test." in text
    assert "! zero-shot" not in text
    measure(toy_cli, 0.54)
    text = printed(carft, "check", file)
    assert "! zero-shot builtin on icon_shift differs from LAION's table: -6.00 points" in text
    document = carft("check", file, "--json").json
    assert "-6.00 on ID test" in document["published_zero_shot"][0]
    assert any("LAION's table" in warning for warning in document["warnings"])
    result = toy_cli.run()
    assert "LAION's table" in result.comparison.warnings[-1]
    stored: Any = read_json(toy_cli.home.sweep("toy") / "comparison.json")
    assert "-6.00 on ID test" in stored["published_zero_shot"][0]
    assert "-6.00 on ID test." in printed(carft, "check", toy_cli.file(name="other"))
