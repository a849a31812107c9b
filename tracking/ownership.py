"""Who besides this user could have written a file, and which homes are shared on purpose."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from carft_sweep.tracking.errors import TrackingError

SHARED_HOMES_VARIABLE = "CARFT_SHARED_HOMES"
"""Variable with the homes that several accounts use on purpose: whole paths, `:` between them."""
TRUST_OPTION = "--trust-home"
LARGE_FOLDERS = ("runs", "sweeps", "mlartifacts")
"""Folders of a home that may be links, to a larger disk; nothing in them may be a link."""
_GROUP, _EVERYBODY = stat.S_IWGRP, stat.S_IWOTH
_ENTERED = stat.S_IXGRP | stat.S_IXOTH
_PRIVATE, _BY_UMASK = 0o700, 0o777


class OtherWriter(NamedTuple):
    """Account besides this user and root that could have written something."""

    reason: str
    """`belongs to user ada (1000)`, `can be written by group lab`."""
    remedy: str
    """Shell command that takes the right away; empty where only another account could."""


def other_writer(path: Path) -> OtherWriter | None:
    """Return who else could have written a file or a folder's entries; None if only this user and
    root could. A user's private group counts as the user: systems with such groups make files
    writable for them. Links are followed. Raises OSError for a missing file."""
    facts = path.stat()
    if facts.st_uid not in _trusted_users():
        return OtherWriter(f"belongs to {account('user', facts.st_uid)}", "")
    if facts.st_mode & _EVERYBODY:
        return OtherWriter("can be written by everybody", f"chmod go-w {path}")
    if facts.st_mode & _GROUP and not _is_private(facts.st_gid, facts.st_uid):
        group = account("group", facts.st_gid)
        return OtherWriter(f"can be written by {group}", f"chmod g-w {path}")
    return None


def not_writable(path: Path) -> str:
    """Describe why this user may not write a file or its folder: who owns it, and what to do."""
    path = path.parent if os.access(path, os.W_OK) else path
    facts = path.stat()
    owner, mode = account("user", facts.st_uid), stat.S_IMODE(facts.st_mode)
    return (
        f"{path} belongs to {owner} with mode {mode:04o}, and this user may not write it. In a "
        f"home that is shared on purpose ({SHARED_HOMES_VARIABLE}) each owner lets the group write "
        "all of it: `chmod -R g+w` on the home, and `umask 002` for what comes; `carft-sweep "
        "doctor home` counts what is left"
    )


def closed_to_group(home: Path) -> list[Path]:
    """Return what the group may not write in a home that is shared on purpose, of its folders and
    of the files of sweeps, but for Ray's token, which is its owner's. Links are followed."""
    places = (home.glob(pattern) for pattern in ("*", "*/*", "sweeps/*/*"))
    return [
        path
        for path in sorted({place for found in places for place in found if place.exists()})
        if path.name != "ray-token" and not path.stat().st_mode & _GROUP
    ]


def check_home(path: Path) -> None:
    """Raise TrackingError for a home that another account could have written, or that links lead
    out of, unless the home is shared on purpose."""
    doubt = next(_doubts(path), None) if path.exists() else None
    if doubt is None or is_shared(path):
        return
    private = f"If nobody else is to write it: {doubt.remedy}. " if doubt.remedy else ""
    raise TrackingError(
        f"the home {path} {doubt.reason}, and what a home holds decides what commands read, write "
        f"and connect to. {private}If you trust whoever may write it: {TRUST_OPTION} for this "
        f"call; {SHARED_HOMES_VARIABLE}={path.resolve()} for a home that is shared on purpose"
    )


def _doubts(home: Path) -> Iterator[OtherWriter]:
    """Yield each other account that could write the home or a large folder of it, and each link in
    them that leads elsewhere."""
    if (writer := other_writer(home)) is not None:
        yield writer
    is_entered = home.stat().st_mode & _ENTERED
    large = [home / name for name in LARGE_FOLDERS if (home / name).is_dir()]
    for folder in large:
        if (folder.is_symlink() or is_entered) and (writer := other_writer(folder)) is not None:
            yield writer._replace(reason=f"has a folder {folder.name} that {writer.reason}")
    for folder in (home, *large) if home.is_dir() else ():
        with os.scandir(folder) as entries:
            links = [Path(entry) for entry in entries if entry.is_symlink()]
        for link in links:
            if link not in large:
                yield OtherWriter(f"leads elsewhere by the link {link}", "")


def is_shared(home: Path) -> bool:
    """Return whether CARFT_SHARED_HOMES names a home. Raises TrackingError for a relative path in
    this variable, which would name another home in each folder."""
    named = os.environ.get(SHARED_HOMES_VARIABLE, "").split(os.pathsep)
    shared = [Path(text) for text in named if text]
    for place in shared:
        if not place.is_absolute():
            raise TrackingError(
                f"{SHARED_HOMES_VARIABLE}: {place} is no absolute path; name whole paths of homes "
                f"that several accounts use, with {os.pathsep!r} between them"
            )
    return home.resolve() in [place.resolve() for place in shared]


def home_mode(home: Path) -> int:
    """Return the permissions of a new home: its user's alone, or by the umask if shared."""
    return _BY_UMASK if is_shared(home) else _PRIVATE


def make_home(home: Path) -> None:
    """Make a missing home, with the permissions of `home_mode`. Raises OSError."""
    home.parent.mkdir(parents=True, exist_ok=True)
    home.mkdir(mode=home_mode(home), exist_ok=True)


def _trusted_users() -> set[int]:
    """Return the ids of users whose files count as this user's own: root, who can write everything
    anyway, this user, and under sudo the account that called it."""
    own = os.geteuid()
    caller = os.environ.get("SUDO_UID", "")
    return {0, own} | ({int(caller)} if own == 0 and caller.isdecimal() else set())


def _is_private(group: int, user: int) -> bool:
    try:
        account, members = pwd.getpwuid(user), grp.getgrgid(group)
    except KeyError:
        return False
    own = account.pw_gid == group and members.gr_name == account.pw_name
    return own and set(members.gr_mem) <= {account.pw_name}


def account(kind: Literal["user", "group"], number: int) -> str:
    """Return an account as `user ada (1000)`, or `user 1000` where the system has no name."""
    try:
        name = grp.getgrgid(number).gr_name if kind == "group" else pwd.getpwuid(number).pw_name
    except KeyError:
        return f"{kind} {number}"
    return f"{kind} {name} ({number})"
