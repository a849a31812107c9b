"""Pre-train the tiny CLIP on named icons.

`python -m tools.builtin.tiny_clip --source node_modules/@iconify/json --work <folder>`.
A killed run goes on from its last checkpoint; batches are a function of (seed, step).
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from tools.builtin.batches import Batch, Batches
from tools.builtin.corpus import Corpus, load_corpus
from tools.builtin.zero_shot import DevelopmentSet

CONFIG = Path(__file__).parents[2] / "carft_core" / "builtin" / "tiny_clip"
NAME = f"local-dir:{CONFIG}"
MAX_LOGIT_SCALE = math.log(100)


@dataclass(frozen=True)
class Recipe:
    """How the tiny CLIP is trained."""

    steps: int = 5000
    batch_size: int = 256
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 300
    clip: float = 1.0
    layer_scale: float = 0.1
    seed: int = 0


def create_model(seed: int, layer_scale: float) -> open_clip.CLIP:
    """The untrained model; ConvNeXt's usual layer scale, 1e-6, is for much longer training."""
    torch.manual_seed(seed)
    model: open_clip.CLIP = open_clip.create_model(NAME, load_weights=False)
    for name, parameter in model.named_parameters():
        if name.endswith(".gamma"):
            nn.init.constant_(parameter, layer_scale)
    return model.to(memory_format=torch.channels_last)


def create_optimizer(model: open_clip.CLIP, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW; matrices decay, while norms, biases, scales and embeddings do not."""
    decay: list[nn.Parameter] = []
    still: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        small = parameter.ndim < 2 or "embedding" in name
        (still if small else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": recipe.weight_decay},
        {"params": still, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric loss of unit features [B, d]; the pairs lie on the diagonal."""
    logits = scale * images @ texts.T
    target = torch.arange(len(logits))
    by_image = functional.cross_entropy(logits, target)
    return (by_image + functional.cross_entropy(logits.T, target)) / 2


def train(
    recipe: Recipe, corpus: Corpus, work: Path, *, every: int = 250, keep: int = 1000
) -> open_clip.CLIP:
    """Train or go on: log in `log.jsonl`, checkpoint `last.pt`, snapshots `step-N.safetensors`."""
    work.mkdir(parents=True, exist_ok=True)
    model = create_model(recipe.seed, recipe.layer_scale)
    optimizer = create_optimizer(model, recipe)
    normalise = _normaliser(model)
    size = int(model.visual.image_size[0])
    batches = _batches(recipe, corpus, size)
    development = DevelopmentSet(corpus, open_clip.get_tokenizer(NAME), size)
    start = _resume(work / "last.pt", recipe, model, optimizer)
    seen, clock, total = 0, time.monotonic(), 0.0
    with ThreadPoolExecutor(1) as loader:
        coming = loader.submit(batches, start)
        for step in range(start, recipe.steps):
            batch: Batch = coming.result()
            coming = loader.submit(batches, step + 1)
            loss = _update(model, optimizer, recipe, step, normalise(batch.images), batch.texts)
            seen, total = seen + len(batch.images), total + loss
            done = step + 1
            if done % every == 0 or done == recipe.steps:
                rate = seen / (time.monotonic() - clock)
                row = {
                    "step": done,
                    "loss": round(total * recipe.batch_size / seen, 4),
                    "lr": round(learning_rate(recipe, step), 6),
                    "logit_scale": round(float(model.logit_scale.detach().exp()), 2),
                    "images_per_s": round(rate),
                    **development.zero_shot(model, normalise),
                }
                _append(work / "log.jsonl", row)
                _save(work / "last.pt", recipe, model, optimizer, done)
                seen, clock, total = 0, time.monotonic(), 0.0
            if done % keep == 0:
                export(model, corpus, work / f"step-{done}.safetensors")
    return model


def _batches(recipe: Recipe, corpus: Corpus, size: int) -> Batches:
    return Batches(
        corpus.pairs,
        corpus.pixels,
        corpus.monochrome,
        seed=recipe.seed,
        size=size,
        batch_size=recipe.batch_size,
        tokenizer=open_clip.get_tokenizer(NAME),
    )


def _update(
    model: open_clip.CLIP,
    optimizer: torch.optim.AdamW,
    recipe: Recipe,
    step: int,
    pixels: Tensor,
    texts: Tensor,
) -> float:
    """One step on normalised images [B, 3, S, S] and tokens [B, L]; returns the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, step)
    images = model.encode_image(
        pixels.contiguous(memory_format=torch.channels_last), normalize=True
    )
    loss = contrastive_loss(
        images, model.encode_text(texts, normalize=True), model.logit_scale.exp()
    )
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
    return float(loss.detach())


def export(model: open_clip.CLIP, corpus: Corpus, path: Path) -> None:
    """Write an open_clip checkpoint in fp16; rows of tokens that no caption holds are zero."""
    tokenizer = open_clip.get_tokenizer(NAME)
    used = torch.zeros(model.token_embedding.num_embeddings, dtype=torch.bool)
    for text in corpus.captions():
        used[tokenizer([text])[0]] = True
    state = {}
    for name, value in model.state_dict().items():
        tensor = value.detach().clone(memory_format=torch.contiguous_format)
        if name == "token_embedding.weight":
            tensor[~used] = 0
        state[name] = tensor.half() if tensor.is_floating_point() else tensor
    save_file(state, path, metadata={"format": "pt"})


def _normaliser(model: open_clip.CLIP) -> Callable[[Tensor], Tensor]:
    mean = torch.tensor(model.visual.image_mean).view(1, 3, 1, 1)
    std = torch.tensor(model.visual.image_std).view(1, 3, 1, 1)
    return lambda pixels: (pixels - mean) / std


def _append(path: Path, row: dict[str, float]) -> None:
    print(json.dumps(row), flush=True)  # noqa: T201
    with path.open("a", encoding="utf-8") as log:
        log.write(json.dumps(row) + "\n")


def _save(
    path: Path, recipe: Recipe, model: open_clip.CLIP, optimizer: torch.optim.Optimizer, step: int
) -> None:
    state = {
        "recipe": asdict(recipe),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
    }
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def _resume(
    path: Path, recipe: Recipe, model: open_clip.CLIP, optimizer: torch.optim.Optimizer
) -> int:
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)
    if state["recipe"] != asdict(recipe):
        raise SystemExit(f"{path} is of another recipe: {state['recipe']}")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    step: int = state["step"]
    return step


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder of @iconify/json")
    parser.add_argument("--work", type=Path, required=True, help="cache, log and checkpoints")
    parser.add_argument("--out", type=Path, default=CONFIG / "open_clip_model.safetensors")
    parser.add_argument("--threads", type=int, default=2)
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    given = vars(parser.parse_args())
    torch.set_num_threads(given["threads"])
    recipe = Recipe(**{name: given[name] for name in asdict(Recipe())})
    corpus = load_corpus(given["source"], given["work"])
    model = train(recipe, corpus, given["work"])
    export(model, corpus, given["out"])


if __name__ == "__main__":
    main()
