"""`check`, `run`, `compare` and `report` hold the zero-shot model against LAION's table."""

from __future__ import annotations

import json
from typing import Any

import pytest

from carft_sweep.carft_core.files import read_json
from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results.records import load_part
from tests.sweeps import reference_table
from tests.sweeps.conftest import ToySweep


@pytest.fixture(autouse=True)
def _table(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAION's table, as if it had 60 % for the built-in model on `icon_shift`."""
    reference_table.show_one_row(monkeypatch)


@pytest.fixture
def measured(toy_cli: ToySweep, capsys: pytest.CaptureFixture[str]) -> ToySweep:
    """A finished sweep whose zero-shot model has 54 % of the whole test set."""
    toy_cli.run()
    measure(toy_cli, 0.54)
    capsys.readouterr()
    return toy_cli


def measure(toy: ToySweep, top1: float, count: int | None = None) -> None:
    for record in load_part(toy.ledger(), RunStore(toy.home.runs)).records:
        if record.is_zero_shot:
            assert record.folder is not None
            reference_table.measure(record.folder, top1, count)


def test_only_zero_shot_configs_are_read_of_one_sweep(measured: ToySweep) -> None:
    part = load_part(measured.ledger(), RunStore(measured.home.runs))
    (zero_shot,) = (record for record in part.records if record.is_zero_shot)
    assert [*part.fields] == [zero_shot.digest]
    assert part.fields[zero_shot.digest]["prompts.classes"] == "icon_shift"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main([*words]) == 0
    return " ".join(capsys.readouterr().out.split())


def test_check_names_what_to_expect_and_then_by_how_much_it_differs(
    toy_cli: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(toy_cli.file())
    assert (
        "Expect of zero-shot builtin on icon_shift, by LAION's table (CLIP_benchmark, 17 June "
        in (said(capsys, "check", file))
    )
    (before,) = json.loads(said(capsys, "check", file, "--json"))["calibration"]
    assert before.endswith(": ID test: 60.00.")
    toy_cli.run()
    measure(toy_cli, 0.597)
    text = said(capsys, "check", file)
    assert "differs from LAION's table" in text
    assert "-0.30 on ID test." in text
    assert "! zero-shot" not in text
    measure(toy_cli, 0.54)
    text = said(capsys, "check", file)
    assert "! zero-shot builtin on icon_shift differs from LAION's table: -6.00 points" in text
    found = json.loads(said(capsys, "check", file, "--json"))
    assert "-6.00 on ID test" in found["calibration"][0]
    assert any("LAION's table" in warning for warning in found["warnings"])


def test_check_takes_a_measurement_of_another_sweep(
    measured: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "check", str(measured.file(name="other")))
    assert "-6.00 on ID test." in text


def test_check_says_nothing_of_a_sweep_without_a_zero_shot_model(
    measured: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "check", str(measured.file(baselines=["fine_tune"])))
    assert "LAION" not in text


def test_a_part_of_the_test_set_says_nothing(
    measured: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    measure(measured, 0.54, 200)
    assert "LAION" not in said(capsys, "compare", "toy")
    assert "LAION" not in said(capsys, "check", str(measured.file()))


def test_compare_says_it_below_the_table_and_warns_above(
    measured: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    text = said(capsys, "compare", "toy")
    above, _, below = text.partition("settings chosen by")
    assert "! zero-shot builtin on icon_shift differs from LAION's table: -6.00 points" in above
    assert "Zero-shot builtin on icon_shift differs" in below
    found = json.loads(said(capsys, "compare", "toy", "--json"))
    assert "-6.00 on ID test" in found["calibration"][0]
    assert "LAION's table" in found["warnings"][-1]
    measure(measured, 0.6)
    assert "! zero-shot" not in said(capsys, "compare", "toy")
    measured.run(name="again")
    both = json.loads(said(capsys, "compare", "toy", "again", "--json"))
    (again,) = both["calibration"]
    assert "+0.00 on ID test" in again


def test_the_end_of_a_run_warns_and_its_files_have_it(measured: ToySweep) -> None:
    result = measured.run()
    assert "LAION's table" in result.comparison.warnings[-1]
    kept: Any = read_json(measured.home.sweep("toy") / "comparison.json")
    assert "-6.00 on ID test" in kept["calibration"][0]
