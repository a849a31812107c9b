"""Zero-shot accuracy on the development set during pre-training; the report set is left alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import numpy as np
import open_clip
import torch
from open_clip import SimpleTokenizer
from torch import Tensor, nn

from carft_sweep.carft_core.data.families.icon_shift import ICON_TEMPLATES, render_views, view_keys
from tools.builtin.corpus import Corpus
from tools.builtin.manifest import subset_of

UNSEEN = ("train", "val")


class DevelopmentSet:
    """Fixed views of the development classes' test drawings and shifts."""

    def __init__(self, corpus: Corpus, tokenizer: SimpleTokenizer, size: int) -> None:
        rows = [
            row
            for row, item in enumerate(corpus.items)
            if subset_of(item.label) == "development" and item.split not in UNSEEN
        ]
        names = sorted({corpus.items[row].label for row in rows})
        self._labels = torch.tensor([names.index(corpus.items[row].label) for row in rows])
        self._splits = [corpus.items[row].split for row in rows]
        self._views = render_views(
            torch.from_numpy(corpus.item_pixels[rows]),
            torch.from_numpy(corpus.item_monochrome[rows]),
            view_keys(0, "development", 0, np.arange(len(rows))),
            size,
        )
        self._prompts = [tokenizer([t.format(name) for t in ICON_TEMPLATES]) for name in names]

    @torch.no_grad()
    def zero_shot(
        self, model: open_clip.CLIP, normalise: Callable[[Tensor], Tensor]
    ) -> dict[str, float]:
        """Return top-1 in percent: `id`, `ood` (mean over shifts), and each shift."""
        model.eval()
        texts = torch.stack([model.encode_text(p, normalize=True).mean(0) for p in self._prompts])
        texts = nn.functional.normalize(texts, dim=-1)
        parts = normalise(self._views).split(512)
        images = torch.cat([model.encode_image(part, normalize=True) for part in parts])
        right = (images @ texts.T).argmax(1) == self._labels
        model.train()
        groups: dict[str, list[bool]] = defaultdict(list)
        for split, good in zip(self._splits, right.tolist(), strict=True):
            groups[split].append(good)
        top1 = {split: 100 * sum(good) / len(good) for split, good in groups.items()}
        shifts = {split: value for split, value in top1.items() if split != "test"}
        mean = sum(shifts.values()) / max(1, len(shifts))
        report = {"id": top1.get("test", 0.0), "ood": mean, **shifts}
        return {split: round(value, 1) for split, value in report.items()}
