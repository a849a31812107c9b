"""`python -m benchmarks.floor`, as it is typed; what both sides take in turn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from benchmarks.floor.__main__ import SUITES, main
from benchmarks.floor.measurement import Effort, Measurement, take_turns


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Effort]:
    """Every call of a suite that takes no time."""
    efforts: list[Effort] = []

    def measure(effort: Effort) -> Iterator[Measurement]:
        efforts.append(effort)
        yield Measurement("--help", "python -c pass", [0.1] * effort.rounds, [0.3] * effort.rounds)

    monkeypatch.setitem(SUITES, "start", measure)
    return efforts


def test_a_line_gives_the_floor_ours_the_ratio_and_the_spread(
    measured: list[Effort], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--suite", "start", "--rounds", "3", "--quick"]) == 0
    machine, header, row = capsys.readouterr().out.splitlines()
    assert "cores" in machine
    assert header.split("  ")[0] == "measured"
    assert row.split() == [
        *("--help", "python", "-c", "pass", "0.10", "(0.10", "to", "0.10)"),
        *("0.30", "(0.30", "to", "0.30)", "3.00", "(3.00", "to", "3.00)"),
    ]
    assert measured == [Effort(3, quick=True)]


@pytest.mark.parametrize(("before", "code"), [(1.0, 1), (1.6, 0), (3.0, 0)])
def test_a_ratio_that_has_doubled_fails_the_command(
    measured: list[Effort],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    before: float,
    code: int,
) -> None:
    assert main(["--suite", "start", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["suites"]["start"][0]["ratio"] == pytest.approx(3)
    result["suites"]["start"][0]["ratio"] = before
    file = tmp_path / "earlier.json"
    file.write_text(json.dumps(result))
    assert main(["--suite", "start", "--compare", str(file)]) == code
    printed = capsys.readouterr()
    assert f"{before:.2f}" in printed.out
    expected = "start: --help takes 3.00 times its floor, and took 1.00 times before\n"
    assert printed.err == (expected if code else "")
    assert len(measured) == 2


def test_sides_take_turns_whose_order_turns_too_and_a_ratio_is_the_median_of_rounds() -> None:
    calls: list[str] = []
    seconds = take_turns(2, {name: partial(calls.append, name) for name in "ab"})
    assert calls == [*"ab", *"ba", *"ab"]
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}
    assert all(0 <= second < 1 for each in seconds.values() for second in each)
    # A side that measures itself is believed, and the first round warms up.
    values = iter([100.0, 2.0, 4.0])
    assert take_turns(2, {"a": lambda: next(values)}) == {"a": [2.0, 4.0]}
    line = Measurement("a", "b", [1.0, 2.0, 1.0], [2.0, 2.0, 5.0])
    assert (line.ratios, line.ratio, line.as_dict()["ratio"]) == ([2.0, 1.0, 5.0], 2.0, 2.0)
