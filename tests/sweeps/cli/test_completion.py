"""What a shell offers behind the words that are there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.cli.completion import SCRIPTS, completions
from carft_sweep.sweeps.cli.parser import COMMANDS, DATA_ACTIONS, ENGINES, SHELLS
from carft_sweep.sweeps.ledger.trials import LEDGER_FILE
from tests.owners import give_away

ROOT = Path(__file__).parents[3]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two sweeps; it is the home."""
    home = tmp_path / "home"
    for name in ("photos", "photos-2"):
        (home / "sweeps" / name).mkdir(parents=True)
        (home / "sweeps" / name / LEDGER_FILE).touch()
    monkeypatch.setenv("CARFT_HOME", str(home))
    return home


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ([""], sorted(COMMANDS)),
        (["sh"], ["show"]),
        (["data", ""], sorted(DATA_ACTIONS)),
        (["data", "check", "--ex"], ["--expect"]),
        (["run", "k"], ["kl_weight"]),
        (["run", "kl_weight", ""], []),
        (["run", "kl_weight", "--pa"], ["--parallel"]),
        (["run", "--engine", ""], sorted(ENGINES)),
        (["run", "--set", ""], []),
        (["show", ""], ["photos", "photos-2"]),
        (["show", "--json", "photos-"], ["photos-2"]),
        (["show", "photos", ""], []),
        (["compare", "photos", "p"], ["photos", "photos-2"]),
        (["export", "--seed", "1", ""], ["photos", "photos-2"]),
        (["completion", ""], sorted(SHELLS)),
        (["--vers"], ["--version"]),
        (["list", ""], []),
    ],
)
def test_the_last_word_is_completed(words: list[str], offered: list[str], home: Path) -> None:
    del home
    assert completions(words) == offered


def test_sweeps_are_those_of_the_home_that_the_words_name(home: Path, tmp_path: Path) -> None:
    (home / "sweeps" / "photos").rename(home / "sweeps" / "moved")
    elsewhere = home.rename(tmp_path / "elsewhere")
    assert completions(["show", ""]) == []
    assert completions(["show", "--home", str(elsewhere), "m"]) == ["moved"]
    assert completions(["--home", str(elsewhere), "show", "m"]) == ["moved"]


def test_what_a_shell_could_run_or_a_stranger_has_written_is_not_offered(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("$(reboot)", "*", "a b"):
        (home / "sweeps" / name).mkdir()
        (home / "sweeps" / name / LEDGER_FILE).touch()
    assert completions(["show", ""]) == ["photos", "photos-2"]
    give_away(home, monkeypatch)
    assert completions(["show", ""]) == []


def test_nothing_heavy_is_imported_and_nothing_is_made(tmp_path: Path) -> None:
    code = (
        "import sys; from carft_sweep.sweeps.cli import main; "
        "main(['completion', '--line', 'carft-sweep\\tshow\\t']); "
        "print(sorted({'torch', 'mlflow', 'optuna', 'pandas', 'numpy'} & {*sys.modules}))"
    )
    environ = {**os.environ, "CARFT_HOME": str(tmp_path / "none")}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environ
    )
    assert done.stdout == "[]\n"
    assert [*tmp_path.iterdir()] == []


ASK = {
    "bash": "COMP_WORDS=({words}); COMP_CWORD={last}; _carft_sweep; "
    'printf "%s\\n" "${{COMPREPLY[@]}}"',
    "fish": 'complete -C "{line}"',
}


@pytest.mark.parametrize("shell", ASK)
@pytest.mark.parametrize(
    ("words", "offered"),
    [(["show", "photos-"], ["photos-2"]), (["show", ""], ["photos", "photos-2"])],
)
def test_the_shell_offers_it(
    shell: str, words: list[str], offered: list[str], home: Path, tmp_path: Path
) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    program = tmp_path / "bin" / "carft-sweep"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m carft_sweep "$@"\n')
    program.chmod(0o755)
    environ = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    environ |= {"PYTHONPATH": str(ROOT), "CARFT_HOME": str(home)}
    every = ["carft-sweep", *words]
    quoted = " ".join(f"'{word}'" for word in every)
    ask = ASK[shell].format(words=quoted, last=len(words), line=" ".join(every))
    done = subprocess.run(
        [shell, "-c", f"{SCRIPTS[shell]}\n{ask}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environ,
    )
    assert done.stdout.split() == offered


def test_the_script_of_each_shell_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(SCRIPTS) == SHELLS
    for shell in SHELLS:
        assert main(["completion", shell]) == 0
        assert capsys.readouterr().out == SCRIPTS[shell]
    assert main(["completion"]) == 2
    assert "which shell? bash, zsh, fish" in capsys.readouterr().err
    assert main(["completion", "bsh"]) == 2
    assert "did you mean 'bash'?" in capsys.readouterr().err
