"""Images in tar shards, as webdataset writes them: an index of where each lies, built once."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from carft_core.user_cache import keep_table, kept_table, user_cache

VERSION = 1
"""Of what an index holds: another is built anew."""
_LABELS = (".cls", ".json")


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """The images of one split, in the order of shards and of images in a shard."""

    shards: tuple[str, ...]
    """Paths below the root, sorted."""
    ids: Sequence[str]
    """`train/0000.tar/n01440764_10026.jpg`: a shard's path and the image's name in it."""
    labels: Sequence[str]
    """As the shards have them: text."""
    places: npt.NDArray[np.int64]
    """[N, 3]: the number of the shard, the offset of the image in it, and its size in bytes."""


def shards_in(folder: Path) -> list[Path]:
    """The visible tar files right in a folder, by name."""
    return sorted(file for file in folder.glob("[!.]*.tar") if file.is_file())


def indexed(root: Path, split: str, suffixes: Sequence[str], problems: list[str]) -> ShardIndex:
    """The index of the shards in `root/split`; images are what ends in one of `suffixes`.

    It is kept in the user's cache, by the names, sizes and times of the shards, unless something
    is wrong with them, which is added to `problems`. Raises OSError for what cannot be read.
    """
    files = shards_in(root / split)
    names = tuple(f"{split}/{file.name}" for file in files)
    known_by = [
        (n, f.stat().st_size, f.stat().st_mtime_ns) for n, f in zip(names, files, strict=True)
    ]
    key = hashlib.sha256(json.dumps([VERSION, suffixes, known_by]).encode()).hexdigest()
    kept = user_cache() / "shards" / f"{key}.parquet"
    table = kept_table(kept)
    if table is None:
        found: list[str] = []
        rows = [
            {"shard": number, **row}
            for number, (name, file) in enumerate(zip(names, files, strict=True))
            for row in _images_of(name, file, suffixes, found)
        ]
        problems += found
        table = pa.Table.from_pylist(rows, _SCHEMA)
        if not found:
            keep_table(kept, table)
    places = np.stack([table[name].to_numpy() for name in ("shard", "offset", "size")], axis=1)
    return ShardIndex(names, table["id"].to_pylist(), table["label"].to_pylist(), places)


_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("label", pa.string()),
        ("shard", pa.int64()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
    ]
)


def _images_of(
    name: str, file: Path, suffixes: Sequence[str], problems: list[str]
) -> Iterator[dict[str, object]]:
    """The images of one shard with their labels: members that share a name up to its first dot."""
    images: dict[str, tarfile.TarInfo] = {}
    labels: dict[str, str] = {}
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                key, suffix = _parts(member.name)
                if not member.isreg():
                    continue
                if suffix in suffixes and key in images:
                    problems.append(f"{name} has two images named {key}")
                elif suffix in suffixes:
                    images[key] = member
                elif suffix in _LABELS and (label := _label(shard, member, suffix)) is not None:
                    labels[key] = label
    except (tarfile.TarError, EOFError) as error:
        problems.append(f"{name} cannot be read as a tar file ({error})")
        return
    lacking = [key for key in images if key not in labels]
    if lacking:
        problems.append(
            f"{name} says no label of {lacking[0]} ({len(lacking)} images): {_EXPECTED}"
        )
    for key, member in images.items():
        if key not in labels:
            continue
        if member.size == 0:
            problems.append(f"{name}: {member.name} is empty")
        row = {"label": labels[key], "offset": member.offset_data, "size": member.size}
        yield {"id": f"{name}/{member.name}", **row}


_EXPECTED = "expected <key>.cls with a label in it, or <key>.json with a field label"


def _parts(member: str) -> tuple[str, str]:
    """`a/b.seg.PNG` as (`a/b`, `.seg.png`). Source: webdataset's `base_plus_ext`."""
    path = PurePosixPath(member)
    stem, dot, suffix = path.name.partition(".")
    return str(path.parent / stem), dot + suffix.lower()


def _label(shard: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> str | None:
    """None for what holds none."""
    file = shard.extractfile(member)
    try:
        text = "" if file is None else file.read().decode().strip()
        told = text if suffix == ".cls" else json.loads(text).get("label")
    except (ValueError, AttributeError):
        return None
    return str(told) if isinstance(told, (str, int)) and str(told) else None
