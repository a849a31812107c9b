"""The tiny CLIP's training data, rendered once, and the benchmark that it must not see."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from carft_sweep.carft_core.data.families.icon_shift import PLAIN_TEMPLATES, STYLE_TEMPLATES
from tools.builtin.copies import choose_items, fingerprints, near_copies
from tools.builtin.manifest import (
    Item,
    Pair,
    benchmark_items,
    pretraining_pairs,
    read_benchmark,
    read_classes,
)
from tools.builtin.render import SIDE, Pixels, is_monochrome, render_all
from tools.builtin.source import Drawing, read_drawings, read_styles

MIN_DRAWINGS = 6
"""Least number of pre-training drawings of each benchmark class."""


@dataclass(frozen=True)
class Corpus:
    """Rendered data: `pixels` [N, 48, 48, 4] and `monochrome` [N] of `pairs`, and of `items`."""

    pairs: Sequence[Pair]
    pixels: npt.NDArray[np.uint8]
    monochrome: npt.NDArray[np.bool_]
    items: Sequence[Item]
    item_pixels: npt.NDArray[np.uint8]
    item_monochrome: npt.NDArray[np.bool_]

    def captions(self) -> Iterator[str]:
        """Yield texts with every word of the captions that the pre-training can make."""
        names = sorted({name for pair in self.pairs for name in pair.names})
        templates = [*PLAIN_TEMPLATES, *(t for group in STYLE_TEMPLATES.values() for t in group)]
        for template in templates:
            yield template.format("thing")
        yield from names


def load_corpus(source: Path, work: Path) -> Corpus:
    """Return a source's corpus, rendered (cached in `work`), without copies of the benchmark."""
    drawings = list(read_drawings(source))
    classes, plan = read_classes(), read_benchmark()
    # Every drawing that the rules could take, whatever was dropped by eye or by the caps since.
    candidates = benchmark_items(drawings, classes, plan)
    pairs = pretraining_pairs(drawings, classes, plan, share_alike=read_styles()["share_alike"])
    wanted = {item.drawing.id: item.drawing for item in candidates}
    wanted |= {pair.drawing.id: pair.drawing for pair in pairs}
    pixels, where = _rendered(list(wanted.values()), work)
    candidates = [item for item in candidates if item.drawing.id in where]
    pairs = [pair for pair in pairs if pair.drawing.id in where]
    candidate_rows = np.array([where[item.drawing.id] for item in candidates])
    pair_rows = np.array([where[pair.drawing.id] for pair in pairs])
    copies = _copies(pixels, pair_rows, candidate_rows, work)
    pairs = [pair for pair, copy in zip(pairs, copies, strict=True) if not copy]
    pair_rows = pair_rows[~copies]
    items = choose_items(candidates, pixels[candidate_rows], plan)
    _check_known(items, pairs)
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


def _check_known(items: Sequence[Item], pairs: Sequence[Pair]) -> None:
    """Raise SystemExit where the pre-training holds hardly a drawing of a benchmark class."""
    counts = Counter(pair.concept for pair in pairs)
    rare = sorted({item.label for item in items if counts[item.label] < MIN_DRAWINGS})
    if rare:
        raise SystemExit(
            f"fewer than {MIN_DRAWINGS} pre-training drawings of {', '.join(rare)}: "
            "name them under excluded_classes in benchmark.yaml"
        )


def _copies(
    pixels: Pixels,
    pair_rows: npt.NDArray[np.intp],
    candidate_rows: npt.NDArray[np.intp],
    work: Path,
) -> npt.NDArray[np.bool_]:
    """Return which pairs are near copies of a candidate; cached, a resumed training waits for
    it."""
    key = hashlib.sha256(Path(near_copies.__code__.co_filename).read_bytes())
    key.update((work / "pixels.json").read_bytes())
    for rows in (pair_rows, candidate_rows):
        key.update(rows.astype(np.int64).tobytes())
    path = work / f"copies-{key.hexdigest()[:16]}.npy"
    if not path.exists():
        prints = fingerprints(pixels[pair_rows]), fingerprints(pixels[candidate_rows])
        np.save(path.with_suffix(".partial.npy"), near_copies(*prints))
        path.with_suffix(".partial.npy").replace(path)
    copies: npt.NDArray[np.bool_] = np.load(path)
    return copies


def _rendered(drawings: Sequence[Drawing], work: Path) -> tuple[Pixels, dict[str, int]]:
    """Return the pixels [N, 48, 48, 4] of the drawings that are not blank, and each id's row."""
    work.mkdir(parents=True, exist_ok=True)
    names, cache = work / "pixels.json", work / "pixels.npy"
    asked = [drawing.id for drawing in drawings]
    if names.exists() and cache.exists():
        stored = json.loads(names.read_text(encoding="utf-8"))
        if stored["asked"] == asked:
            return np.load(cache, mmap_mode="r"), stored["rows"]
    rendered = render_all([drawing.svg for drawing in drawings])
    drawn = {name: image for name, image in zip(asked, rendered, strict=True) if image is not None}
    rows = {name: row for row, name in enumerate(drawn)}
    pixels = np.stack([*drawn.values()]) if drawn else np.zeros((0, SIDE, SIDE, 4), "u1")
    np.save(cache, pixels)
    names.write_text(json.dumps({"asked": asked, "rows": rows}), encoding="utf-8")
    return np.load(cache, mmap_mode="r"), rows
