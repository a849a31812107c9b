"""NO_COLOR on a terminal: what is printed has no colours, and has them without it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

from tests.sweeps.conftest import ToySweep

ROOT = Path(__file__).parents[3]
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")


def on_terminal(*words: str, **environ: str) -> str:
    """What a command writes to a terminal of its own."""
    ours, theirs = pty.openpty()
    names = {"TERM": "xterm-256color", "COLUMNS": "100", **environ}
    kept = {name: text for name, text in os.environ.items() if name != "NO_COLOR"}
    command = [sys.executable, "-m", "carft_sweep", *words]
    process = subprocess.Popen(
        command, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=kept | names
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # so Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, written
    return written.decode()


def test_with_no_color_a_terminal_shows_none(toy: ToySweep) -> None:
    toy.plan({"0.1/0": [{"do": "raise", "error": "nan"}]})  # so that there is a warning
    toy.run()
    home = str(toy.home.path)
    assert COLOUR.search(on_terminal("compare", "toy", "--home", home))
    for command in ("compare", "watch", "show"):
        text = on_terminal(command, "toy", "--home", home, NO_COLOR="1")
        assert "kl_weight=0.3" in text
        assert not COLOUR.search(text), command
