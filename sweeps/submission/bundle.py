"""The archive that becomes a job's working directory: the same files give the same bytes."""

from __future__ import annotations

import fnmatch
import hashlib
import io
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from carft_core.errors import RequestError
from sweeps.submission.sensitive import why_a_file_stays, why_content_stays
from sweeps.submission.tree import File, Tree
from tracking.where import HOME

MOST = 100 * 10**6
"""Bytes. What the dashboard of Ray 2.60 takes in one request is 100 MiB."""
_LARGEST = 5
_EPOCH = (1980, 1, 1, 0, 0, 0)  # no archive knows an earlier time
_EXECUTABLE, _PLAIN = 0o100755, 0o100644
_PRODUCT = ("carft_core/__init__.py", "sweeps/__main__.py", "tracking/__init__.py")
_IN_THE_WAY = "sweeps/__init__.py"


@dataclass(frozen=True)
class Bundle:
    """What is sent."""

    root: Path
    """Where its files lie here."""
    names: tuple[str, ...]
    """Of its files, relative to the root."""
    size: int
    """Bytes of the files."""
    data: bytes
    """The zip archive."""
    notes: tuple[str, ...]

    @property
    def uri(self) -> str:
        """As Ray names packages: by their content, so that each is uploaded once."""
        return f"gcs://_ray_pkg_{hashlib.sha256(self.data).hexdigest()[:32]}.zip"

    @property
    def has_the_product(self) -> bool:
        """Whether it brings carft-sweep itself: the job then runs with these very sources."""
        return set(_PRODUCT) <= set(self.names)


def pack(
    tree: Tree,
    *,
    homes: Iterable[Path] = (),
    exclude: Sequence[str] = (),
    secrets: Sequence[str] = (),
    most: int = MOST,
) -> Bundle:
    """Pack a tree without what looks like a secret, without homes, and without `exclude`.

    `secrets` are values that no file may hold. Each file that stays is noted with the reason.
    Raises RequestError for more than `most` bytes, and where the files hide carft-sweep.
    """
    chosen: dict[str, File] = {}
    left = []
    for file in tree.files:
        why = _why_left_out(tree.root, file.name, homes, exclude)
        if why is None:
            chosen[file.name] = file
        else:
            left.append(f"not sent: {file.name} ({why})")
    _check_size(list(chosen.values()), most)
    contents: dict[str, bytes] = {}
    for name, file in sorted(chosen.items()):
        content = file.read()
        why = why_content_stays(content, secrets)
        if why is None:
            contents[name] = content
        else:
            left.append(f"not sent: {name} ({why})")
    if _IN_THE_WAY in contents and not set(_PRODUCT) <= contents.keys():
        raise RequestError(
            f"{tree.root / _IN_THE_WAY} makes sweeps/ a Python package, which hides carft-sweep's "
            "own of that name: remove the file or rename the folder"
        )
    archive = _zip(contents, {name for name, file in chosen.items() if file.is_executable})
    size = sum(map(len, contents.values()))
    states = [f"{tree.states[name]}: {name}" for name in contents if name in tree.states]
    return Bundle(tree.root, tuple(contents), size, archive, (*states, *tree.notes, *left))


def shown(size: int) -> str:
    """`12.3 MB`, `4.5 kB`."""
    return f"{size / 1e6:.1f} MB" if size >= 10**6 else f"{size / 1e3:.1f} kB"


def _why_left_out(
    root: Path, name: str, homes: Iterable[Path], exclude: Iterable[str]
) -> str | None:
    if HOME in PurePosixPath(name).parts or any((root / name).is_relative_to(h) for h in homes):
        return "in a home"
    for pattern in exclude:
        below = f"{pattern.rstrip('/')}/*"
        if fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(name, below):
            return f"--exclude {pattern}"
    return why_a_file_stays(name)


def _check_size(files: Sequence[File], most: int) -> None:
    size = sum(file.size for file in files)
    if size <= most:
        return
    raise RequestError(
        "\n".join(
            [
                f"{shown(size)} are too much to send (--max-bundle is {shown(most)}); the largest:",
                *_largest(files),
                "Leave files out with --exclude PATTERN, or let git ignore them. Data and weights "
                "belong on storage that the nodes mount.",
            ]
        )
    )


def _largest(files: Iterable[File]) -> Iterator[str]:
    for file in sorted(files, key=lambda file: -file.size)[:_LARGEST]:
        yield f"  {shown(file.size)}  {file.name}"


def _zip(contents: dict[str, bytes], executable: set[str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = (_EXECUTABLE if name in executable else _PLAIN) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return buffer.getvalue()
