"""What the walks count: entries between marks, and what a recorded process called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.walks.__main__ import Product, between, entries, functions


def call(function: str, caller: str | None = None, **fields: Any) -> dict[str, Any]:
    event = {
        "function": function,
        "file": function.partition(":")[0],
        "caller": caller,
        "caller_file": caller and caller.partition(":")[0],
        "main": True,
        "validated": False,
    }
    return event | fields


def test_an_entry_comes_from_another_file_and_counts_once() -> None:
    events = [
        call("sweeps/a.py:main"),
        call("sweeps/b.py:load", "sweeps/a.py:main"),
        call("sweeps/b.py:_help", "sweeps/b.py:load"),
        call("sweeps/b.py:load", "sweeps/c.py:other"),
        call("sweeps/b.py:later", "sweeps/a.py:main", main=False),
        call("sweeps/s.py:_one", "sweeps/b.py:load", validated=True),
        call("sweeps/s.py:_two", "sweeps/b.py:load", validated=True),
        call("carft_core/x.py:train", "sweeps/b.py:load"),
        call("carft_core/y.py:inner", "carft_core/x.py:train"),
    ]
    assert entries(events) == [
        "sweeps/a.py:main",
        "sweeps/b.py:load",
        "sweeps/s.py:(validators)",
        "carft_core/x.py:train",
    ]


def test_a_way_lies_between_two_marks() -> None:
    one, two = call("sweeps/a.py:one"), call("sweeps/a.py:two")
    events = [one, {"mark": "first"}, two, {"mark": "last"}, one, {"mark": "last"}, one]
    assert list(between(events, "first", "last")) == [two]
    assert list(between(events, None, "last", count=2)) == [one, two, one]
    with pytest.raises(SystemExit, match="ended before nothing"):
        list(between(events, None, "nothing"))


def test_a_command_is_recorded(tmp_path: Path) -> None:
    events = Product(tmp_path).record("list")
    names = functions(event for event in events if "mark" not in event)
    assert names[0] == "sweeps/cli/__init__.py:main"
    assert "sweeps/home.py:find_home" in names
    assert not [name for name in names if "<lambda>" in name or "<genexpr>" in name]
