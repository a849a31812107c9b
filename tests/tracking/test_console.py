"""No name, label or log steers the terminal that shows it; printed commands name the program."""

from __future__ import annotations

import io
import sys

import pytest
from rich.table import Table
from rich.text import Text

from carft_sweep.tracking.console import PlainConsole, printable
from carft_sweep.tracking.program import command, program

TITLE = "\x1b]0;owned\x07cat\x9b31m\r\x7f"
WRITTEN = "\\x1b]0;owned\\x07cat\\x9b31m\\r\\x7f"


def test_control_characters_and_turns_of_direction_are_written_out_and_text_is_left_alone() -> None:
    assert printable(f"a\tb\n{TITLE} é 猫") == f"a\tb\n{WRITTEN} é 猫"
    assert printable("a\u202egnp.exe\u2066b\u200f") == "a\\u202egnp.exe\\u2066b\\u200f"
    assert printable("\u05e9\u05dc\u05d5\u05dd") == "\u05e9\u05dc\u05d5\u05dd"


def test_what_rich_shows_has_no_escapes_but_those_of_its_styles() -> None:
    shown = io.StringIO()
    console = PlainConsole(file=shown, force_terminal=True, width=200, color_system="standard")
    table = Table("class", title="\x1b]0;title")
    table.add_row(Text("\x1b]0;owned", style="red"))
    console.print(table)
    console.print("\x1b]0;line", markup=False, highlight=False, soft_wrap=True)
    text = shown.getvalue()
    assert "\x1b[31m\\x1b]0;" in text, "the style is ours"
    assert "\x1b]" not in text
    assert all(f"\\x1b]0;{words}" in text for words in ("title", "line"))


@pytest.mark.parametrize(
    ("called", "words"),
    [
        (".venv/bin/carft-sweep", ".venv/bin/carft-sweep"),
        ("/a b/carft-sweep", "'/a b/carft-sweep'"),
        ("/site/carft_sweep/__main__.py", f"{sys.executable} -m carft_sweep"),
        ("/notebook/launcher.py", "carft-sweep"),
    ],
)
def test_the_program_is_named_as_it_was_called_where_path_does_not_have_it(
    called: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [called])
    assert (program(), command("resume", "toy", None)) == (words, f"{words} resume toy")


def test_the_program_has_its_short_name_where_path_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/carft-sweep")
    monkeypatch.setattr(sys, "argv", [".venv/bin/carft-sweep"])
    assert program() == "carft-sweep"
