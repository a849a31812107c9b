"""A home that was unpacked: whatever its files are, looking and sending reads nothing elsewhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from carft_sweep.sweeps.cli import main
from tests.sweeps.conftest import ToySweep

SECRET = "a private key"
LOOKING = ("list", "show toy", "watch toy", "compare toy", "report toy", "clean", "doctor home")
KINDS = {
    "ledger": "sweeps/toy/ledger.jsonl",
    "copy": "sweeps/toy/sweep.yaml",
    "comparison": "sweeps/toy/comparison.json",
    "sent": "sweeps/toy/sent/home.jsonl",
    "state": "runs/*/run.json",
    "config": "runs/*/config.json",
    "history": "runs/*/history.json",
    "points": "runs/*/steps.jsonl",
    "log": "runs/*/log.txt",
    "metrics": "runs/*/evaluations/*/metrics.json",
}


def link(file: Path) -> None:
    file.symlink_to(file.parents[-1] / os.environ["ELSEWHERE"])


@pytest.mark.parametrize(
    ("kind", "make"), [*((kind, link) for kind in KINDS), ("ledger", os.mkfifo)]
)
def test_a_file_of_a_home_that_is_none_leads_nowhere(
    toy_cli: ToySweep,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    make: Callable[[Path], None],
) -> None:
    private = toy_cli.folder / "id_ed25519"
    private.write_text(SECRET)
    monkeypatch.setenv("ELSEWHERE", str(private))
    # The toy core's runs have no revision.
    monkeypatch.setattr("carft_sweep.sweeps.results.report._identities", lambda _: ())
    main(["run", str(toy_cli.file(baselines=[])), "--in-process", "--quiet"])
    main(["sync"])
    for folder in toy_cli.home.runs.glob("*/run.json"):
        for name in ("log.txt", "steps.jsonl"):  # of a worker and of the core: the toy has neither
            folder.with_name(name).touch()
    files = [*toy_cli.home.path.glob(KINDS[kind])]
    assert files
    for file in files:
        file.unlink()
        make(file)
    for words in (*LOOKING, "sync"):
        assert main(words.split()) in (0, 1, 2), words
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err
    assert "Traceback" not in shown.err
    for file in toy_cli.home.path.rglob("*"):
        assert file.is_symlink() or not file.is_file() or SECRET not in file.read_text("latin-1")
    for run in toy_cli.tracker.runs.values():
        assert SECRET not in str(run)
    assert private.read_text() == SECRET
