"""Atomic writes of files and folders, safe reads, digests, and the user's cache."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from carft_sweep import regular_files
from carft_sweep.carft_core.errors import RequestError, dotted
from carft_sweep.regular_files import RefusedFile

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic.plugin._schema_validator import PluggableSchemaValidator
    from pydantic_core import SchemaValidator


_UNITS = (10**9, "GB"), (10**6, "MB"), (10**3, "kB")
UMASK = os.umask(0)
"""Read once: the system tells it only by setting it, which another thread could see."""
os.umask(UMASK)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path` to fill; at the end of the block it is made durable and
    renamed to `path`. A crash at any instant leaves the old file or the new one, never a part; so
    does an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:  # it names the temporary file
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    try:
        yield Path(name)
        with open(name, "rb") as written:  # noqa: PTH123 - the descriptor is what fsync wants
            os.fsync(written.fileno())
        Path(name).chmod(0o666 & ~UMASK)  # mkstemp's files are private; a shared home's are not
        os.replace(name, path)  # noqa: PTH105 - the name is a str here
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno and error.filename in (None, name):
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it as `atomic_file` does."""
    with atomic_file(path) as file:
        write(file)


def write_folder(path: Path, fill: Callable[[Path], object]) -> None:
    """Let `fill` write into an empty folder beside `path`, then rename it to `path`. An earlier
    folder at `path` is removed. A failure leaves it unchanged; a crash leaves the old folder or the
    new one, and in between the old one under a name that begins with a dot."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        new = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:  # it names the temporary folder
        raise OSError(error.errno, error.strerror, str(path)) from None
    old = new.with_name(f"{new.name}.old")
    try:
        fill(new)
        new.chmod(0o777 & ~UMASK)
        if path.exists():
            path.rename(old)
        new.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(new, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))


def write_json(path: Path, data: object) -> None:
    """Write standard JSON (no NaN), atomically."""
    write_text(path, json.dumps(data, indent=1, allow_nan=False))


def append_lines(path: Path, lines: Iterable[str], *, durable: bool = True) -> None:
    """Add lines to the end of a file, all or none; `durable` waits for the disk. An incomplete last
    line, left by a crash, is cut off first. One process writes at a time. Raises OSError and leaves
    the file as before."""
    data = "".join(f"{line}\n" for line in lines).encode()
    try:
        descriptor = regular_files.open_regular(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        with FileIO(descriptor, "r+") as file:
            end = _end_of_lines(file)
            try:
                if file.write(data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if durable:
                    os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def _end_of_lines(file: FileIO) -> int:
    """Cut off an incomplete last line of a file; return the file's size after that."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - 1))
    if file.read(1) in (b"", b"\n"):
        return size
    file.seek(0)
    end = file.readall().rfind(b"\n") + 1
    file.truncate(end)
    return end


@contextlib.contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Yield a regular file, opened for reading. Raises FileNotFoundError for a missing file,
    RequestError for a link, a folder, a device, or a pipe: a link may lead out of a home, a pipe
    may never end."""
    with _requested():
        descriptor = regular_files.open_regular(path)
    with os.fdopen(descriptor, "rb") as file:
        yield file


@contextlib.contextmanager
def _requested() -> Iterator[None]:
    """Turn a RefusedFile within the context (a file that may not be read) into a RequestError."""
    try:
        yield
    except RefusedFile as error:
        raise RequestError(f"{error.filename} {error.strerror}") from None


def check_regular(path: Path, *, follow: bool = False) -> None:
    """Raise RequestError for an existing path that is no regular file, since a pipe would be waited
    for. Without `follow` links are refused too, as by `read_json`."""
    if path.is_symlink() and not follow:
        raise RequestError(f"{path} is a link, which is not followed")
    if path.exists() and not path.is_file():
        raise RequestError(f"{path} is not a regular file")


def check_archive(path: Path, *, sums: bool = False) -> None:
    """Raise RequestError for a zip archive with compressed or encrypted entries: PyTorch writes
    none, and they may unpack to a thousand times the size. TorchScript's `/code/` entries and files
    that are no archive pass. With `sums` each entry's checksum is checked too, which PyTorch
    ignores; that reads the whole file."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        packed = [
            entry.filename
            for entry in archive.infolist()
            if entry.compress_type or entry.flag_bits & 1
        ]
        names = [name for name in packed if "/code/" not in name]  # TorchScript's, refused as such
        if names:
            raise RequestError(f"{path} is compressed ({names[0]}), which PyTorch's files are not")
        wrong = archive.testzip() if sums else None
    if wrong is not None:
        raise RequestError(f"{path}: {wrong} in it is not what was written")


def read_lines(path: Path) -> list[bytes]:
    """Return the complete lines of a file; none for a missing file. Raises RequestError as
    `open_regular` does, and for a file that is too large."""
    try:
        with _requested():
            return regular_files.read_regular(path).split(b"\n")[:-1]
    except FileNotFoundError:
        return []


def read_regular(path: Path, most: int) -> bytes:
    """Return the bytes of a file that the user names, or of a link's target, at most `most`. Raises
    RequestError for a larger file, and for a pipe or a device, which might never end; OSError for
    an unreadable path, such as a folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    with _requested():
        return regular_files.read_regular(path, most, follow=True)


def read_json(path: Path | str, shape: object = None, *, follow: bool = False) -> Any:
    """Return the JSON at `path` as plain data; None for a missing file.

    `shape` is the type that the data must have: a dataclass for a mapping, or `list[...]` of one.
    Raises RequestError that names the file where it is no JSON, has another shape, or is no regular
    file; without `follow` for a link too, since a home has no links to files.
    """
    try:
        with _requested():
            content = regular_files.read_regular(path, follow=follow)
    except FileNotFoundError:
        return None
    return parse_json(content, path, shape)


def parse_json(content: bytes, source: object, shape: object = None) -> Any:
    """Return JSON as plain data of the type `shape` (see `read_json`); `source` is named in
    messages. Raises RequestError."""
    if shape is None:
        return _plain(content, source)
    try:
        # A third of the time of `json`: a large home has tens of thousands of files.
        data = _validator(Any).validate_json(content)
    except ValueError:  # `json` says why, or reads what this does not: half a surrogate pair
        data = _plain(content, source)
    checked_json(content, source, shape)
    return data


def checked_json(content: bytes, source: object, shape: object) -> Any:
    """Return JSON as an instance of the type `shape`, such as a dataclass; else as `parse_json`."""
    try:
        return _validator(shape).validate_json(content, strict=True)
    except ValueError as error:
        first = cast("ValidationError", error).errors(include_url=False)[0]
        place = f" {dotted(first['loc'])}:" if first["loc"] else ""
        raise RequestError(f"{source} is damaged:{place} {first['msg']}") from None


def _plain(content: bytes, source: object) -> Any:
    try:
        return json.loads(content)
    except ValueError as error:  # no JSON, or no UTF-8
        raise RequestError(f"{source} is not JSON: {error}") from None
    except RecursionError:
        raise RequestError(f"{source} is not JSON that is read: nested too deeply") from None


@functools.cache
def _validator(shape: Any) -> SchemaValidator | PluggableSchemaValidator:
    # On the first call alone: it takes a tenth of a second, which `--help` saves.
    from pydantic import TypeAdapter

    return TypeAdapter(shape).validator


def path_or_none(text: str) -> Path | None:
    """Return the existing path that `text` names, `~` expanded; None where nothing is there."""
    if not text:
        return None
    try:
        path = Path(text).expanduser()
        path.stat()
    except (OSError, ValueError, RuntimeError):
        # Nothing there, a name too long, a null byte, a user that is none.
        return None
    return path


def format_size(count: int) -> str:
    """Return a number of bytes as `4.5 kB`, `12.3 MB` or `1.2 GB`."""
    unit, name = next(((unit, name) for unit, name in _UNITS if count >= unit), _UNITS[-1])
    return f"{count / unit:.1f} {name}"


def user_cache() -> Path:
    """Return `CARFT_CACHE`, else `carft-sweep` in `XDG_CACHE_HOME`, else in `~/.cache`.

    The folder may be missing, and may be deleted at any time. Source: XDG Base Directory
    Specification, by which a relative path counts as none.
    """
    own = os.environ.get("CARFT_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "carft-sweep"


def write_cache(file: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file of the cache; a failure is ignored, as it costs only time."""
    with contextlib.suppress(OSError):
        write_atomically(file, write)


def digest_of(data: object) -> str:
    """Return the sha256 of plain data, independent of the order of keys."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
