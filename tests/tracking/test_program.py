"""Printed commands name the program so that a shell finds it."""

from __future__ import annotations

import sys

import pytest

from carft_sweep.tracking.program import command, program


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
    assert program() == words
    assert command("resume", "toy", None) == f"{words} resume toy"


def test_the_program_has_its_short_name_where_path_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: "/usr/bin/carft-sweep")
    monkeypatch.setattr(sys, "argv", [".venv/bin/carft-sweep"])
    assert program() == "carft-sweep"
