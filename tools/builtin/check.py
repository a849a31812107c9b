"""Check what docs/icon-shift.md and docs/tiny-clip.md claim of the built-in data and model.

`python -m tools.builtin.check --source node_modules/@iconify/json --work <folder>`: builds the
packed file again and compares it with the shipped one, looks for near copies of the benchmark in
the pre-training, says what the threshold misses of the pairs judged by eye, and draws the nearest
pairs that are left. Exits with 1 where a claim does not hold.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from carft_sweep.carft_core.data.families.icon_shift import DATA
from tools.builtin.copies import NEAR_COPY, fingerprints, nearest
from tools.builtin.corpus import Corpus, load_corpus
from tools.builtin.icon_shift import check_version, collect, write_parquet
from tools.builtin.manifest import alias_table, is_held_out, read_benchmark, read_classes
from tools.builtin.render import Pixels, render_all
from tools.builtin.source import read_drawings

THRESHOLDS = (0.75, 0.80, 0.85, 0.90)
COLUMNS, CELL, GAP, TITLE = 10, 48, 6, 12
"""Contact sheet: pairs in a row; pixels of a drawing, between pairs, and above a pair."""


@dataclass(frozen=True)
class Label:
    """A pair of drawings judged by eye; `sample` says how it was drawn."""

    sample: str
    benchmark: str
    pretraining: str
    is_copy: bool


def read_labels() -> list[Label]:
    """Return the labels of `copy_labels.csv` beside this module."""
    text = resources.files(__package__).joinpath("copy_labels.csv").read_text(encoding="utf-8")
    return [
        Label(row["sample"], row["benchmark"], row["pretraining"], row["copy"] == "yes")
        for row in csv.DictReader(text.splitlines())
    ]


def threshold_table(labels: Sequence[Label], correlations: npt.NDArray[np.float32]) -> str:
    """Return in Markdown, by threshold, how many labelled copies and other pairs lie above it."""
    copy = np.array([label.is_copy for label in labels])
    lines = ["| threshold | copies found | other pairs taken |", "|---|---|---|"]
    for threshold in THRESHOLDS:
        above = correlations > threshold
        lines.append(
            f"| {threshold:.2f} | {(above & copy).sum()} of {copy.sum()} "
            f"| {(above & ~copy).sum()} of {(~copy).sum()} |"
        )
    return "\n".join(lines)


def label_correlations(labels: Sequence[Label], source: Path) -> npt.NDArray[np.float32]:
    """Return the correlation [N] of each labelled pair, or of its mirrored pair if larger."""
    names = {name for label in labels for name in (label.benchmark, label.pretraining)}
    drawings = {d.id: d.svg for d in read_drawings(source) if d.id in names}
    images = render_all(list(drawings.values()))
    prints = dict(zip(drawings, fingerprints([_present(image) for image in images]), strict=True))
    pairs = [(prints[label.pretraining], prints[label.benchmark]) for label in labels]
    return np.array([nearest(a[None], b[None])[0][0] for a, b in pairs], dtype=np.float32)


def _present(pixels: Pixels | None) -> Pixels:
    if pixels is None:
        raise ValueError("a labelled drawing renders blank")
    return pixels


def contact_sheet(corpus: Corpus, rows: Sequence[tuple[int, int, float]], path: Path) -> None:
    """Write a PNG of pairs (benchmark item, pre-training pair, correlation), side by side."""
    width, height = 2 * CELL + GAP, CELL + TITLE + GAP
    lines = -(-len(rows) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * width, lines * height), "white")
    words, font = ImageDraw.Draw(sheet), ImageFont.load_default(9)
    for place, (item, pair, correlation) in enumerate(rows):
        x, y = (place % COLUMNS) * width, (place // COLUMNS) * height
        words.text((x, y), f"{correlation:.3f}", "black", font)
        for offset, pixels in ((0, corpus.item_pixels[item]), (CELL, corpus.pixels[pair])):
            drawing = Image.fromarray(np.asarray(pixels))
            ground = Image.new("RGBA", drawing.size, "white")
            ground.alpha_composite(drawing)
            sheet.paste(ground.convert("RGB"), (x + offset, y + TITLE))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def nearest_left(corpus: Corpus, count: int) -> list[tuple[int, int, float]]:
    """Return the `count` items nearest to the pre-training as (item, pair, correlation)."""
    correlation, pair = nearest(fingerprints(corpus.item_pixels), fingerprints(corpus.pixels))
    order = np.argsort(-correlation)[:count]
    return [(int(item), int(pair[item]), float(correlation[item])) for item in order]


def broken_claims(corpus: Corpus, closest: float) -> list[str]:
    """Return what the pre-training holds and must not, in sentences; empty where all is well."""
    plan, items = read_benchmark(), {item.drawing.id for item in corpus.items}
    names = frozenset(alias_table(read_classes()))
    own = [p.drawing.id for p in corpus.pairs if p.drawing.id in items]
    held_out = [p.drawing.id for p in corpus.pairs if is_held_out(p.drawing, names, plan)]
    claims = {
        f"benchmark drawings in the pre-training: {own}": bool(own),
        f"drawings held out by name and designer or style: {held_out}": bool(held_out),
        f"a near copy is left, of correlation {closest:.3f}": closest > NEAR_COPY,
    }
    return [sentence for sentence, broken in claims.items() if broken]


def main() -> int:
    """Check every claim; return 1 where one does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder of @iconify/json")
    parser.add_argument("--work", type=Path, required=True, help="cache of rendered drawings")
    parser.add_argument("--sheet", type=Path, help="where to draw the 50 nearest pairs")
    args = parser.parse_args()
    check_version(args.source)
    args.work.mkdir(parents=True, exist_ok=True)
    rebuilt = args.work / DATA.name
    digest = write_parquet(collect(args.source), rebuilt)
    stated = DATA.with_suffix(".sha256").read_text(encoding="utf-8").split()[0]
    corpus = load_corpus(args.source, args.work)
    rows = nearest_left(corpus, 50)
    broken = broken_claims(corpus, rows[0][2])
    if digest != stated:
        broken.append(f"the packed file has sha256 {stated}, the one built now {digest}")
    labels = [label for label in read_labels() if label.sample == "threshold"]
    table = threshold_table(labels, label_correlations(labels, args.source))
    counts = f"{len(corpus.pairs)} drawings of {len({p.concept for p in corpus.pairs})} concepts"
    print(f"pre-training: {counts}\n\n{table}\n")  # noqa: T201
    if args.sheet:
        contact_sheet(corpus, rows, args.sheet)
    print("\n".join(broken) or "every claim holds")  # noqa: T201
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
