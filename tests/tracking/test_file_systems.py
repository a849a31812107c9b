"""Which file system a path lies on, by the system's list of mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mounts import mount
from tracking.location import file_system, network_file_system


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "lustre", "gpfs", "ceph"])
def test_what_is_not_there_yet_lies_on_the_nearest_mount_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    share = tmp_path / "share"
    share.mkdir()
    mount(monkeypatch, share, kind)
    assert file_system(share / "not" / "there") == network_file_system(share / "not") == kind
    assert file_system(tmp_path / "share2") == "ext4"
    assert network_file_system(tmp_path) is None


def test_a_link_lies_where_it_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = tmp_path / "share"
    share.mkdir()
    mount(monkeypatch, share, "nfs4")
    (tmp_path / "link").symlink_to(share)
    assert network_file_system(tmp_path / "link" / "home") == "nfs4"


def test_a_mount_below_a_network_file_system_may_be_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts = tmp_path / "mounts"
    (tmp_path / "a b").mkdir()
    place = str(tmp_path / "a b").replace(" ", "\\040")
    mounts.write_text(f"server:/ {tmp_path} nfs4 rw 0 0\n/dev/b {place} xfs rw 0 0\n")
    monkeypatch.setattr("tracking.location.MOUNTS", mounts)
    assert network_file_system(tmp_path / "other") == "nfs4"
    assert network_file_system(tmp_path / "a b" / "home") is None


def test_a_later_mount_on_the_same_place_covers_the_earlier(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/a {tmp_path} ext4 rw 0 0\nserver:/x {tmp_path} nfs rw 0 0\n")
    assert file_system(tmp_path, mounts) == "nfs"


def test_a_system_that_does_not_tell_counts_as_local(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracking.location.MOUNTS", tmp_path / "no such file")
    assert file_system(tmp_path) is None
    assert network_file_system(tmp_path) is None
