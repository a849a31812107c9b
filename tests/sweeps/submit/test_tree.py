"""What of a git repository is sent: as it is, or as it was committed."""

from __future__ import annotations

from pathlib import Path

import pytest

from carft_core.errors import RequestError
from sweeps.submit.package import Tree, as_committed, as_it_is, repository_of
from tests.sweeps.submit.conftest import Git

ALL = {".gitignore", "mine.py", "tiny.yaml"}


def contents(tree: Tree) -> dict[str, bytes]:
    return {file.name: file.read() for file in tree.files}


def test_what_changed_since_the_commit_is_sent_and_named(git: Git, project: Path) -> None:
    (project / "mine.py").write_text("X = 2\n")
    (project / "new file.txt").write_text("new")
    (project / "ignored.bin").write_text("no")
    (project / "tiny.yaml").unlink()
    tree = as_it_is(project)
    assert contents(tree) == {
        ".gitignore": b"ignored*\n",
        "mine.py": b"X = 2\n",
        "new file.txt": b"new",
    }
    assert {name: tree.states[name] for name in contents(tree) if name in tree.states} == {
        "mine.py": "changed",
        "new file.txt": "new",
    }
    assert tree.notes == ("deleted: tiny.yaml",)
    assert tree.commit == git("rev-parse", "HEAD")


def test_only_what_is_committed_comes_from_the_commit(git: Git, project: Path) -> None:
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    git("add", "-A")
    git("commit", "-qm", "second")
    (project / "mine.py").write_text("X = 2\n")
    (project / "new.txt").write_text("new")
    tree = as_committed(project)
    assert contents(tree).keys() == {*ALL, "run.sh"}
    assert contents(tree)["mine.py"] == b"X = 1\n"
    assert [file.name for file in tree.files if file.is_executable] == ["run.sh"]
    assert tree.notes == ("left out, not committed: mine.py", "left out, not committed: new.txt")
    assert tree.states == {}


def test_links_are_followed_inside_and_not_out(git: Git, project: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_text("no")
    (project / "folder").mkdir()
    (project / "folder" / "file").write_text("yes")
    (project / "inside").symlink_to("folder/file")
    (project / "out").symlink_to(tmp_path / "outside")
    (project / "folder link").symlink_to("folder")
    git("add", "-A")
    git("commit", "-qm", "links")
    tree = as_it_is(project)
    assert contents(tree)["inside"] == b"yes"
    assert set(tree.notes) == {
        "not sent: out (a link out of the repository)",
        "not sent: folder link (a link to a folder)",
    }
    assert "inside" not in contents(as_committed(project))
    assert any("inside (a link;" in note for note in as_committed(project).notes)


def test_submodules_are_sent_with_their_files(git: Git, project: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "part.py").write_text("P = 1\n")
    git("init", "-q", folder=other)
    git("add", "-A", folder=other)
    git("commit", "-qm", "part", folder=other)
    git("submodule", "add", "-q", str(other), "parts")
    git("commit", "-qm", "parts")
    assert contents(as_it_is(project))["parts/part.py"] == b"P = 1\n"
    assert any("parts (a submodule;" in note for note in as_committed(project).notes)
    git("submodule", "deinit", "-q", "-f", "parts")
    assert "not sent: parts (a repository of its own)" in as_it_is(project).notes


def test_a_pointer_of_git_lfs_is_told(git: Git, project: Path) -> None:
    (project / "weights.pt").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    git("add", "-A")
    (note,) = as_it_is(project).notes
    assert note.startswith("a pointer of Git LFS and not its content: weights.pt")


def test_a_repository_without_a_commit_is_all_new(project: Path, git: Git) -> None:
    git("update-ref", "-d", "HEAD")
    tree = as_it_is(project)
    assert tree.commit is None
    assert set(tree.states) == ALL
    with pytest.raises(RequestError, match="nothing is committed"):
        as_committed(project)


def test_the_repository_is_found_from_below_and_not_elsewhere(
    git: Git, project: Path, tmp_path: Path
) -> None:
    del git
    (project / "a" / "b").mkdir(parents=True)
    assert repository_of(project / "a" / "b") == project
    assert repository_of(tmp_path) is None


def test_a_repository_that_git_cannot_read_is_no_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").write_text("gitdir: /nowhere")
    with pytest.raises(RequestError, match="git rev-parse failed in"):
        repository_of(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RequestError, match="git is not installed"):
        repository_of(tmp_path)
