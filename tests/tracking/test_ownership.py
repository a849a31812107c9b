"""Who could have written a home, and which homes are shared on purpose."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.results.loading import load_comparison
from carft_sweep.tracking import ownership
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.ownership import check_home, is_shared, make_home, other_writer
from tests.owners import OTHER, give_away


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(mode=0o755)
    return folder


def test_a_home_of_another_account_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_away(home, monkeypatch)
    with pytest.raises(TrackingError) as refused:
        check_home(home)
    for words in (
        f"the home {home} belongs to user",
        "--trust-home for this call",
        f"CARFT_SHARED_HOMES={home} for a home that is shared on purpose",
    ):
        assert words in str(refused.value)
    assert "chmod" not in str(refused.value), "the right is not ours to take"
    with pytest.raises(RequestError, match="belongs to user"):
        load_comparison("toy", home=home)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [(0o777, "everybody.*go-w"), (0o1777, "everybody.*go-w"), (0o775, "group.*g-w")],
)
def test_a_home_that_others_may_write_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, mode: int, reason: str
) -> None:
    monkeypatch.setattr(ownership, "_is_private", lambda *_: False)
    home.chmod(mode)
    message = reason.replace(".*", ".*If nobody else is to write it: chmod ")
    with pytest.raises(TrackingError, match=f"can be written by {message}"):
        check_home(home)
    home.chmod(0o755)
    check_home(home)


def test_a_group_of_one_user_is_that_user(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian, Ubuntu and Fedora give every user one, and files a mode for it to write."""
    group = home.stat().st_gid
    account = SimpleNamespace(pw_name="ada", pw_gid=group)
    monkeypatch.setattr(pwd, "getpwuid", lambda _: account)
    home.chmod(0o770)
    for name, members, is_private in (
        ("ada", [], True),
        ("ada", ["ada"], True),
        ("ada", ["ada", "bob"], False),
        ("lab", [], False),
    ):
        members_of = grp.struct_group((name, "x", group, members))
        monkeypatch.setattr(grp, "getgrgid", lambda _, entry=members_of: entry)
        assert (other_writer(home) is None) == is_private, name


def test_root_and_who_called_sudo_are_oneself(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = SimpleNamespace(st_uid=0, st_gid=0, st_mode=stat.S_IFDIR | 0o755)
    monkeypatch.setattr(Path, "stat", lambda _, **__: owner)
    for uid, effective, sudo, is_own in (
        (0, OTHER, "", True),
        (OTHER + 1, OTHER, "", False),
        (OTHER + 1, OTHER, str(OTHER + 1), False),  # only root comes by sudo
        (OTHER + 1, 0, str(OTHER + 1), True),
    ):
        owner.st_uid = uid
        monkeypatch.setattr(os, "geteuid", lambda uid=effective: uid)
        monkeypatch.setenv("SUDO_UID", sudo)
        assert (other_writer(home) is None) == is_own


def test_a_home_named_as_shared_is_for_all(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    give_away(home, monkeypatch)
    link = home.with_name("link")
    link.symlink_to(home)
    assert not is_shared(home)
    monkeypatch.setenv("CARFT_SHARED_HOMES", f"/elsewhere:{link}")
    check_home(home)
    assert is_shared(home)
    assert not is_shared(home.parent)
    monkeypatch.setenv("CARFT_SHARED_HOMES", "/elsewhere")
    with pytest.raises(TrackingError, match="belongs to user"):
        check_home(home)
    for relative in (".carft", "."):
        monkeypatch.setenv("CARFT_SHARED_HOMES", relative)
        with pytest.raises(TrackingError, match=rf"CARFT_SHARED_HOMES: \{relative} is no absolute"):
            is_shared(home)


def test_a_new_home_is_its_users_alone_unless_it_is_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, shared = tmp_path / "a" / "own", tmp_path / "a" / "shared"
    before = os.umask(0o002)
    try:
        make_home(own)
        monkeypatch.setenv("CARFT_SHARED_HOMES", str(shared))
        make_home(shared)
        shared.chmod(0o2770)
        monkeypatch.delenv("CARFT_SHARED_HOMES")
        make_home(shared)
    finally:
        os.umask(before)
    assert stat.S_IMODE(own.stat().st_mode) == 0o700
    assert stat.S_IMODE(shared.stat().st_mode) == 0o2770, "what is there keeps its mode"


def test_a_folder_elsewhere_that_others_may_write_is_refused_like_the_home(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership, "_is_private", lambda *_: False)
    elsewhere = home.with_name("large")
    elsewhere.mkdir()
    for name in ownership.LARGE_FOLDERS:
        elsewhere.chmod(0o755)
        (home / name).symlink_to(elsewhere)
        check_home(home)
        elsewhere.chmod(0o777)
        message = f"has a folder {name} that can be written by every"
        with pytest.raises(TrackingError, match=message):
            check_home(home)
        with monkeypatch.context() as patch:
            patch.setenv("CARFT_SHARED_HOMES", str(home))
            check_home(home)
        (home / name).unlink()


def test_a_home_that_leads_elsewhere_is_refused(home: Path) -> None:
    for name in ("mlflow.db", "runs/.locks", "runs/" + "a" * 64, "sweeps/a"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).symlink_to(home.parent)
        with pytest.raises(TrackingError, match=f"leads elsewhere by the link {home / name}, and"):
            check_home(home)
        (home / name).unlink()
