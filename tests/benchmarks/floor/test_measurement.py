"""What both sides take in turn, and what counts as a regression."""

from __future__ import annotations

from benchmarks.floor.measurement import Measurement, take_turns


def test_sides_take_turns_and_the_order_turns_too() -> None:
    calls: list[str] = []
    seconds = take_turns(
        2, {name: (lambda side: lambda: calls.append(side))(name) for name in "ab"}
    )
    assert calls == [*"ab", *"ba", *"ab"]
    assert {name: len(each) for name, each in seconds.items()} == {"a": 2, "b": 2}
    assert all(0 <= second < 1 for each in seconds.values() for second in each)


def test_a_side_that_measures_itself_is_believed_and_the_first_round_warms_up() -> None:
    values = iter([100.0, 2.0, 4.0])
    assert take_turns(2, {"a": lambda: next(values)}) == {"a": [2.0, 4.0]}


def test_a_ratio_is_the_median_of_those_of_the_rounds() -> None:
    line = Measurement("a", "b", [1.0, 2.0, 1.0], [2.0, 2.0, 5.0])
    assert (line.ratios, line.ratio, line.as_dict()["ratio"]) == ([2.0, 1.0, 5.0], 2.0, 2.0)
