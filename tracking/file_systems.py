"""What kind of file system a path lies on, since SQLite cannot be relied upon on every kind."""

from __future__ import annotations

from pathlib import Path

OBJECT_STORES = frozenset({"fuse.s3fs", "fuse.gcsfuse", "fuse.goofys", "fuse.rclone"})
"""Not file systems at all: no locks, no hard links, and who appends writes the whole file anew."""
NETWORK = OBJECT_STORES | frozenset(
    {
        *("nfs", "nfs3", "nfs4", "cifs", "smb3", "smbfs", "afs", "9p", "ceph", "lustre", "gpfs"),
        *("beegfs", "glusterfs", "fuse.glusterfs", "fuse.sshfs", "fuse.ceph-fuse", "fuse.juicefs"),
        *("panfs", "wekafs", "orangefs"),
    }
)
"""File systems on which SQLite's locks cannot be relied upon."""
MOUNTS = Path("/proc/mounts")


def network_file_system(path: Path) -> str | None:
    """The type of the network file system that holds `path` (which need not exist yet).

    None on a local disk, and where the system does not tell.
    """
    kind = file_system(path)
    return kind if kind in NETWORK else None


def file_system(path: Path, mounts: Path | None = None) -> str | None:
    """The type of the file system that holds `path` (which need not exist yet).

    `mounts` is the system's list when left out. None where the system does not tell.
    """
    try:
        lines = (mounts or MOUNTS).read_text(errors="replace").splitlines()
    except OSError:
        return None
    place = _existing(path.absolute()).resolve()
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
