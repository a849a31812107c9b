"""Pre-train a built-in CLIP on named icons.

`python -m tools.builtin.tiny_clip --model builtin --source node_modules/@iconify/json
--cache <folder> --work <folder>`. The same command resumes a killed training from its last
checkpoint, and ends with the weights that it would have had: batches and random numbers are a
function of (seed, step).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from carft_sweep.carft_core.models.source import BUILTIN
from tools.builtin.batches import Batch, Batches, related
from tools.builtin.corpus import Corpus, load_corpus
from tools.builtin.zero_shot import DevelopmentSet

IMAGE_SIZE = 32
MAX_LOGIT_SCALE = math.log(100)
CHECKPOINT_SECONDS = 180


@dataclass(frozen=True)
class Recipe:
    """How a model is trained."""

    steps: int = 22000
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 1000
    cooldown: int = 5000
    """Number of last steps, over which the rate falls linearly; before it is `lr`."""
    clip: float = 1.0
    layer_scale: float = 0.1
    ema: float = 0.9995
    """Decay per step of the moving average of the weights, which is the result."""
    all_concepts_from: int = 12000
    """The step from which every concept is drawn; until then those of at least three designers."""
    bf16: bool = False
    distillation: float = 0.0
    """Above 0 the text tower is that of `builtin`, frozen, and this is the weight of the distance
    1 - cosine to its image features beside CLIP's loss: the feature distillation of CLIP-KD,
    arXiv 2307.12732, on unit features."""
    seed: int = 0


RECIPES: dict[str, Recipe] = {
    "builtin": Recipe(),
    "builtin_vit": Recipe(
        steps=7000,
        cooldown=2000,
        all_concepts_from=0,
        weight_decay=0.1,
        bf16=True,
        distillation=8.0,
    ),
}


def so_far(recipe: Recipe, step: int) -> Recipe:
    """Return the recipe without what only steps after `step` use: a fall of the rate, concepts."""
    if step <= recipe.steps - recipe.cooldown:
        recipe = replace(recipe, steps=0, cooldown=0)
    if step <= recipe.all_concepts_from:
        recipe = replace(recipe, all_concepts_from=step)
    return recipe


def model_name(model: str) -> str:
    """Return the name by which open_clip opens a built-in model."""
    return f"local-dir:{BUILTIN[model]}"


def create_model(model: str, recipe: Recipe) -> open_clip.CLIP:
    """Return the untrained model; ConvNeXt's layer scale, 1e-6, is for longer training."""
    torch.manual_seed(recipe.seed)
    clip: open_clip.CLIP = open_clip.create_model(model_name(model), load_weights=False)
    for name, parameter in clip.named_parameters():
        if name.endswith(".gamma"):
            nn.init.constant_(parameter, recipe.layer_scale)
    return clip.to(memory_format=torch.channels_last)


def take_text_tower(clip: open_clip.CLIP) -> open_clip.CLIP:
    """Give a model the text tower and the scale of `builtin`, frozen; return `builtin`."""
    teacher: open_clip.CLIP = open_clip.create_model(model_name("builtin"))
    taken = {k: v for k, v in teacher.state_dict().items() if not k.startswith("visual.")}
    clip.load_state_dict(taken, strict=False)
    for name, parameter in clip.named_parameters():
        parameter.requires_grad_(name.startswith("visual."))
    return teacher.eval().requires_grad_(False).to(memory_format=torch.channels_last)


def create_optimizer(model: open_clip.CLIP, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW; matrices decay, while norms, biases, scales and embeddings do not."""
    decay: list[nn.Parameter] = []
    still: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        small = parameter.ndim < 2 or "embedding" in name
        (still if small else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": recipe.weight_decay},
        {"params": still, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Return the rate at a step: a linear rise, a constant, and a linear fall to zero."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    return recipe.lr * min(1.0, (recipe.steps - step) / recipe.cooldown)


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, spared: Tensor) -> Tensor:
    """Return CLIP's symmetric loss of unit features [B, d]; the pairs lie on the diagonal.

    `spared` [B, B] bool: pairs that are no wrong answers to one another.
    """
    logits = (scale * images @ texts.T).masked_fill(spared, -torch.inf)
    target = torch.arange(len(logits))
    by_image = functional.cross_entropy(logits, target)
    return (by_image + functional.cross_entropy(logits.T, target)) / 2


class Training:
    """A model in training: everything that a checkpoint holds."""

    def __init__(self, model: str, recipe: Recipe) -> None:
        self.name, self.recipe = model, recipe
        self.clip = create_model(model, recipe)
        self.teacher = take_text_tower(self.clip) if recipe.distillation else None
        self.optimizer = create_optimizer(self.clip, recipe)
        self.average = {
            name: value.detach().clone() for name, value in self.clip.state_dict().items()
        }
        self.step = 0
        self.losses: list[float] = []
        """Losses since the last row of the log."""
        self.log: list[dict[str, float]] = []

    def update(self, pixels: Tensor, batch: Batch) -> None:
        """Take one step on `batch`, whose normalised images are `pixels` [B, 3, S, S]."""
        recipe, clip = self.recipe, self.clip
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            images = clip.encode_image(pixels.contiguous(memory_format=torch.channels_last))
        images = functional.normalize(images.float(), dim=-1)
        texts, scale = clip.encode_text(batch.texts, normalize=True), clip.logit_scale.exp()
        loss = contrastive_loss(images, texts, scale, related(batch.concepts))
        if self.teacher is not None:
            with torch.no_grad():
                goal = self.teacher.encode_image(pixels, normalize=True)
            loss = loss + recipe.distillation * (1 - (images * goal).sum(dim=1)).mean()
        self.losses.append(float(loss.detach()))
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), recipe.clip)
        self.optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        self.step += 1
        self._follow()

    @torch.no_grad()
    def _follow(self) -> None:
        # Early on the average would otherwise hold on to the random weights.
        decay = min(self.recipe.ema, (1 + self.step) / (10 + self.step))
        for name, value in self.clip.state_dict().items():
            if value.is_floating_point():
                self.average[name].lerp_(value, 1 - decay)
            else:
                self.average[name].copy_(value)

    def result(self) -> open_clip.CLIP:
        """Return a model with the averaged weights."""
        clip: open_clip.CLIP = open_clip.create_model(model_name(self.name), load_weights=False)
        clip.load_state_dict(self.average)
        return clip.eval()

    def save(self, path: Path) -> None:
        """Write the checkpoint, whole or not at all, even where the machine goes down."""
        state = {
            "model": self.name,
            "recipe": asdict(self.recipe),
            "weights": self.clip.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "losses": self.losses,
            "log": self.log,
        }
        partial = path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)

    def resume(self, path: Path) -> None:
        """Load a checkpoint, if there is one. Raises SystemExit where it is of another recipe.

        Recipes that differ in later steps alone are the same.
        """
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        saved, step = Recipe(**state["recipe"]), state["step"]
        if (state["model"], so_far(saved, step)) != (self.name, so_far(self.recipe, step)):
            raise SystemExit(f"{path} is of another recipe: {state['model']}, {saved}")
        self.clip.load_state_dict(state["weights"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.average = state["average"]
        self.step, self.losses, self.log = state["step"], state["losses"], state["log"]


def train(
    model: str,
    recipe: Recipe,
    corpus: Corpus,
    work: Path,
    *,
    every: int = 500,
    keep: int = 4000,
    seconds: float = CHECKPOINT_SECONDS,
) -> open_clip.CLIP:
    """Train or resume; return the model with the averaged weights. `last.pt` is the checkpoint,
    `log.jsonl` gets a row each `every` steps.

    `step-N.pt` is a copy of the checkpoint each `keep` steps: as `last.pt` it begins another
    ending.
    """
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = open_clip.get_tokenizer(model_name(model))

    def batches(min_designers: int, power: float) -> Batches:
        return Batches(
            corpus.pairs,
            corpus.pixels,
            corpus.monochrome,
            min_designers=min_designers,
            power=power,
            seed=recipe.seed,
            size=IMAGE_SIZE,
            batch_size=recipe.batch_size,
            tokenizer=tokenizer,
        )

    of_several, of_all = batches(3, 0.6), batches(1, 1.0)

    def batch_of(step: int) -> Batch:
        return (of_all if step >= recipe.all_concepts_from else of_several)(step)

    training = Training(model, recipe)
    training.resume(work / "last.pt")
    clip = training.clip
    normalise = _normaliser(clip)
    development = DevelopmentSet(corpus, tokenizer, IMAGE_SIZE)
    clock, start, saved = time.monotonic(), training.step, time.monotonic()
    with ThreadPoolExecutor(1) as loader:
        coming = loader.submit(batch_of, start)
        while training.step < recipe.steps:
            batch = coming.result()
            coming = loader.submit(batch_of, training.step + 1)
            training.update(normalise(batch.images), batch)
            row_due = training.step % every == 0 or training.step == recipe.steps
            if row_due:
                rate = recipe.batch_size * (training.step - start) / (time.monotonic() - clock)
                row = {
                    "step": training.step,
                    "loss": round(sum(training.losses) / len(training.losses), 4),
                    "lr": round(learning_rate(recipe, training.step - 1), 6),
                    "logit_scale": round(float(clip.logit_scale.detach().exp()), 2),
                    "images_per_s": round(rate),
                    **development.zero_shot(training.result(), normalise),
                }
                print(json.dumps(row), flush=True)  # noqa: T201
                training.log.append(row)
                training.losses = []
                clock, start = time.monotonic(), training.step
            if row_due or time.monotonic() - saved > seconds:
                training.save(work / "last.pt")
                _write_log(training.log, work / "log.jsonl")
                saved = time.monotonic()
            if training.step % keep == 0:
                training.save(work / f"step-{training.step}.pt")
    return training.result()


def export(
    model: open_clip.CLIP, tokenizer: open_clip.SimpleTokenizer, corpus: Corpus, path: Path
) -> None:
    """Write an open_clip checkpoint in fp16; rows of tokens that no caption holds are zero."""
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


def _write_log(rows: list[dict[str, float]], path: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    partial.replace(path)


def _recipe(model: str, changes: dict[str, Any]) -> Recipe:
    """Return the model's recipe with the fields that the command line names."""
    changed = {name: value for name, value in changes.items() if value is not None}
    return replace(RECIPES[model], **changed)


def main() -> None:
    """Train a model by the command line, and export it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(RECIPES), required=True)
    parser.add_argument("--source", type=Path, required=True, help="folder of @iconify/json")
    parser.add_argument("--cache", type=Path, required=True, help="of rendered drawings")
    parser.add_argument("--work", type=Path, required=True, help="log and checkpoint")
    parser.add_argument("--out", type=Path, help="default: <work>/open_clip_model.safetensors")
    parser.add_argument("--threads", type=int, default=2)
    for field in fields(Recipe):
        kind = type(field.default)
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=(lambda text: text == "true") if kind is bool else kind,
        )
    args = vars(parser.parse_args())
    torch.set_num_threads(args["threads"])
    model, work = args["model"], args["work"]
    recipe = _recipe(model, {field.name: args[field.name] for field in fields(Recipe)})
    corpus = load_corpus(args["source"], args["cache"])
    clip = train(model, recipe, corpus, work)
    tokenizer = open_clip.get_tokenizer(model_name(model))
    export(clip, tokenizer, corpus, args["out"] or work / "open_clip_model.safetensors")


if __name__ == "__main__":
    main()
