"""Build the packed IconShift from the npm package @iconify/json, the same file every time.

`npm install @iconify/json@2.2.535`, then
`python -m tools.builtin.icon_shift --source node_modules/@iconify/json`.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tools.builtin.copies import choose_items
from tools.builtin.manifest import (
    Item,
    benchmark_items,
    read_benchmark,
    read_classes,
    split_names,
    subset_of,
)
from tools.builtin.render import Pixels, is_monochrome, render_all
from tools.builtin.source import IconSet, read_drawings, read_sets

SOURCE_VERSION = "2.2.535"
OUT = Path(__file__).parents[2] / "carft_core" / "builtin" / "icon_shift"
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("class", pa.string()),
        ("style", pa.string()),
        ("split", pa.string()),
        ("subset", pa.string()),
        ("unit", pa.string()),
        ("designer", pa.string()),
        ("set", pa.string()),
        ("licence", pa.string()),
        ("monochrome", pa.bool_()),
        ("png", pa.binary()),
    ]
)


@dataclass(frozen=True)
class Packed:
    """A benchmark item with its pixels."""

    item: Item
    pixels: Pixels


def check_version(source: Path) -> None:
    """Raise SystemExit unless the folder holds the pinned version of @iconify/json."""
    version = json.loads((source / "package.json").read_text(encoding="utf-8")).get("version")
    if version != SOURCE_VERSION:
        raise SystemExit(
            f"{source} is @iconify/json {version}; the benchmark is built from {SOURCE_VERSION}: "
            f"npm install @iconify/json@{SOURCE_VERSION}"
        )


def collect(source: Path) -> list[Packed]:
    """Return the benchmark's drawings, rendered, without blanks and equal ones of a class."""
    plan = read_benchmark()
    items = benchmark_items(read_drawings(source), read_classes(), plan)
    images = render_all([item.drawing.svg for item in items])
    rendered = [
        (item, image) for item, image in zip(items, images, strict=True) if image is not None
    ]
    pixels = {item.drawing.id: image for item, image in rendered}
    packed, seen = [], set()
    for item in choose_items([item for item, _ in rendered], list(pixels.values()), plan):
        image = pixels[item.drawing.id]
        key = (item.label, image.tobytes())
        if key not in seen:
            seen.add(key)
            packed.append(Packed(item, image))
    return packed


def write_parquet(packed: Sequence[Packed], path: Path) -> str:
    """Write the data file and, beside it, its sha256, which is returned."""
    rows = [_row(entry) for entry in packed]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    # PNG does not compress further; without statistics and dictionary for it the file stays small.
    pq.write_table(
        table,
        path,
        compression="zstd",
        use_dictionary=[name for name in SCHEMA.names if name not in ("png", "id", "unit")],
        write_statistics=False,
        store_schema=False,
    )
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path.with_suffix(".sha256").write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    return digest


def _row(entry: Packed) -> dict[str, object]:
    drawing, monochrome = entry.item.drawing, is_monochrome(entry.pixels)
    return {
        "id": drawing.id,
        "class": entry.item.label,
        "style": drawing.style,
        "split": entry.item.split,
        "subset": subset_of(entry.item.label),
        "unit": f"{drawing.designer}:{drawing.concept}",
        "designer": drawing.designer,
        "set": drawing.set,
        "licence": drawing.licence,
        "monochrome": monochrome,
        "png": encode(entry.pixels, monochrome),
    }


def encode(pixels: Pixels, monochrome: bool) -> bytes:
    """Return a PNG of the RGBA pixels, or if `monochrome` of the mask alone."""
    image = Image.fromarray(pixels[..., 3] if monochrome else pixels)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def licences_page(packed: Sequence[Packed], sets: Sequence[IconSet]) -> str:
    """Return LICENSES.md: title, author, licence and address of each set in the file."""
    counts = Counter(entry.item.drawing.set for entry in packed)
    lines = [
        "# Licences of the drawings in IconShift",
        "",
        f"Drawings of these icon sets, taken from @iconify/json {SOURCE_VERSION}, rendered at",
        "48 x 48 pixels and otherwise unchanged. Each row of `icon_shift.parquet` names its set",
        "and licence (SPDX).",
        "",
        "| set | title | author | licence | drawings | address |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {s.prefix} | {s.title} | {s.author} | {s.licence} | {counts[s.prefix]} | {s.url} |"
        for s in sorted(sets, key=lambda s: s.prefix)
        if counts[s.prefix]
    ]
    lines += [
        "",
        "Licence texts: https://spdx.org/licenses/. OpenMoji's drawings stay under CC-BY-SA-4.0.",
        "",
    ]
    return "\n".join(lines)


def counts_table(packed: Sequence[Packed]) -> str:
    """Return in Markdown the drawings by subset and split, with the number of classes."""
    splits = split_names(read_benchmark())
    lines = ["| subset | classes | " + " | ".join(splits) + " |", "|---" * (len(splits) + 2) + "|"]
    groups: dict[str, list[Item]] = defaultdict(list)
    for entry in packed:
        groups[subset_of(entry.item.label)].append(entry.item)
    for subset, items in sorted(groups.items()):
        counts = Counter(item.split for item in items)
        cells = " | ".join(str(counts[split]) for split in splits)
        lines.append(f"| {subset} | {len({item.label for item in items})} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Build the data file and its licences, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder of @iconify/json")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    check_version(args.source)
    packed = collect(args.source)
    args.out.mkdir(parents=True, exist_ok=True)
    digest = write_parquet(packed, args.out / "icon_shift.parquet")
    page = licences_page(packed, read_sets(args.source))
    (args.out / "LICENSES.md").write_text(page, encoding="utf-8")
    print(counts_table(packed))  # noqa: T201
    print(f"{len(packed)} drawings, sha256 {digest}")  # noqa: T201


if __name__ == "__main__":
    main()
