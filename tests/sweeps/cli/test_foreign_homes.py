"""A home that another account could have written, or that was unpacked: it is refused, and whatever
its files are, looking and sending reads nothing elsewhere and steers no terminal.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from carft_sweep.sweeps.cli import MODULES, main
from tests.owners import give_away
from tests.sweeps.conftest import ONE_RUN, Carft, ToySweep

OF_TOY = ("resume", "stop", "pause", "watch", "show", "compare", "report", "export", "remove")
WORDS = {"run": ["kl_weight"], "check": ["kl_weight"], **{key: ["toy"] for key in OF_TOY}}
WORDS |= {"predict": ["toy", "{image}"], "set": ["toy", "parallel=2"]}
OPENS_NONE = {"init", "data", "submit", "schema"}
"""`submit` names the home of a cluster."""


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a `.carft` that somebody else has put there; the current one."""
    (tmp_path / ".carft").mkdir(mode=0o755)
    (tmp_path / "image.png").write_bytes(b"")
    monkeypatch.delenv("CARFT_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    give_away(tmp_path / ".carft", monkeypatch)
    return tmp_path


@pytest.mark.parametrize("command", sorted(set(MODULES) - OPENS_NONE))
def test_a_home_of_another_account_is_refused(foreign: Path, carft: Carft, command: str) -> None:
    words = [word.format(image=foreign / "image.png") for word in WORDS.get(command, [])]
    message = carft(command, *words, code=2).err
    assert message.startswith("carft-sweep: the home .carft belongs to user ")
    assert "--trust-home for this call" in message
    assert f"CARFT_SHARED_HOMES={foreign / '.carft'} for a home that is shared" in message
    assert not [*(foreign / ".carft").iterdir()]


def test_trust_is_given_for_a_call_before_or_behind_the_command(
    foreign: Path, carft: Carft, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words in (["list", "--trust-home"], ["--trust-home", "list"]):
        assert "No sweep was run in .carft yet" in carft(*words).out
    carft("list", code=2)
    monkeypatch.setenv("CARFT_SHARED_HOMES", str(foreign / ".carft"))
    carft("list")


def test_names_of_a_home_do_not_steer_the_terminal(toy_cli: ToySweep, carft: Carft) -> None:
    toy_cli.plan({"0.3/1": [{"do": "raise", "error": "request"}]})
    main(["run", str(toy_cli.file()), "--in-process", "--quiet"])
    evil = "\x1b]0;owned\x07"
    ledger = toy_cli.home.sweep("toy") / "ledger.jsonl"
    escaped = evil.encode("unicode_escape").decode().replace("\\x", "\\u00")
    ledger.write_text(ledger.read_text().replace('"car_ft"', f'"car_ft{escaped}"'))
    for file in toy_cli.home.runs.glob("*/run.json"):
        file.write_text(file.read_text().replace('"car_ft ', f'"car_ft{escaped} '))
    for words in ("show toy", "watch toy", "compare toy", "compare toy --csv"):
        shown = carft(*words.split()).out
        assert "\x1b" not in shown, words
        assert "\\x1b]0;owned" in shown, words
    assert "\x1b" not in carft("show", f"x{evil}", code=2).err


Capfd = pytest.CaptureFixture[str]
SECRET = "a private key"
LOOKING = ("list", "show toy", "watch toy", "compare toy", "report toy", "clean", "doctor home")
OF_SWEEP = ("ledger.jsonl", "sweep.yaml", "comparison.json", "sent/home.jsonl")
OF_RUN = ("run.json", "config.json", "history.json", "steps.jsonl", "log.txt")
FILES = [*(f"sweeps/toy/{name}" for name in OF_SWEEP), *(f"runs/*/{name}" for name in OF_RUN)]
FILES += ["runs/*/evaluations/*/metrics.json"]


@pytest.mark.parametrize("kind", [*FILES, "pipe"])
def test_a_file_of_a_home_that_is_none_leads_nowhere(
    toy_cli: ToySweep, capfd: Capfd, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    private = toy_cli.folder / "id_ed25519"
    private.write_text(SECRET)
    # The toy core's runs have no revision.
    monkeypatch.setattr("carft_sweep.sweeps.results.report._identities", lambda _: ())
    main(["run", str(toy_cli.file(**ONE_RUN)), "--in-process", "--quiet"])
    main(["sync"])
    for folder in toy_cli.home.runs.glob("*/run.json"):
        for name in ("log.txt", "steps.jsonl"):  # of a worker and of the core: the toy has neither
            folder.with_name(name).touch()
    files = [*toy_cli.home.path.glob(FILES[0] if kind == "pipe" else kind)]
    assert files
    for file in files:
        file.unlink()
        os.mkfifo(file) if kind == "pipe" else file.symlink_to(private)
    for words in (*LOOKING, "sync"):
        assert main(words.split()) in (0, 1, 2), words
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err
    assert "Traceback" not in shown.err
    for file in toy_cli.home.path.rglob("*"):
        assert file.is_symlink() or not file.is_file() or SECRET not in file.read_text("latin-1")
    assert not [run for run in toy_cli.tracker.runs.values() if SECRET in str(run)]
    assert private.read_text() == SECRET
