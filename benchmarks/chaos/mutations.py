"""Seeded mutations of files: of bytes, text, values, zip archives, pickles, tables."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import re
import struct
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from safetensors.torch import load, save
from torch import Tensor

Bytes = Callable[[random.Random, bytes], bytes]
NUMBERS = (
    *("0", "-1", "1", "0.5", "-0.0", "1e308", "1e999", "-1e999", "NaN", "Infinity", ".nan", ".inf"),
    *(
        "2147483648",
        "-9223372036854775809",
        "18446744073709551616",
        "9" * 400,
        "9" * 5000,
        "1e-400",
    ),
)
TEXTS = (
    *("", " ", "x", "x" * 100_000, "../../../../etc/passwd", "/dev/zero", "/", ".", "a/b", "~root"),
    *("a\0b", "\ud800", "\x1b]0;title\x07", "\u202etxt", "e\u0301\U0001f600", "\u2028", "\ufeff"),
    *("1e5", "null", "true", "{}", "${HOME}", "=HYPERLINK(1)", "<script>", "2024-99-99", "none"),
)
"""What takes the place of a text: paths, control and foreign characters, other types' spellings."""


def canary(path: Path) -> str:
    """Write the command of the shell that shows that a file's code was run."""
    return f"echo run >> {path}"


class Payload:
    """A pickled object that runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def mutate(path: Path, rng: random.Random, trap: Path) -> str:
    """Change the file at `path` in one way that `rng` draws, and name the way.

    `trap` is the file that exists afterwards where reading ran code.
    """
    data = path.read_bytes()
    if rng.random() < 0.04:
        return _replace(path, rng)
    ways = _ways(path, data, trap)
    # Most of what is drawn keeps the format, else few would get behind the first check.
    kind = rng.choice(["bytes", *(2 * [kind for kind in ways if kind != "bytes"])])
    name, way = rng.choice(ways[kind])
    try:
        changed = way(rng, data)
    except (
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        OverflowError,
        struct.error,
        RecursionError,
    ):
        name, changed = "cut", cut(rng, data)  # a draw that this file has no place for
    path.write_bytes(changed)
    return name


def _replace(path: Path, rng: random.Random) -> str:
    """Put something that is no regular file in the place of one."""
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


def _ways(path: Path, data: bytes, trap: Path) -> dict[str, list[tuple[str, Bytes]]]:
    ways: dict[str, list[tuple[str, Bytes]]] = {"bytes": _named(BYTES)}
    match path.suffix:
        case ".yaml":
            ways |= {"text": [*_named(TEXT), ("tag", _tag(trap))], "values": _named((yaml_value,))}
        case ".txt":
            ways |= {"text": _named(TEXT)}
        case ".json":
            ways |= {"text": _named(TEXT), "values": _named((json_value,))}
        case ".jsonl":
            ways |= {"text": _named(TEXT), "values": _named((line_value,))}
        case ".pt" | ".bin" | ".pth":
            pickles = [("code", _code(trap)), ("bare code", _bare_code(trap))]
            ways |= {"values": _named(OBJECTS), "pickles": pickles}
            if data[:2] == b"PK":
                ways |= {"zip": [*_named(ENTRIES), ("code in the archive", _code_in_zip(trap))]}
        case ".safetensors":
            ways |= {"header": _named((header_value, header_length)), "values": _named((tensors,))}
        case ".parquet":
            ways |= {"table": _named((column,))}
    return ways


def _named(ways: Sequence[Bytes]) -> list[tuple[str, Bytes]]:
    return [(way.__name__.replace("_", " "), way) for way in ways]


# Bytes


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    """Flip up to eight bits, mostly near the beginning, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        near = rng.random() < 0.5
        place = rng.randrange(min(len(data), 512) if near else len(data))
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """Cut the end off."""
    return data[: rng.randrange(len(data) + 1)]


def insert(rng: random.Random, data: bytes) -> bytes:
    """Insert random bytes."""
    place = rng.randrange(len(data) + 1)
    return data[:place] + rng.randbytes(rng.choice((1, 4, 100, 5000))) + data[place:]


def delete(rng: random.Random, data: bytes) -> bytes:
    """Delete a slice."""
    begin, end = _slice(rng, data)
    return data[:begin] + data[end:]


def repeat(rng: random.Random, data: bytes) -> bytes:
    """Repeat a slice."""
    begin, end = _slice(rng, data)
    return data[:end] + data[begin:end] * rng.choice((1, 2, 50)) + data[end:]


def exchange(rng: random.Random, data: bytes) -> bytes:
    """Exchange two slices."""
    one, two = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    length = rng.randint(1, 64)
    return data[:one] + data[two : two + length] + data[one:two] + data[two + length :]


def fill(rng: random.Random, data: bytes) -> bytes:
    """Overwrite a slice with equal bytes."""
    begin, end = _slice(rng, data)
    return data[:begin] + bytes([rng.choice((0, 0x20, 0x7F, 0xFF))]) * (end - begin) + data[end:]


def great_number(rng: random.Random, data: bytes) -> bytes:
    """Overwrite a few bytes near the beginning with an extreme integer."""
    number = rng.choice((2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1))
    size = rng.choice([size for size in (2, 4, 8) if number < 1 << (8 * size)])
    place = rng.randrange(min(len(data), 256))
    packed = number.to_bytes(size, rng.choice(("little", "big")))
    return data[:place] + packed + data[place + size :]


BYTES = (flip_bits, cut, insert, delete, repeat, exchange, fill, great_number)


def _slice(rng: random.Random, data: bytes) -> tuple[int, int]:
    begin = rng.randrange(len(data))
    return begin, begin + rng.choice((1, 2, 8, 64, 1000))


# Text


def swap_tokens(rng: random.Random, data: bytes) -> bytes:
    """Swap two words or signs."""
    tokens = re.findall(r"\w+|\s+|[^\w\s]", data.decode())
    places = [place for place, token in enumerate(tokens) if not token.isspace()]
    one, two = rng.sample(places, 2)
    tokens[one], tokens[two] = tokens[two], tokens[one]
    return "".join(tokens).encode()


def change_number(rng: random.Random, data: bytes) -> bytes:
    """Write another number in the place of one."""
    match = rng.choice(list(re.finditer(rb"-?\d+(\.\d+)?", data)))
    return data[: match.start()] + rng.choice(NUMBERS).encode() + data[match.end() :]


def change_word(rng: random.Random, data: bytes) -> bytes:
    """Write another text in the place of a word."""
    match = rng.choice(list(re.finditer(rb"\w+", data)))
    text = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    return data[: match.start()] + text + data[match.end() :]


def change_lines(rng: random.Random, data: bytes) -> bytes:
    """Repeat, drop, move or indent a line."""
    lines = data.split(b"\n")
    place = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            lines.insert(place, lines[place])
        case 1:
            del lines[place]
        case 2:
            lines.insert(rng.randrange(len(lines)), lines.pop(place))
        case _:
            lines[place] = rng.choice((b" ", b"    ", b"\t", b"- ", b"# ", b"? ")) + lines[place]
    return b"\n".join(lines)


def nest(rng: random.Random, data: bytes) -> bytes:
    """Open brackets, many or very many, and close them or not."""
    depth, place = rng.choice((40, 5000, 200_000)), rng.randrange(len(data) + 1)
    opened, closed = rng.choice(((b"[", b"]"), (b'{"a":', b"}"), (b"- ", b""), (b"{a: ", b"}")))
    return data[:place] + opened * depth + closed * (depth * rng.randrange(2)) + data[place:]


def foreign_characters(rng: random.Random, data: bytes) -> bytes:
    """Insert characters that are rare, or no UTF-8."""
    place = rng.randrange(len(data) + 1)
    texts = [text.encode("utf-8", "surrogatepass") for text in TEXTS[10:17]]
    return data[:place] + rng.choice([*texts, b"\xff\xfe", b"\xc3", b"\x85"]) + data[place:]


TEXT = (swap_tokens, change_number, change_word, change_lines, nest, foreign_characters)


def _tag(trap: Path) -> Bytes:
    """YAML that would make an object, anchors inside themselves, aliases that multiply."""

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


class Unquoted(float):
    """What is written into JSON as it is spelled here; a float, so that values may be compared."""

    def __new__(cls, text: str) -> Unquoted:
        unquoted = super().__new__(cls, 0.0)
        unquoted.text = text
        return unquoted

    text: str


def value(rng: random.Random) -> Any:
    """Draw a value of any type."""
    return rng.choice(
        (
            *(None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": []}}, [1, "a", {}]),
            Unquoted(rng.choice(NUMBERS[:8])),
            Unquoted(rng.choice(NUMBERS)),
            rng.choice(TEXTS),
            rng.choice(TEXTS),
            rng.randint(-3, 1000),
            rng.uniform(-2, 2),
            _deep(rng.choice((20, 900, 3000))),
        )
    )


def _deep(depth: int) -> Unquoted:
    return Unquoted("[" * depth + "]" * depth)


def change_value(rng: random.Random, data: Any) -> Any:
    """Replace, drop, add, rename, repeat or exchange one value of nested data."""
    holders = list(_holders(data))
    if not holders or rng.random() < 0.02:
        return value(rng)
    holder, key = rng.choice(holders)
    match rng.randrange(8):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice(TEXTS)] = holder.pop(key)
        case 1:
            holder.insert(key, copy.deepcopy(holder[key]))
        case 2 if isinstance(holder, dict):
            holder[rng.choice((*TEXTS, "name", "values", "metrics", "digest"))] = value(rng)
        case 2:
            holder.extend(copy.deepcopy(holder[key]) for _ in range(rng.choice((1, 1000))))
        case 3:
            holder[key] = [holder[key]] if rng.random() < 0.5 else {"value": holder[key]}
        case 4:
            other, name = rng.choice(holders)
            holder[key], other[name] = copy.deepcopy((other[name], holder[key]))
        case _:
            holder[key] = value(rng)
    return data


def _holders(data: Any) -> list[tuple[Any, Any]]:
    """List every place of nested data that holds a value."""
    places: list[tuple[Any, Any]] = []
    for key in (
        data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    ):
        places += [(data, key), *_holders(data[key])]
    return places


def _dumped(rng: random.Random, data: Any) -> bytes:
    """Write JSON with numbers as spelled; lone surrogates are escaped, or are no UTF-8."""
    text = json.JSONEncoder(ensure_ascii=rng.random() < 0.8)
    written = "".join(_pieces(text, data))
    return written.encode("utf-8", "surrogatepass")


def _pieces(encoder: json.JSONEncoder, data: Any) -> list[str]:
    if isinstance(data, Unquoted):
        return [data.text]
    if isinstance(data, dict):
        pairs = [
            f"{encoder.encode(str(key))}: {''.join(_pieces(encoder, item))}"
            for key, item in data.items()
        ]
        return ["{", ", ".join(pairs), "}"]
    if isinstance(data, (list, tuple)):
        return ["[", ", ".join("".join(_pieces(encoder, item)) for item in data), "]"]
    return [encoder.encode(data)]


def json_value(rng: random.Random, data: bytes) -> bytes:
    """Change one value of a JSON file, or two."""
    loaded = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2))):
        loaded = change_value(rng, loaded)
    return _dumped(rng, loaded)


def yaml_value(rng: random.Random, data: bytes) -> bytes:
    """Change one value of a YAML file, or two; JSON is YAML."""
    loaded = yaml.safe_load(data)
    for _ in range(rng.choice((1, 1, 1, 2))):
        loaded = change_value(rng, loaded)
    return _dumped(rng, loaded)


def line_value(rng: random.Random, data: bytes) -> bytes:
    """Change one value of one line of a file of JSON lines."""
    lines = data.splitlines()
    place = rng.randrange(len(lines))
    lines[place] = _dumped(rng, change_value(rng, json.loads(lines[place])))
    return b"\n".join(lines) + b"\n"


# Pickles and the archives of PyTorch


def objects(rng: random.Random, data: bytes) -> bytes:
    """Change one value of what torch.save wrote, which then still loads."""
    loaded = torch.load(io.BytesIO(data), weights_only=True)
    places = list(_holders_of_objects(loaded))
    holder, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[rng.choice((1, None, "extra", "module.x", "state_dict"))] = holder.pop(key)
        case 2:
            holder[key] = rng.choice((None, "x", [], {}, 2**70, float("nan"), torch.zeros(3)))
        case 3 if isinstance(holder[key], Tensor):
            holder[key] = _other_tensor(rng, holder[key])
        case 4:
            loaded = rng.choice((None, [loaded], {"state_dict": loaded}, {"model": loaded}, {}))
        case _ if isinstance(holder[key], Tensor):
            holder[key] = torch.full_like(holder[key].float(), rng.choice((float("nan"), 1e38)))
        case _:
            holder[key] = rng.choice((-1, 10**9, "x", None, float("inf")))
    saved = io.BytesIO()
    torch.save(loaded, saved)
    return saved.getvalue()


def _other_tensor(rng: random.Random, tensor: Tensor) -> Tensor:
    """Draw another shape, type, layout or stride."""
    flat = tensor.float().flatten()
    return rng.choice(
        (
            lambda: torch.zeros(0),
            lambda: torch.zeros(1).expand(10**5, 10**5),  # strides of 0: 40 GB where it is copied
            lambda: flat.to(torch.complex64),
            lambda: flat.to(torch.int64),
            lambda: flat.half(),
            lambda: flat.to_sparse(),
            lambda: torch.empty(tensor.shape, device="meta"),
            lambda: torch.quantize_per_tensor(flat, 0.1, 0, torch.qint8),
            lambda: tensor.mT if tensor.dim() > 1 else flat[::2],
        )
    )()


def _holders_of_objects(data: Any) -> list[tuple[Any, Any]]:
    places: list[tuple[Any, Any]] = []
    keys = (
        list(data) if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ()
    )
    for key in keys:
        places += [(data, key), *_holders_of_objects(data[key])]
    return places


OBJECTS = (objects,)


def _code(trap: Path) -> Bytes:
    """Put an object that runs code into what torch.save writes."""

    def code(rng: random.Random, data: bytes) -> bytes:
        loaded = torch.load(io.BytesIO(data), weights_only=True)
        holder, key = rng.choice(list(_holders_of_objects(loaded)))
        holder[key] = Payload(canary(trap))
        saved = io.BytesIO()
        torch.save(loaded, saved, _use_new_zipfile_serialization=rng.random() < 0.5)
        return saved.getvalue()

    return code


def _bare_code(trap: Path) -> Bytes:
    """Write a bare pickle that runs code, of any protocol."""

    def bare_code(rng: random.Random, data: bytes) -> bytes:
        del data
        return pickle.dumps(Payload(canary(trap)), protocol=rng.randrange(6))

    return bare_code


def _code_in_zip(trap: Path) -> Bytes:
    """Replace an entry of the archive by a pickle that runs code."""

    def code_in_zip(rng: random.Random, data: bytes) -> bytes:
        entries = _entries(data)
        name = rng.choice([*(name for name in entries if name.endswith(".pkl")), *entries])
        entries[name] = pickle.dumps(Payload(canary(trap)), protocol=2)
        return _zipped(entries)

    return code_in_zip


def _entries(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(entries: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", kind) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return packed.getvalue()


def entry_names(rng: random.Random, data: bytes) -> bytes:
    """Rename, drop or add entries: absolute, outside, of TorchScript."""
    entries = _entries(data)
    name = rng.choice([*entries])
    match rng.randrange(3):
        case 0:
            del entries[name]
        case 1:
            entries[rng.choice(("/etc/x", f"../{name}", "", "x" * 60_000))] = entries.pop(name)
        case _:
            folder = name.partition("/")[0]
            entries[f"{folder}/{rng.choice(('constants.pkl', 'code/x.py', 'version'))}"] = b"1"
    return _zipped(entries)


def entry_content(rng: random.Random, data: bytes) -> bytes:
    """Change the bytes of an entry, whose checksum is right then."""
    entries = _entries(data)
    name = rng.choice([*(name for name in entries if name.endswith(".pkl")), *entries])
    entries[name] = rng.choice(BYTES)(rng, entries[name] or b"x")
    return _zipped(entries)


def compressed_entries(rng: random.Random, data: bytes) -> bytes:
    """Compress the entries, one of them grown to a gigabyte of zeros."""
    entries = _entries(data)
    name = rng.choice([*entries])
    entries[name] += bytes(rng.choice((0, 1 << 20, 1 << 30)))
    return _zipped(entries, zipfile.ZIP_DEFLATED)


ENTRIES = (entry_names, entry_content, compressed_entries)


def _header(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def header_value(rng: random.Random, data: bytes) -> bytes:
    """Change one value of the header of a safetensors file."""
    header, rest = _header(data)
    written = _dumped(rng, change_value(rng, header))
    return struct.pack("<Q", len(written)) + written + rest


def header_length(rng: random.Random, data: bytes) -> bytes:
    """Let a safetensors file say another length of its header."""
    (length,) = struct.unpack("<Q", data[:8])
    lengths = (0, 1, length - 1, length + 1, len(data), 1 << 40, (1 << 63) - 1, (1 << 64) - 1)
    return struct.pack("<Q", rng.choice(lengths)) + data[8:]


def tensors(rng: random.Random, data: bytes) -> bytes:
    """Drop, rename, reshape or fill a tensor of a safetensors file."""
    loaded = load(data)
    name = rng.choice([*loaded])
    match rng.randrange(5):
        case 0:
            del loaded[name]
        case 1:
            loaded[f"{name}.x"] = loaded.pop(name)
        case 2:
            loaded[name] = loaded[name].flatten()[:-1].clone()
        case 3:
            loaded[name] = loaded[name].to(rng.choice((torch.int8, torch.bool, torch.float64)))
        case _:
            number = rng.choice((float("nan"), float("inf"), 1e38, 0.0))
            loaded[name] = torch.full_like(loaded[name].float(), number)
    return save(loaded)


# Tables


def column(rng: random.Random, data: bytes) -> bytes:
    """Drop, rename, retype, empty or fill a column of a parquet file, or drop rows."""
    table = pq.read_table(io.BytesIO(data))
    place = rng.randrange(table.num_columns)
    name, rows = table.column_names[place], table.num_rows
    number = rng.choice((-1, 2**31 - 1, 0))
    arrays: Sequence[pa.Array] = (
        pa.nulls(rows),
        pa.array([rng.choice(TEXTS[:8])] * rows, pa.string()),
        pa.array([number] * rows, pa.int32()),
        pa.array([float("nan")] * rows, pa.float32()),
        pa.array([[1]] * rows),
        pa.array([None, *[number] * (rows - 1)], pa.int32()),
        pa.array([b"\xff"] * rows, pa.binary()),
    )
    match rng.randrange(5):
        case 0:
            table = table.drop_columns([name])
        case 1:
            table = table.rename_columns(
                ["x" if other == name else other for other in table.column_names]
            )
        case 2:
            table = table.slice(0, rng.choice((0, 1, rows // 2)))
        case 3:
            table = pa.concat_tables([table, table.slice(0, 1)])
        case _:
            table = table.set_column(place, name, rng.choice(arrays))
    written = io.BytesIO()
    pq.write_table(table, written)
    return written.getvalue()
