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


def test_a_home_of_another_account_is_refused_with_what_to_do(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    give_away(home, monkeypatch)
    with pytest.raises(TrackingError) as refused:
        check_home(home)
    message = str(refused.value)
    assert f"the home {home} belongs to user" in message
    assert "--trust-home for this call" in message
    assert f"CARFT_SHARED_HOMES={home} for a home that is shared on purpose" in message
    assert "chmod" not in message, "the right is not ours to take"
    with pytest.raises(RequestError, match="belongs to user"):
        load_comparison("toy", home=home)


@pytest.mark.parametrize(
    ("mode", "reason", "remedy"),
    [
        (0o777, "can be written by everybody", "chmod go-w"),
        (0o1777, "can be written by everybody", "chmod go-w"),
        (0o775, "can be written by group", "chmod g-w"),
    ],
)
def test_a_home_that_others_may_write_is_refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, mode: int, reason: str, remedy: str
) -> None:
    monkeypatch.setattr(ownership, "_is_private", lambda *_: False)
    home.chmod(mode)
    with pytest.raises(TrackingError, match=f"{reason}.*If nobody else is to write it: {remedy}"):
        check_home(home)
    home.chmod(0o755)
    check_home(home)


def test_the_group_that_a_user_has_alone_is_the_user(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        monkeypatch.setattr(grp, "getgrgid", lambda _, them=members_of: them)
        assert (other_writer(home) is None) == is_private, name


def test_root_counts_as_oneself_and_so_does_who_called_sudo(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = SimpleNamespace(st_uid=0, st_gid=0, st_mode=stat.S_IFDIR | 0o755)
    monkeypatch.setattr(Path, "stat", lambda _, **__: owner)
    monkeypatch.setattr(os, "geteuid", lambda: OTHER)
    assert other_writer(home) is None
    owner.st_uid = OTHER + 1
    assert other_writer(home) is not None
    monkeypatch.setenv("SUDO_UID", str(OTHER + 1))
    assert other_writer(home) is not None, "only root comes by sudo"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert other_writer(home) is None


def test_a_home_that_is_named_as_shared_is_used_and_made_for_all(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("name", ownership.LARGE_FOLDERS)
def test_a_folder_elsewhere_that_others_may_write_is_refused_like_the_home(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(ownership, "_is_private", lambda *_: False)
    elsewhere = home.with_name("large")
    elsewhere.mkdir(mode=0o755)
    (home / name).symlink_to(elsewhere)
    check_home(home)
    elsewhere.chmod(0o777)
    with pytest.raises(TrackingError, match=f"has a folder {name} that can be written by every"):
        check_home(home)
    monkeypatch.setenv("CARFT_SHARED_HOMES", str(home))
    check_home(home)


@pytest.mark.parametrize("name", ["mlflow.db", "runs/.locks", "runs/" + "a" * 64, "sweeps/a"])
def test_a_home_that_leads_elsewhere_is_refused(home: Path, name: str) -> None:
    (home / name).parent.mkdir(exist_ok=True)
    (home / name).symlink_to(home.parent)
    with pytest.raises(TrackingError, match=f"leads elsewhere by the link {home / name}, and"):
        check_home(home)
