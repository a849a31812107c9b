"""What the tiny CLIP is trained on, rendered once, and the benchmark that it must not see."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carft_core.data.icon_shift import PLAIN_TEMPLATES, STYLE_TEMPLATES
from tools.builtin.copies import fingerprint, near_copies
from tools.builtin.manifest import (
    Item,
    Pair,
    benchmark_items,
    pretraining_pairs,
    read_benchmark,
    read_classes,
    select_items,
)
from tools.builtin.render import SIDE, Pixels, is_monochrome, render_all
from tools.builtin.source import Drawing, read_drawings, read_styles

MIN_DESIGNERS = 3


@dataclass(frozen=True)
class Corpus:
    """`pixels` [N, 48, 48, 4], `monochrome` [N] belong to `pairs`, the `item_` ones to `items`."""

    pairs: Sequence[Pair]
    pixels: npt.NDArray[np.uint8]
    monochrome: npt.NDArray[np.bool_]
    items: Sequence[Item]
    item_pixels: npt.NDArray[np.uint8]
    item_monochrome: npt.NDArray[np.bool_]

    def captions(self) -> Iterator[str]:
        """Every caption that the pre-training can make."""
        names = sorted({name for pair in self.pairs for name in pair.names})
        templates = [*PLAIN_TEMPLATES, *(t for group in STYLE_TEMPLATES.values() for t in group)]
        for template in templates:
            yield template.format("thing")
        yield from names


def load_corpus(source: Path, work: Path) -> Corpus:
    """Read the source, render (cached in `work`), leave near copies of the benchmark out."""
    drawings = list(read_drawings(source))
    classes, plan = read_classes(), read_benchmark()
    items = select_items(benchmark_items(drawings, classes, plan), plan)
    rules = {**plan, **plan["near_copies_of"]}
    originals = select_items(benchmark_items(drawings, classes, rules), rules, curated=False)
    pairs = pretraining_pairs(
        drawings,
        classes,
        plan,
        share_alike=read_styles()["share_alike"],
        min_designers=MIN_DESIGNERS,
    )
    wanted = {item.drawing.id: item.drawing for item in [*originals, *items]}
    wanted |= {pair.drawing.id: pair.drawing for pair in pairs}
    pixels, where = _rendered(list(wanted.values()), work)
    items = [item for item in items if item.drawing.id in where]
    originals = [item for item in originals if item.drawing.id in where]
    pairs = _without_copies([p for p in pairs if p.drawing.id in where], originals, pixels, where)
    pair_rows = np.array([where[pair.drawing.id] for pair in pairs])
    item_rows = np.array([where[item.drawing.id] for item in items])
    monochrome = np.array([is_monochrome(image) for image in pixels])
    return Corpus(
        pairs=pairs,
        pixels=pixels[pair_rows],
        monochrome=monochrome[pair_rows],
        items=items,
        item_pixels=pixels[item_rows],
        item_monochrome=monochrome[item_rows],
    )


def _rendered(drawings: Sequence[Drawing], work: Path) -> tuple[Pixels, dict[str, int]]:
    """The pixels [N, 48, 48, 4] of the drawings that are not blank, and the row of each id."""
    work.mkdir(parents=True, exist_ok=True)
    names, cache = work / "pixels.json", work / "pixels.npy"
    asked = [drawing.id for drawing in drawings]
    if names.exists() and cache.exists():
        stored = json.loads(names.read_text(encoding="utf-8"))
        if stored["asked"] == asked:
            return np.load(cache, mmap_mode="r"), stored["rows"]
    rendered = render_all([drawing.svg for drawing in drawings])
    kept = [(name, image) for name, image in zip(asked, rendered, strict=True) if image is not None]
    rows = {name: row for row, (name, _) in enumerate(kept)}
    pixels = np.stack([image for _, image in kept]) if kept else np.zeros((0, SIDE, SIDE, 4), "u1")
    np.save(cache, pixels)
    names.write_text(json.dumps({"asked": asked, "rows": rows}), encoding="utf-8")
    return np.load(cache, mmap_mode="r"), rows


def _without_copies(
    pairs: Sequence[Pair], items: Sequence[Item], pixels: Pixels, where: dict[str, int]
) -> list[Pair]:
    originals: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        originals[item.label].append(item)
    suspects: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.concept in originals:
            suspects[pair.concept].append(pair)
    copies: set[str] = set()
    for label, group in suspects.items():
        mine = np.stack([fingerprint(pixels[where[p.drawing.id]]) for p in group])
        theirs = np.stack([fingerprint(pixels[where[i.drawing.id]]) for i in originals[label]])
        found = near_copies(mine, theirs)
        copies |= {p.drawing.id for p, copy in zip(group, found, strict=True) if copy}
    return [pair for pair in pairs if pair.drawing.id not in copies]
