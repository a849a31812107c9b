"""Pre-training batches: each is a pure function of (seed, step)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from open_clip import SimpleTokenizer
from torch import Tensor

from carft_sweep.carft_core.data.families.icon_shift import (
    PLAIN_TEMPLATES,
    STYLE_TEMPLATES,
    render_views,
    view_keys,
)
from tools.builtin.manifest import Pair

PLAIN_SHARE = 0.25
OWN_NAME_SHARE = 0.4
STYLE_POWER = 0.5


@dataclass(frozen=True)
class Batch:
    """Views [B, 3, S, S] in [0, 1] and token ids [B, L] of their captions; no concept twice."""

    images: Tensor
    texts: Tensor
    concepts: Sequence[str]


class Batches:
    """Draws batches: concepts by frequency^power, none twice, then a style, then a drawing."""

    def __init__(
        self,
        pairs: Sequence[Pair],
        pixels: npt.NDArray[np.uint8],
        monochrome: npt.NDArray[np.bool_],
        *,
        min_designers: int,
        power: float,
        seed: int,
        size: int,
        batch_size: int,
        tokenizer: SimpleTokenizer,
    ) -> None:
        """Keep the pairs whose concept at least `min_designers` designers draw. `pixels` [N, 48,
        48, 4] and `monochrome` [N] are aligned with `pairs`."""
        groups: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, pair in enumerate(pairs):
            if pair.designers >= min_designers:
                groups[pair.concept][pair.drawing.style].append(index)
        self._pairs = pairs
        self._pixels = pixels
        self._monochrome = monochrome
        self._concepts = list(groups)
        self._groups = [list(styles.values()) for styles in groups.values()]
        counts = np.array([sum(map(len, styles)) for styles in self._groups], dtype=np.float64)
        self._log_weights = power * np.log(counts)
        self._seed = seed
        self._size = size
        self._batch_size = batch_size
        self._tokenizer = tokenizer
        self._tokens: dict[str, Tensor] = {}

    def __call__(self, step: int) -> Batch:
        """Return the batch of this step."""
        draw = np.random.default_rng([self._seed, step])
        # The k largest of log-weights plus Gumbel noise are a weighted sample without replacement.
        scores = self._log_weights + draw.gumbel(size=len(self._log_weights))
        chosen = np.argpartition(-scores, self._batch_size - 1)[: self._batch_size]
        items = [self._drawing(self._groups[concept], draw) for concept in chosen]
        texts = torch.stack([self._tokenise(self._caption(item, draw)) for item in items])
        order = np.array(items)
        drawings = torch.from_numpy(self._pixels[order])
        monochrome = torch.from_numpy(self._monochrome[order])
        keys = view_keys(self._seed, "pretraining", step, np.arange(len(items)))
        images = render_views(drawings, monochrome, keys, self._size)
        return Batch(images, texts, [self._concepts[number] for number in chosen])

    @staticmethod
    def _drawing(styles: list[list[int]], draw: np.random.Generator) -> int:
        weights = np.array([len(items) for items in styles]) ** STYLE_POWER
        items = styles[int(np.searchsorted(np.cumsum(weights), draw.random() * weights.sum()))]
        return items[int(draw.integers(len(items)))]

    def _caption(self, item: int, draw: np.random.Generator) -> str:
        pair = self._pairs[item]
        name = pair.names[-1 if draw.random() < OWN_NAME_SHARE else 0]
        plain = draw.random() < PLAIN_SHARE
        templates = PLAIN_TEMPLATES if plain else STYLE_TEMPLATES[pair.drawing.style]
        return templates[int(draw.integers(len(templates)))].format(name)

    def _tokenise(self, caption: str) -> Tensor:
        if caption not in self._tokens:
            self._tokens[caption] = self._tokenizer([caption])[0]
        return self._tokens[caption]


def related(concepts: Sequence[str]) -> Tensor:
    """Return a matrix [N, N] bool: whether all words of one concept are in the other ("rocket
    launch", "rocket"); False on the diagonal."""
    names = [frozenset(concept.split()) for concept in concepts]
    words = {word: column for column, word in enumerate(sorted(frozenset().union(*names)))}
    holds = torch.zeros(len(names), len(words))
    for row, name in enumerate(names):
        holds[row, [words[word] for word in name]] = 1
    common, length = holds @ holds.T, holds.sum(dim=1)
    return (common >= torch.minimum(length[:, None], length[None, :])).fill_diagonal_(False)
