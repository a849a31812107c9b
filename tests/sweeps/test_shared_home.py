"""A home that several accounts share on purpose, as docs/server.md has it: each works in it."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from carft_sweep.carft_core import files
from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.engines.local import InProcessEngine
from carft_sweep.sweeps.ledger.generations import COPY
from tests.sweeps import toy_core
from tests.sweeps.conftest import ONE_RUN, TOY, ToySweep, toy_in

ADA, BOB, LAB = 61_001, 61_002, 61_100
"""Two users and a group that both are in, which no account need have."""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as two accounts")


def toy_of_root(folder: Path, patch: pytest.MonkeyPatch) -> ToySweep:
    patch.setattr(
        "carft_sweep.sweeps.api.make_engine", lambda *_, **__: InProcessEngine(toy_core.ENTRY)
    )
    patch.delenv("RAY_ADDRESS", raising=False)
    return toy_in(folder, patch)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is imported late, some at the second time, and may lie where only root reads it."""
    folder = tmp_path_factory.mktemp("imported")
    with pytest.MonkeyPatch.context() as patch:
        toy = toy_of_root(folder, patch)
        patch.setenv("CARFT_HOME", str(folder / "home"))
        for words in (["run", str(toy.file(**ONE_RUN))], ["sync"], ["remove", "toy", "--yes"]) * 2:
            main(words)


@pytest.fixture
def lab(imported: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[ToySweep]:
    """A shared home in a folder that both may enter, on the toy core and with MLflow in it."""
    del imported
    folder = Path(tempfile.mkdtemp(prefix="carft-lab-"))
    folder.chmod(0o755)
    toy = toy_of_root(folder, monkeypatch)
    # install -d -m 2770 -g lab
    toy.home.path.mkdir()
    os.chown(toy.home.path, 0, LAB)
    toy.home.path.chmod(0o2770)
    monkeypatch.setenv("CARFT_SHARED_HOMES", str(toy.home.path))
    monkeypatch.setenv("CARFT_HOME", str(toy.home.path))
    yield toy
    shutil.rmtree(folder)


def as_account(user: int, toy: ToySweep, *words: str, umask: int = 0o002, code: int = 0) -> str:
    """Run a command as another user, which must exit with `code`; all that it says."""
    log = toy.folder / f"said-by-{user}"
    log.touch()
    os.chown(log, user, LAB)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # there may be threads
        process = os.fork()
    if process == 0:
        ended = 99
        try:
            os.setgroups([LAB])
            os.setgid(user)  # most have a group of their own
            os.setuid(user)
            os.umask(umask)
            files.UMASK = umask  # which a process reads once
            os.environ["CARFT_CACHE"] = str(toy.home.path.parent / f"cache-{user}")
            with log.open("w") as sys.stdout:
                sys.stderr = sys.stdout
                try:
                    ended = main([*words])
                except BaseException:
                    traceback.print_exc()
        finally:
            os._exit(ended)
    _, status = os.waitpid(process, 0)
    output = log.read_text()
    assert os.waitstatus_to_exitcode(status) == code, output
    return output


def test_a_second_account_works_in_the_home_of_the_first(lab: ToySweep) -> None:
    assert "refused" not in as_account(ADA, lab, "run", str(lab.file(**ONE_RUN)))
    trial = {**TOY["trial"], "merges": [{"name": "wise_ft", "alphas": [0.25, 0.75]}]}
    file = lab.file(**ONE_RUN, name="bobs", trial=trial)
    assert "refused" not in as_account(BOB, lab, "run", str(file))
    assert lab.evaluated()["wise_ft@0.75"] == 1, "the run of the first, under their locks"
    assert "refused" not in as_account(BOB, lab, "sync")
    assert "every run as it is here" in as_account(ADA, lab, "sync")
    assert "toy is removed" in as_account(BOB, lab, "remove", "toy", "--yes")
    as_account(ADA, lab, "clean", "--yes")
    assert "wise_ft" in as_account(ADA, lab, "compare", "bobs")


def test_a_sweep_goes_on_where_another_account_cannot_read_its_file(lab: ToySweep) -> None:
    file = lab.file(**ONE_RUN)
    (private := lab.folder / "of-ada").mkdir(mode=0o700)
    os.chown(private, ADA, LAB)
    shutil.move(file, file := private / file.name)
    as_account(ADA, lab, "run", str(file))
    for outcome in ("nothing left to do", "[1/1]"):
        output = as_account(BOB, lab, "resume", "toy")
        assert f"{file} is gone or cannot be read" in output
        assert outcome in output
        shutil.rmtree(lab.home.runs / lab.ledger().trials()[0].runs["0"])
    refusal = as_account(BOB, lab, "run", str(file), "--set", "name=other", code=2)
    assert f"'{file}': Permission denied" in refusal
    as_account(BOB, lab, "run", str(lab.home.sweep("toy") / COPY))


def test_a_home_in_another_accounts_private_folder_is_refused(lab: ToySweep) -> None:
    (private := lab.folder / "of-ada").mkdir(mode=0o700)
    os.chown(private, ADA, LAB)
    for words, code in ((["list"], 2), (["doctor", "home"], 2)):
        refusal = as_account(BOB, lab, *words, "--home", str(private / "home"), code=code)
        assert f"the home {private / 'home'} cannot be entered: Permission denied; name" in refusal


def test_a_database_and_a_lock_that_shut_another_account_out_are_named(lab: ToySweep) -> None:
    for name, umask in {"toy": 0o002, "closed": 0o022}.items():
        as_account(ADA, lab, "run", str(lab.file(**ONE_RUN, name=name)), umask=umask)
    lock, database = lab.home.sweep("closed") / ".lock", lab.home.path / "mlflow.db"
    database.chmod(0o644)
    shutil.rmtree(lab.home.sweep("toy") / "sent")
    for words, file in ((("remove", "closed", "--yes"), lock), (("sync", "toy"), database)):
        refusal = as_account(BOB, lab, *words, code=2)
        assert f"{file} belongs to user {ADA} with mode 0644" in refusal
        assert "`chmod -R g+w` on the home" in refusal
