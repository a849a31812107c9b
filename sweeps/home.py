"""The home: the one folder that holds all state of sweeps, and where each thing lies in it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DEFAULT = ".carft"
VARIABLE = "CARFT_HOME"
NETWORK_FILE_SYSTEMS = frozenset(
    {
        *("nfs", "nfs3", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "lustre", "gpfs"),
        *("beegfs", "glusterfs", "fuse.glusterfs", "fuse.sshfs", "fuse.s3fs", "fuse.gcsfuse"),
    }
)
"""File systems on which SQLite's locks cannot be relied upon."""
MOUNTS = Path("/proc/mounts")


@dataclass(frozen=True)
class Home:
    """Paths below the home; nothing is created before it is needed."""

    path: Path

    @property
    def optuna(self) -> Path:
        """Optuna's database: the trials of every sweep."""
        return self.path / "optuna.db"

    @property
    def runs(self) -> Path:
        """One folder for each run, named by its training digest."""
        return self.path / "runs"

    @property
    def cache(self) -> Path:
        """What can be computed again."""
        return self.path / "cache"

    @property
    def sweeps(self) -> Path:
        """One folder for each sweep, named by it."""
        return self.path / "sweeps"

    def sweep(self, name: str) -> Path:
        """The folder of one sweep: its file as run, its summary, its lock."""
        return self.sweeps / name

    def prepare(self) -> None:
        """Create the folder, with a `.gitignore` that keeps it out of repositories.

        Raises RequestError when it cannot be written or lies on a network file system.
        """
        from carft_core.errors import RequestError

        kind = file_system(self.path.absolute())
        if kind in NETWORK_FILE_SYSTEMS:
            raise RequestError(
                f"the home {self.path} lies on a network file system ({kind}), where SQLite loses "
                f"data; name a folder on a local disk with --home or {VARIABLE}"
            )
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            ignore = self.path / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except OSError as error:
            raise RequestError(
                f"the home {self.path} cannot be written: {error.strerror}; name another folder "
                f"with --home or {VARIABLE}"
            ) from None


def find_home(option: str | None, environ: Mapping[str, str] | None = None) -> Home:
    """The home that `--home` names, else CARFT_HOME, else `.carft` in the current folder."""
    chosen = os.environ if environ is None else environ
    return Home(Path(option or chosen.get(VARIABLE) or DEFAULT).expanduser())


def file_system(path: Path, mounts: Path = MOUNTS) -> str | None:
    """The type of the file system that holds `path` (which need not exist yet).

    None where the system does not tell.
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return None
    place = _existing(path).resolve()
    best: tuple[int, str | None] = (-1, None)
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        mounted = Path(fields[1].replace("\\040", " "))
        if place.is_relative_to(mounted) and len(mounted.parts) >= best[0]:
            best = (len(mounted.parts), fields[2])
    return best[1]


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())
