"""The place where a home's runs are recorded: its address, file system, locks and id."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import uuid
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from carft_sweep.regular_files import RefusedFile, open_regular, read_regular
from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.ownership import make_home, not_writable

OBJECT_STORES = frozenset({"fuse.s3fs", "fuse.gcsfuse", "fuse.goofys", "fuse.rclone"})
"""Mounted object stores: no locks, no hard links, and an append writes the whole file anew."""
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
    """Return the type of the network file system that holds `path`, which need not exist yet. None
    on a local disk, and where the system does not list its mounts."""
    try:
        lines = MOUNTS.read_text(errors="replace").splitlines()
    except OSError:
        return None
    place = existing_folder(path).resolve()
    best: tuple[int, str | None] = (-1, None)
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        mounted = Path(fields[1].replace("\\040", " "))
        if place.is_relative_to(mounted) and len(mounted.parts) >= best[0]:
            best = (len(mounted.parts), fields[2])
    return best[1] if best[1] in NETWORK else None


def existing_folder(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that exists."""
    whole = path.absolute()
    return next(place for place in (whole, *whole.parents) if place.exists())


def is_plain_name(name: str) -> bool:
    """Return whether a name from a file or a server, joined to a folder, stays below that folder:
    no such name may decide where else this machine reads and writes."""
    return re.fullmatch(r"[^./\0][^/\0]*", name) is not None


# POSIX record locks do not conflict within one process: what this one holds is remembered.
_HELD: set[Path] = set()


class LockHeld(RuntimeError):
    """Refusal of a lock that a process holds already: `pid`, None where that is unknown."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(f"{path} is held by process {pid if pid is not None else '(unknown)'}")
        self.pid = pid


class Lock:
    """Exclusive lock on a file from construction to `release`. Raises LockHeld at once where any
    process holds it, this one included; TrackingError where the file system has no locks, or the
    path is a link or no regular file."""

    def __init__(self, path: Path) -> None:
        self._path = path.parent.resolve() / path.name
        if self._path in _HELD:
            raise LockHeld(path, os.getpid())
        self._file = _open_lock(path)
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 32).decode(errors="replace").strip()
            os.close(self._file)
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise LockHeld(path, int(holder) if holder.isdigit() else None) from None
            # NFS without lockd says ENOLCK, Lustre mounted without `flock` ENOSYS.
            raise TrackingError(
                f"{path} cannot be locked ({error.strerror}): its file system does not support "
                "locks; name a home on another one with --home or CARFT_HOME"
            ) from error
        os.ftruncate(self._file, 0)
        os.write(self._file, str(os.getpid()).encode())
        _HELD.add(self._path)

    def release(self) -> None:
        """Release the lock. The file stays, else two processes could lock different files."""
        if self._path in _HELD:
            _HELD.discard(self._path)
            os.close(self._file)


def _open_lock(path: Path) -> int:
    """Open a lock's file and return its descriptor. Raises TrackingError for a link, for what is no
    regular file, and for a file that this user may not write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return open_regular(path, os.O_RDWR | os.O_CREAT)
    except RefusedFile as error:
        raise TrackingError(f"{path} {error.strerror}: remove it, a lock is made anew") from None
    except PermissionError:
        if not path.exists():
            raise
        raise TrackingError(not_writable(path)) from None


@contextmanager
def waiting(path: Path) -> Iterator[None]:
    """Wait for the lock at `path`, and hold it within the context. POSIX locks end with their
    process even if it has forked; locks of flock(2) live on in its children."""
    file = _open_lock(path)
    try:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def sqlite_file(uri: str) -> Path | None:
    """Return the file of an SQLite URI; None for any other URI or a database in memory."""
    file = uri.removeprefix("sqlite:///").partition("?")[0]
    return Path(file) if uri.startswith("sqlite:///") and file not in ("", ":memory:") else None


EXPERIMENT = "carft-sweep"
HOME, HOME_VARIABLE = ".carft", "CARFT_HOME"
UI_HOST, UI_PORT = "127.0.0.1", 5000
"""Address at which `carft-sweep ui` serves a home, unless another one is requested."""
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
PORTS = {"http": 80, "https": 443}
_SECRET_OPTION = re.compile(
    r"(?<=[?&#;])(?:"
    r"(?:[\w-]{0,40}(?:password|passwd|token|secret|key|signature|credential)|sig|pwd)=[^&\s#]+"
    r"|(?:user|passfile)=[^&#]*)&?",
    re.IGNORECASE,
)
"""Credentials among the options of an address."""


@dataclass(frozen=True)
class TrackingLocation:
    """Place where the runs of a home are recorded."""

    named: str
    """Tracking URI: `sqlite:///...`, another database, or `http(s)://...`."""
    experiment: str
    artifacts: Path | None
    """Folder of artifacts; None where the server decides."""
    key: str
    """Short name of the place, under which is noted what was already sent to it."""

    @property
    def uri(self) -> str:
        """The database or server as a URI to be opened. Raises as `check` does."""
        self.check()
        return self.named

    def check(self) -> None:
        """Raise TrackingError where the URI is an SQLite file on a network file system."""
        file = sqlite_file(self.named)
        kind = None if file is None else network_file_system(file)
        if kind is not None:
            raise TrackingError(
                f"MLflow's database {file} would lie on a network file system ({kind}), where "
                "SQLite loses data; name a server in MLFLOW_TRACKING_URI, or a home on a local "
                "disk with --home or CARFT_HOME"
            )


def home_folder(option: str | Path | None) -> Path:
    """Return the home: `option` (--home), else CARFT_HOME, else `.carft` in the current folder."""
    return Path(option or os.environ.get(HOME_VARIABLE) or HOME).expanduser()


def resolve_location(home: Path, *, experiment: str = "") -> TrackingLocation:
    """Return where a home's runs are recorded: its own database, unless MLFLOW_TRACKING_URI names
    another place. `experiment` is that of a sweep file, which MLFLOW_EXPERIMENT_NAME overrides."""
    home = home.resolve()
    uri = os.environ.get(TRACKING_VARIABLE, "").strip()
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", "").strip() or experiment or EXPERIMENT
    key = "home"
    if uri or experiment != EXPERIMENT:
        place = f"{without_password(uri)}\n{experiment}".encode()
        key = hashlib.sha256(place).hexdigest()[:8]
    return TrackingLocation(
        named=uri or f"sqlite:///{home / 'mlflow.db'}",
        experiment=experiment,
        artifacts=None if is_server(uri) else home / "mlartifacts",
        key=key,
    )


def is_server(uri: str) -> bool:
    """Return whether a URI is that of a server, which keeps artifacts itself."""
    return uri.partition(":")[0].lower() in ("http", "https", "databricks", "databricks-uc")


def is_named(uri: str) -> bool:
    """Return whether MLFLOW_TRACKING_URI names the same database or server as `uri`."""
    named = os.environ.get(TRACKING_VARIABLE, "").strip()
    if is_server(uri) and is_server(named):
        return _origin(uri) == _origin(named)
    return uri == named


def _origin(uri: str) -> tuple[str, str]:
    scheme, _, rest = uri.lower().partition("://")
    host = re.split("[/?#]", rest)[0].rpartition("@")[2]
    return scheme, host.removesuffix(f":{PORTS.get(scheme)}")


def source_of(uri: str) -> str:
    """Return the variable or option that set a tracking URI, for messages about errors."""
    return TRACKING_VARIABLE if is_named(uri) else "--tracking-uri"


def pages_address(place: TrackingLocation) -> str | None:
    """Return the address of MLflow's web pages for `place`: the server's own, or that of
    `carft-sweep ui` without options. None where no address is known, as for Databricks."""
    if not is_server(place.named):
        return f"http://{UI_HOST}:{UI_PORT}"
    address = without_password(place.named).rstrip("/")
    return address if address.startswith(("http://", "https://")) else None


def without_password(uri: str) -> str:
    """Return a URI without user and password, also without those among its options."""
    scheme, mark, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    if is_server(uri) and ("@" in authority or ":" not in authority):
        rest = f"{authority.rpartition('@')[2]}{slash}{path}"
    elif mark and authority:
        # A password may have / or ? in it, as SQLAlchemy takes it: what ends it is the last @.
        rest = rest.rpartition("@")[2]
    shown = _SECRET_OPTION.sub("", f"{scheme}{mark}{rest}")
    return shown.rstrip("?&") if _SECRET_OPTION.search(uri) else shown


_ID = re.compile("[0-9a-f]{32}")
_LONGEST_LINE = 10_000


def home_id(home: Path) -> str:
    """Return a home's id, made on the first call; the first of several processes wins. Raises
    TrackingError for an invalid id, OSError with the file where it cannot be written. On a server
    that several homes share the id distinguishes sweeps of the same name."""
    existing = read_home_id(home)
    if existing is not None:
        return existing
    make_home(home)
    file, text = home / "id", uuid.uuid4().hex
    mine = home / f".id.{text}"
    try:
        mine.write_text(f"{text}\n")
        _link(mine, file)
    except OSError as error:  # of a full disk, which names no file
        raise OSError(error.errno, error.strerror, str(file)) from None
    finally:
        mine.unlink(missing_ok=True)
    return read_home_id(home) or text


def read_home_id(home: Path) -> str | None:
    """Return a home's id, if it has one. Raises TrackingError for an invalid one."""
    file = home / "id"
    try:
        text = read_regular(file, _LONGEST_LINE).decode(errors="replace").strip()
    except FileNotFoundError:
        return None
    except RefusedFile as error:
        raise TrackingError(f"{file} {error.strerror}") from None
    if not _ID.fullmatch(text):
        raise TrackingError(
            f"{file} is no id of a home, 32 hexadecimal digits: remove it, and one is made anew"
        )
    return text


def _link(mine: Path, file: Path) -> None:
    """Give `mine` the name `file` too, unless another process was first."""
    try:
        os.link(mine, file)
    except FileExistsError:
        pass
    except OSError:  # a mount without hard links, such as CIFS
        with waiting(file.with_name(f"{file.name}.lock")):
            if not file.exists():
                mine.replace(file)


QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",  # MLflow reads exactly this word
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}


def stay_private(environ: MutableMapping[str, str] | None = None) -> None:
    """Switch off libraries' usage reports in this process and its children, unless the user chose.
    Call this before mlflow, ray or huggingface_hub are imported: they read the setting once."""
    target = os.environ if environ is None else environ
    for name, value in QUIET.items():
        target.setdefault(name, value)
