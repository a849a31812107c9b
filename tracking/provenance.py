"""Provenance of runs as tags: user, command, commit and versions."""

from __future__ import annotations

import getpass
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

SOURCE_COMMIT = "CARFT_SOURCE_COMMIT"
"""Variable with the commit of sources sent without their .git, and `-dirty` if they differ."""
USER, USER_VARIABLE = "mlflow.user", "CARFT_USER"
"""Tag of who began a sweep, and its variable: all jobs of a cluster may run as one account."""
PACKAGES = ("carft-sweep", "torch", "open_clip_torch", "optuna", "mlflow", "ray")

_GIT_SECONDS = 5.0
_NO_PROGRAMS = ("-c", "core.fsmonitor=false", "-c", f"core.hooksPath={os.devnull}")
_EMPTY = "CARFT_EMPTY"
_NO_FETCHING = {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none"}
"""Keeps git from fetching missing objects from a remote, whose address may be a program. Older
versions know the second variable only, and then fetch in vain."""
_FILTER = re.compile(r"filter\..*\.(clean|smudge|process|required)", re.DOTALL)
"""Settings that name a filter's program. Each is emptied by its name, as git reads the attributes
in `.git/info` even with `--attr-source`."""
_COMMIT, _DIRTY = "mlflow.source.git.commit", "carft.git.dirty"
_VERSION = "carft.version."


def provenance_tags(folder: Path | None = None) -> dict[str, str]:
    """Return tags of user, command, the git checkout around `folder`, and installed versions.
    `folder` is the current one when None. Outside a checkout or without git, the commit is that in
    CARFT_SOURCE_COMMIT. No package is imported."""
    tags = {
        USER: user(),
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "LOCAL",
        f"{_VERSION}python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            tags[f"{_VERSION}{package}"] = version(package)
        except PackageNotFoundError:
            continue
    return tags | _git_tags(Path.cwd() if folder is None else folder)


def describe_code(tags: Mapping[str, str]) -> str:
    """Return commit and installed versions, from the tags of `provenance_tags`, in one line."""
    versions = [
        f"{name.removeprefix(_VERSION)} {value}"
        for name, value in tags.items()
        if name.startswith(_VERSION)
    ]
    if _COMMIT not in tags:
        return ", ".join(versions)
    changed = " with changes" if tags.get(_DIRTY) == "true" else ""
    return f"commit {tags[_COMMIT]}{changed}; {', '.join(versions)}"


def user() -> str:
    """Return the name of the user, by CARFT_USER or the system; `unknown` where neither has one."""
    try:
        return os.environ.get(USER_VARIABLE) or getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _git_tags(folder: Path) -> dict[str, str]:
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        commit, _, suffix = os.environ.get(SOURCE_COMMIT, "").partition("-")
        return {_COMMIT: commit, _DIRTY: str(bool(suffix)).lower()} if commit else {}
    tags = {_COMMIT: commit}
    branch = _git(folder, "symbolic-ref", "--short", "HEAD")
    if branch:  # none on a detached head
        tags["mlflow.source.git.branch"] = branch
    # Without a look into submodules, which bring settings of their own.
    short = ("--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
    changes = _git(folder, "status", *short)
    if changes is not None:
        tags[_DIRTY] = str(bool(changes)).lower()
    return tags


def _git(folder: Path, *command: str) -> str | None:
    """Return the output of a git command that only reads, and runs no program that the checkout's
    settings name; None when the command fails.

    A checkout from an archive has settings, and these may name programs: a monitor of the file
    system, hooks, filters of content, remotes. Programs that the user's own settings name do run.
    """
    listing = ("config", "--list", "--includes", "--show-scope", "--name-only", "-z")
    try:
        words = os.fsdecode(_git_process(folder, listing).stdout).split("\0")
        filters = (
            name
            for scope, name in zip(words[::2], words[1::2], strict=False)
            if scope in ("local", "worktree") and _FILTER.fullmatch(name)
        )
        process = _git_process(folder, command, filters)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return os.fsdecode(process.stdout).strip() if process.returncode == 0 else None


def _git_process(
    folder: Path, command: Sequence[str], emptied: Iterable[str] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run a git command with the settings named in `emptied` made empty; a name may hold `=`."""
    return subprocess.run(
        [
            *("git", "--no-optional-locks", *_NO_PROGRAMS),
            *(f"--config-env={name}={_EMPTY}" for name in emptied),
            *command,
        ],
        cwd=folder,
        env={**os.environ, **_NO_FETCHING, _EMPTY: ""},
        capture_output=True,
        timeout=_GIT_SECONDS,
        check=False,
    )
