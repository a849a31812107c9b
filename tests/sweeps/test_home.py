"""Where the home is, and on which kinds of storage it may lie."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import UMASK
from carft_sweep.sweeps.home import Home, find_home
from carft_sweep.sweeps.ledger.ledger import Ledger, find_ledger
from carft_sweep.sweeps.ledger.optuna_copy import StudySync, study_file
from tests.mounts import mount
from tests.owners import give_away

SERVER = "http://server"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    """Below a folder that tests mount, with no tracking server named."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "share").mkdir()
    return Home(tmp_path / "share" / "home")


def test_the_home_is_the_option_then_the_variable_then_a_folder_here_and_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARFT_HOME", "y")
    assert find_home("x").path == Path("x")
    assert find_home(None).path == Path("y")
    monkeypatch.delenv("CARFT_HOME")
    assert find_home(None).path == Path(".carft")
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match=r"cannot be written.*--home"):
        Home(tmp_path / "file" / "home").prepare()
    Home(tmp_path / "home").prepare()
    # Nobody but root can mount read-only, and root may write whatever the mode says.
    monkeypatch.setattr("carft_sweep.sweeps.home.os.access", lambda *_: False)
    with pytest.raises(RequestError, match=r"cannot be written: .*--home"):
        Home(tmp_path / "home").prepare()


def test_a_new_home_is_its_users_alone_and_one_that_is_shared_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shared = Home(tmp_path / "own"), Home(tmp_path / "shared")
    monkeypatch.setenv("CARFT_SHARED_HOMES", str(shared.path))
    for home in (own, shared):
        home.prepare()
    assert (own.path / ".gitignore").read_text() == "*\n", "it keeps itself out of repositories"
    assert own.path.stat().st_mode & 0o777 == 0o700
    assert shared.path.stat().st_mode & 0o777 == 0o777 & ~UMASK


def test_a_home_that_another_account_made_first_is_not_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_away(tmp_path, monkeypatch)
    with pytest.raises(RequestError, match="belongs to user"):
        Home(tmp_path).prepare()
    assert not [*tmp_path.iterdir()]
    Home(tmp_path, is_trusted=True).prepare()


@pytest.mark.parametrize("kind", ["ext4", "nfs4", "lustre"])
def test_the_kind_of_storage_decides_where_studies_lie(
    home: Home, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    mount(monkeypatch, home.path.parent, kind)
    home.prepare()
    assert study_file(home).name == ("optuna.db" if kind == "ext4" else "optuna.journal")
    assert not study_file(home).exists(), "nothing is created before it is needed"


def test_on_a_network_file_system_runs_need_a_server(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount(monkeypatch, home.path.parent, "nfs4")
    message = r"mlflow\.db .*network file system \(nfs4\).*server in MLFLOW_TRACKING_URI, or a home"
    with pytest.raises(RequestError, match=message):
        home.prepare()
    assert not home.path.exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    home.prepare()
    assert home.path.exists()


def test_a_home_may_move_to_a_network_disk(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    home.prepare()
    spec = {"name": "toy", "parameters": {}, "metric": {"name": "m", "goal": "maximize"}}
    ledger = Ledger.create(home.sweep("toy"), 1, spec, {})
    StudySync(home, ledger).update()
    database = (home.path / "optuna.db").read_bytes()
    mount(monkeypatch, home.path.parent, "nfs4")
    home.prepare()
    StudySync(home, find_ledger(home, "toy")).update()
    assert (home.path / "optuna.journal").exists()
    assert (home.path / "optuna.db").read_bytes() == database


@pytest.mark.parametrize(
    ("kind", "number", "message"),
    [
        ("fuse.s3fs", 0, r"object store \(fuse\.s3fs\).*--home"),
        ("fuse.gcsfuse", 0, r"object store \(fuse\.gcsfuse\).*--home"),
        ("lustre", errno.ENOLCK, r"no file can be locked in .* on lustre: {}; .*`flock`.*--home"),
        ("lustre", errno.ENOSYS, r"no file can be locked in .* on lustre: {}; .*`flock`.*--home"),
    ],
)
def test_a_home_in_an_object_store_or_on_a_file_system_without_locks_is_refused(
    home: Home, monkeypatch: pytest.MonkeyPatch, kind: str, number: int, message: str
) -> None:
    def lockf(*_: Any) -> None:
        if number:
            raise OSError(number, os.strerror(number))

    monkeypatch.setenv("MLFLOW_TRACKING_URI", SERVER)
    mount(monkeypatch, home.path.parent, kind)
    monkeypatch.setattr(fcntl, "lockf", lockf)
    with pytest.raises(RequestError, match=message.format(os.strerror(number))):
        home.prepare()
    assert number or not home.path.exists()
