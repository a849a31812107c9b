"""The files of a git repository as they are now, or as they were committed."""

from __future__ import annotations

import functools
import os
import stat
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from carft_core.errors import RequestError

_GIT_SECONDS = 60.0
_LFS = b"version https://git-lfs.github.com/spec/"
_LFS_LONGEST = 1024


@dataclass(frozen=True)
class File:
    """One file that may be sent."""

    name: str
    """Relative to the root, with `/`."""
    size: int
    is_executable: bool
    read: Callable[[], bytes] = field(compare=False, repr=False)


@dataclass(frozen=True)
class Tree:
    """Files below one folder, and what is to be said of them."""

    root: Path
    files: tuple[File, ...]
    notes: tuple[str, ...] = ()
    """What is not among the files, and why."""
    states: Mapping[str, str] = field(default_factory=dict)
    """`new` or `changed` since the commit, by the file's name."""
    commit: str | None = None


def repository_of(folder: Path) -> Path | None:
    """The top folder of the git repository around `folder`; None outside of one.

    Raises RequestError where there is one that git cannot read.
    """
    folder = folder.resolve()
    if not any((parent / ".git").exists() for parent in (folder, *folder.parents)):
        return None
    return Path(_git(folder, "rev-parse", "--show-toplevel").decode().rstrip("\n"))


def as_it_is(root: Path) -> Tree:
    """Every file that git knows, with its changes, and those that it neither knows nor ignores."""
    commit = _commit(root)
    known = _names(root, "ls-files", "-z", "--recurse-submodules")
    new = _names(root, "ls-files", "-z", "--others", "--exclude-standard")
    changed = set(_names(root, "diff", "--name-only", "-z", "HEAD")) if commit else set(known)
    states = dict.fromkeys(changed, "changed") | dict.fromkeys(new, "new")
    files: list[File] = []
    notes: list[str] = []
    for name in [*known, *new]:
        found = _on_disk(root, name)
        if isinstance(found, File):
            files.append(found)
            notes += _lfs(found)
        elif found is not None:
            notes.append(found)
        elif name in changed:
            notes.append(f"deleted: {name}")
    return Tree(root, tuple(files), tuple(notes), states, commit)


def as_committed(root: Path) -> Tree:
    """Every file of the commit that is checked out. Raises RequestError before the first one."""
    commit = _commit(root)
    if commit is None:
        raise RequestError(f"--only-committed: nothing is committed in {root} yet")
    files: list[File] = []
    notes: list[str] = []
    for line in _names(root, "ls-tree", "-r", "-z", "--long", "HEAD"):
        told, _, name = line.partition("\t")
        mode, kind, blob, size = told.split()
        if kind != "blob" or mode == "120000":
            what = "a link" if kind == "blob" else "a submodule"
            notes.append(f"not sent: {name} ({what}; send it without --only-committed)")
            continue
        read = functools.partial(_git, root, "cat-file", "blob", blob)
        files.append(File(name, int(size), mode == "100755", read))
        notes += _lfs(files[-1])
    left = [
        *_names(root, "diff", "--name-only", "-z", "HEAD"),
        *_names(root, "ls-files", "-z", "--others", "--exclude-standard"),
    ]
    notes += [f"left out, not committed: {name}" for name in left]
    return Tree(root, tuple(files), tuple(notes), commit=commit)


def file_at(root: Path, name: str) -> File:
    """One regular file below `root`."""
    path = root / name
    facts = path.stat()
    return File(name, facts.st_size, bool(facts.st_mode & stat.S_IXUSR), path.read_bytes)


def _on_disk(root: Path, name: str) -> File | str | None:
    """The file, why it is not sent, or None when it is not there. Links become what they name."""
    path = root / name
    if not os.path.lexists(path):
        return None
    if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
        return f"not sent: {name} (a link out of the repository)"
    if path.is_dir():
        what = "a link to a folder" if path.is_symlink() else "a repository of its own"
        return f"not sent: {name.rstrip('/')} ({what})"
    if not path.is_file():
        return f"not sent: {name} (no regular file)"
    return file_at(root, name)


def _lfs(file: File) -> Iterator[str]:
    if file.size <= _LFS_LONGEST and file.read().startswith(_LFS):
        yield f"a pointer of Git LFS and not its content: {file.name} (git lfs pull)"


def _commit(root: Path) -> str | None:
    try:
        return _git(root, "rev-parse", "--verify", "--quiet", "HEAD").decode().strip()
    except RequestError:  # before the first commit
        return None


def _names(root: Path, *command: str) -> list[str]:
    return list(dict.fromkeys(filter(None, os.fsdecode(_git(root, *command)).split("\0"))))


def _git(folder: Path, *command: str) -> bytes:
    try:
        done = subprocess.run(
            ["git", "--no-optional-locks", *command],
            cwd=folder,
            capture_output=True,
            timeout=_GIT_SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise RequestError(f"{folder} lies in a git repository, but git is not installed") from None
    except subprocess.TimeoutExpired:
        raise RequestError(f"git {command[0]} took over {_GIT_SECONDS:g} s in {folder}") from None
    if done.returncode:
        first = done.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise RequestError(f"git {command[0]} failed in {folder}: {first}")
    return done.stdout
