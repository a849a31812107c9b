"""Seeded mutations of files: of bytes, text, values, tensors and tables."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load, save
from torch import Tensor

Way = Callable[[random.Random, bytes], bytes]
"""Returns the bytes of a file changed. Raises one of UNFIT where it finds nothing to change."""
UNFIT = (ValueError, KeyError, IndexError, TypeError, OverflowError, RecursionError)
NUMBERS = (
    *("0", "-1", "1", "0.5", "1e308", "1e999", "-1e999", "NaN", "Infinity", ".nan", ".inf"),
    *("2147483648", "-9223372036854775809", "18446744073709551616", "9" * 400, "9" * 5000),
)
TEXTS = (
    *("", " ", "x", "x" * 100_000, "../../../../etc/passwd", "/dev/zero", "/", ".", "a/b", "~root"),
    *("a\0b", "\ud800", "\x1b]0;title\x07", "\u202etxt", "e\u0301\U0001f600", "\u2028", "\ufeff"),
    *("1e5", "null", "true", "{}", "${HOME}", "=HYPERLINK(1)", "<script>", "2024-99-99", "none"),
)
"""Texts to put for others: paths, control and foreign characters, spellings of other types."""
VALUES: tuple[Any, ...] = (
    *(None, True, [], {}, [None], {"": None}, {"a": {"b": []}}, [1, "a", {}], 0, -3, 1000, 0.3),
)
"""Values of other types, to put in place of any value."""
NESTED = 3000


def canary(path: Path) -> str:
    """Return the shell command that shows, by writing to `path`, that a file's code was run."""
    return f"echo run >> {path}"


class Payload:
    """A pickled object that runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def mutate(path: Path, rng: random.Random, trap: Path) -> str:
    """Change the file at `path` in one way that `rng` draws; return the way's name.

    Reading the changed file creates the file `trap` if it runs code.
    """
    if rng.random() < 0.04:
        return _replace(path, rng)
    data = path.read_bytes()
    # Most of what is drawn keeps the format, else few would get behind the first check.
    way = rng.choice(_ways(path.suffix, trap) if rng.random() < 0.8 else BYTES)
    try:
        changed = way(rng, data)
    except UNFIT:
        way, changed = cut, cut(rng, data)
    path.write_bytes(changed)
    return way.__name__.replace("_", " ")


def _replace(path: Path, rng: random.Random) -> str:
    """Put something that is no regular file in the place of the file; return what."""
    path.unlink()
    kinds = ("folder", "empty", "dangling link", "link to itself", "endless device", "pipe")
    match kind := rng.choice(kinds):
        case "folder":
            path.mkdir()
        case "empty":
            path.touch()
        case "dangling link":
            path.symlink_to("nowhere")
        case "link to itself":
            path.symlink_to(path.name)
        case "endless device":
            path.symlink_to("/dev/zero")
        case _:
            os.mkfifo(path)
    return kind


def _ways(suffix: str, trap: Path) -> tuple[Way, ...]:
    """Return the ways that keep a file's format, by its suffix."""
    match suffix:
        case ".yaml":
            return (*TEXT, tag_of(trap), change_yaml, change_yaml)
        case ".txt":
            return TEXT
        case ".json":
            return (*TEXT, change_json, change_json, change_json)
        case ".jsonl":
            return (*TEXT, change_json_line, change_json_line, change_json_line)
        case ".pt" | ".bin" | ".pth":
            return (objects_of(trap), objects_of(trap), pickle_of(trap))
        case ".safetensors":
            return (change_header, change_tensor)
        case ".parquet":
            return (change_column,)
    return BYTES


# Bytes


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    """Flip up to eight bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[_place(rng, data)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """Cut the end off."""
    return data[: rng.randrange(len(data) + 1)]


def splice(rng: random.Random, data: bytes) -> bytes:
    """Delete, repeat or overwrite a slice, or insert something."""
    begin, size = _place(rng, data), rng.choice((0, 1, 2, 4, 8, 64, 1000))
    removed = data[begin : begin + size]
    written = (
        *(b"", removed * 2, removed * 50, rng.randbytes(rng.choice((1, 100, 5000)))),
        *(bytes([value]) * size for value in (0, 0x20, 0x7F, 0xFF)),  # the last two great numbers
    )
    return data[:begin] + rng.choice(written) + data[begin + size :]


BYTES: tuple[Way, ...] = (flip_bits, cut, splice)


def _place(rng: random.Random, data: bytes) -> int:
    """Draw a place, mostly near the beginning, where headers are."""
    return rng.randrange(min(len(data), 512) if rng.random() < 0.6 else len(data))


# Text


def change_word(rng: random.Random, data: bytes) -> bytes:
    """Write another text or number in the place of a word."""
    match = rng.choice(list(re.finditer(rb"-?\w+(\.\d+)?", data)))
    text = rng.choice((*NUMBERS, *TEXTS)).encode("utf-8", "surrogatepass")
    return data[: match.start()] + text + data[match.end() :]


def change_line(rng: random.Random, data: bytes) -> bytes:
    """Repeat, drop, move or indent a line."""
    lines = data.split(b"\n")
    line = lines.pop(rng.randrange(len(lines)))
    indents = (b" ", b"    ", b"\t", b"- ", b"# ", b"? ", b"\xff\xfe")
    for written in rng.choice(([], [line], [line, line], [rng.choice(indents) + line])):
        lines.insert(rng.randrange(len(lines) + 1), written)
    return b"\n".join(lines)


def nest(rng: random.Random, data: bytes) -> bytes:
    """Open brackets, many or very many, and close them or not."""
    depth, place = rng.choice((40, 5000, 200_000)), rng.randrange(len(data) + 1)
    opening, closing = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"- ", b""), (b"{a: ", b"}")))
    return data[:place] + opening * depth + closing * (depth * rng.randrange(2)) + data[place:]


TEXT: tuple[Way, ...] = (change_word, change_line, nest)


def tag_of(trap: Path) -> Way:
    """Return a way that writes YAML which would make an object, contain itself, or multiply."""

    def tag(rng: random.Random, data: bytes) -> bytes:
        bomb = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
        text = rng.choice(
            (
                f"!!python/object/apply:os.system ['{canary(trap)}']",
                f"!!python/object/new:os.system ['{canary(trap)}']",
                *("!!binary 'x'", "!!set {a}", "!!timestamp 2024-99-99", "!!int x", "&a [*a]"),
                *("*nothing", "{<<: [1]}", "{<<: *a}", "!<x> y", "!!float 1e999"),
            )
        )
        match = rng.choice(list(re.finditer(rb": (?=\S)|\n(?=\w)", data)))
        if rng.random() < 0.2:
            return data + f"\na0: &a0 [x]\n{bomb}".encode()
        return data[: match.end()] + text.encode() + b"\n" + data[match.end() :]

    return tag


# Values of JSON and YAML


def change_json(rng: random.Random, data: bytes) -> bytes:
    """Change one value of a JSON file."""
    return _dumped(rng, change_value(rng, json.loads(data)))


def change_yaml(rng: random.Random, data: bytes) -> bytes:
    """Change one value of a YAML file; JSON is YAML."""
    return _dumped(rng, change_value(rng, yaml.safe_load(data)))


def change_json_line(rng: random.Random, data: bytes) -> bytes:
    """Change one value of one line of a file of JSON lines."""
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = change_json(rng, lines[place])
    return b"\n".join(lines) + b"\n"


def change_header(rng: random.Random, data: bytes) -> bytes:
    """Change one value of the header of a safetensors file, or the length that it says."""
    size = int.from_bytes(data[:8], "little")
    header, rest = change_json(rng, data[8 : 8 + size]), data[8 + size :]
    lengths = (*[len(header)] * 3, 0, size - 1, len(data), 1 << 40, (1 << 64) - 1)
    return rng.choice(lengths).to_bytes(8, "little") + header + rest


def change_value(rng: random.Random, data: Any) -> Any:
    """Replace, drop, rename, add, repeat, wrap or exchange one value of nested data."""
    places = list(_places(data))
    if not places or rng.random() < 0.02:
        return _value(rng)
    holder, key = rng.choice(places)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(key)
        case 2 if isinstance(holder, dict):
            holder[rng.choice((*TEXTS, "name", "values", "metrics", "digest"))] = _value(rng)
        case 1 | 2:
            holder.extend(copy.deepcopy(holder[key]) for _ in range(rng.choice((1, 1000))))
        case 3:
            holder[key] = rng.choice(([holder[key]], {"value": holder[key]}))
        case 4:
            other, name = rng.choice(places)
            holder[key], other[name] = copy.deepcopy((other[name], holder[key]))
        case _:
            holder[key] = _value(rng)
    return data


def _value(rng: random.Random) -> Any:
    """Draw a value of any type; a Spelling where JSON has no such value."""
    spelled = Spelling(rng.choice((*NUMBERS, "[" * NESTED + "]" * NESTED)))
    return rng.choice((spelled, rng.choice(TEXTS), copy.deepcopy(rng.choice(VALUES))))


def _places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Yield (container, key) of every value in nested data."""
    keys = list(data) if isinstance(data, dict) else range(len(data))
    for key in keys if isinstance(data, (dict, list)) else ():
        yield data, key
        yield from _places(data[key])


class Spelling(str):
    """A text that is written into JSON unquoted."""

    __slots__ = ()


def _dumped(rng: random.Random, data: Any) -> bytes:
    """Write JSON with numbers as spelled; lone surrogates are escaped, or are no UTF-8."""
    spellings: list[str] = []

    def marked(value: Any) -> Any:
        if isinstance(value, Spelling):
            spellings.append(value)
            return f"spelling {len(spellings) - 1}"
        if isinstance(value, dict):
            return {str(key): marked(item) for key, item in value.items()}
        return [marked(item) for item in value] if isinstance(value, list) else value

    text = json.dumps(marked(data), ensure_ascii=rng.random() < 0.8, default=str)
    text = re.sub(r'"spelling (\d+)"', lambda match: spellings[int(match[1])], text)
    return text.encode("utf-8", "surrogatepass")


# Tensors


def objects_of(trap: Path) -> Way:
    """Return a way that changes a value of what torch.save wrote; it loads, or would run code."""

    def change_object(rng: random.Random, data: bytes) -> bytes:
        loaded = torch.load(io.BytesIO(data), weights_only=True)
        holder, key = rng.choice(list(_places(loaded)))
        match rng.randrange(5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, dict):
                holder[rng.choice((1, None, "extra", "module.x"))] = holder.pop(key)
            case 2:
                loaded = rng.choice((None, [loaded], {"state_dict": loaded}, {}))
            case 3:
                holder[key] = Payload(canary(trap))
            case _ if isinstance(holder[key], Tensor):
                holder[key] = _other_tensor(rng, holder[key])
            case _:
                holder[key] = rng.choice((*VALUES, "x", 2**70, float("nan"), torch.zeros(3)))
        saved = io.BytesIO()
        torch.save(loaded, saved, _use_new_zipfile_serialization=rng.random() < 0.8)
        return saved.getvalue()

    return change_object


def pickle_of(trap: Path) -> Way:
    """Return a way that writes a bare pickle which runs code, of any protocol."""

    def pickle_code(rng: random.Random, data: bytes) -> bytes:
        del data
        return pickle.dumps(Payload(canary(trap)), protocol=rng.randrange(6))

    return pickle_code


def _other_tensor(rng: random.Random, tensor: Tensor) -> Tensor:
    """Return a tensor with other numbers, or of another shape, type, layout or stride."""
    flat = tensor.float().flatten()
    return rng.choice(
        (
            lambda: torch.full_like(tensor.float(), float("nan")),
            lambda: torch.full_like(tensor.float(), 1e38),
            lambda: torch.zeros(0),
            lambda: torch.zeros(1).expand(10**5, 10**5),  # strides of 0: 40 GB where it is copied
            lambda: flat.to(torch.complex64),
            lambda: tensor.to(torch.int64),
            lambda: flat.to_sparse(),
            lambda: torch.empty(tensor.shape, device="meta"),
            lambda: torch.quantize_per_tensor(flat, 0.1, 0, torch.qint8),
            lambda: tensor.mT if tensor.dim() > 1 else flat[::2],
        )
    )()


def change_tensor(rng: random.Random, data: bytes) -> bytes:
    """Drop, rename, reshape, retype or fill a tensor of a safetensors file."""
    loaded = load(data)
    name = rng.choice([*loaded])
    tensor = loaded.pop(name)
    numbers = (float("nan"), float("inf"), 1e38, 0.0)
    changed: Mapping[str, Tensor] = rng.choice(
        (
            {},
            {f"{name}.x": tensor},
            {name: tensor.flatten()[:-1].clone()},
            {name: tensor.to(rng.choice((torch.int8, torch.bool, torch.float64)))},
            {name: torch.full_like(tensor.float(), rng.choice(numbers))},
        )
    )
    return save({**loaded, **changed})


# Tables


def change_column(rng: random.Random, data: bytes) -> bytes:
    """Drop, rename or replace a column of a parquet file, or drop or repeat rows."""
    table = pq.read_table(io.BytesIO(data))
    place, rows = rng.randrange(table.num_columns), table.num_rows
    name = table.column_names[place]
    filled = (-1, 2**31 - 1, None, float("nan"), rng.choice(TEXTS[:8]), [1], b"\xff")
    column = pa.array([rng.choice(filled)] * rows)
    if rng.random() < 0.5 and pa.types.is_integer(column.type):
        column = column.cast(pa.int32())
    changed = (
        table.drop_columns([name]),
        table.rename_columns([header.replace(name, "x") for header in table.column_names]),
        table.slice(0, rng.choice((0, 1, rows // 2))),
        pa.concat_tables([table, table.slice(0, 1)]),
        *[table.set_column(place, name, column)] * 3,
    )
    written = io.BytesIO()
    pq.write_table(rng.choice(changed), written)
    return written.getvalue()
