"""Pre-train a built-in CLIP on named icons.

`python -m tools.builtin.tiny_clip --model convnext --source node_modules/@iconify/json
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
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.transformer import PatchDropout
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from carft_sweep.carft_core.data.families.icon_shift import PLAIN_TEMPLATES
from tools.builtin.batches import Batch, Batches, related
from tools.builtin.corpus import Corpus, load_corpus
from tools.builtin.zero_shot import DevelopmentSet

CONFIG = Path(__file__).parents[2] / "carft_core" / "builtin" / "tiny_clip"
NAME = f"local-dir:{CONFIG}"
MODELS = Path(__file__).parent / "models"
IMAGE_SIZE = 32
MAX_LOGIT_SCALE = math.log(100)
CHECKPOINT_SECONDS = 180


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; the defaults are those of the shipped one."""

    steps: int = 5000
    batch_size: int = 256
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    warmup: int = 300
    cooldown: int = 0
    """Over how many last steps the rate falls in a line from `lr`, which it has until then; 0: the
    rate falls in a cosine from the warm-up on."""
    clip: float = 1.0
    layer_scale: float = 0.1
    ema: float = 0.0
    """What the averaged weights, which are then the result, keep of themselves in a step; 0: the
    weights themselves are."""
    strong_views: bool = False
    prototypes: float = 0.0
    """Weight of a second loss, which classifies images and captions among one learned vector of
    each concept; they are not part of the result. 0: there is none."""
    prototypes_from: int = 0
    """The step from which there is that loss; the vectors begin as features of captions."""
    spare_related: bool = False
    """Whether "rocket launch" is no wrong answer to "rocket"."""
    patch_dropout: float = 0.0
    """Share of a ViT's patches that a step leaves out; the result leaves out none."""
    bf16: bool = False
    seed: int = 0


_LONG = Recipe(
    steps=48000,
    batch_size=128,
    lr=1e-3,
    warmup=1000,
    cooldown=12000,
    ema=0.9995,
    spare_related=True,
)
RECIPES: dict[str, Recipe] = {
    "shipped": Recipe(),
    "convnext": _LONG,
    "vit": replace(_LONG, weight_decay=0.1, bf16=True),
}


def so_far(recipe: Recipe, step: int) -> Recipe:
    """The recipe without what it says of later steps only: a fall of the rate, prototypes."""
    if recipe.cooldown and step <= recipe.steps - recipe.cooldown:
        recipe = replace(recipe, steps=0, cooldown=0)
    if not recipe.prototypes or step <= recipe.prototypes_from:
        recipe = replace(recipe, prototypes=0.0, prototypes_from=0)
    return recipe


def model_name(model: str) -> str:
    """What open_clip opens: the shipped folder, or a config beside this file."""
    return NAME if model == "shipped" else f"local-dir:{MODELS / model}"


def create_model(model: str, recipe: Recipe) -> open_clip.CLIP:
    """The untrained model; ConvNeXt's usual layer scale, 1e-6, is for much longer training."""
    torch.manual_seed(recipe.seed)
    clip: open_clip.CLIP = open_clip.create_model(model_name(model), load_weights=False)
    for name, parameter in clip.named_parameters():
        if name.endswith(".gamma"):
            nn.init.constant_(parameter, recipe.layer_scale)
    if recipe.patch_dropout:
        clip.visual.patch_dropout = PatchDropout(recipe.patch_dropout)
    return clip.to(memory_format=torch.channels_last)


def create_optimizer(
    model: open_clip.CLIP, prototypes: nn.Parameter, recipe: Recipe
) -> torch.optim.AdamW:
    """AdamW; matrices decay, while norms, biases, scales and embeddings do not."""
    decay: list[nn.Parameter] = []
    still = [prototypes]
    for name, parameter in model.named_parameters():
        small = parameter.ndim < 2 or "embedding" in name
        (still if small else decay).append(parameter)
    groups = [
        {"params": decay, "weight_decay": recipe.weight_decay},
        {"params": still, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine down to zero, or constant with a line down to zero."""
    if step < recipe.warmup:
        return recipe.lr * (step + 1) / recipe.warmup
    if recipe.cooldown:
        return recipe.lr * min(1.0, (recipe.steps - step) / recipe.cooldown)
    done = (step - recipe.warmup) / max(1, recipe.steps - recipe.warmup)
    return recipe.lr * 0.5 * (1 + math.cos(math.pi * done))


def contrastive_loss(
    images: Tensor, texts: Tensor, scale: Tensor, spared: Tensor | None = None
) -> Tensor:
    """CLIP's symmetric loss of unit features [B, d]; the pairs lie on the diagonal.

    `spared` [B, B] bool: pairs that are no wrong answers to one another.
    """
    logits = scale * images @ texts.T
    if spared is not None:
        logits = logits.masked_fill(spared, -torch.inf)
    target = torch.arange(len(logits))
    by_image = functional.cross_entropy(logits, target)
    return (by_image + functional.cross_entropy(logits.T, target)) / 2


def prototype_loss(
    features: Tensor, prototypes: Tensor, scale: Tensor, target: Tensor, spared: Tensor | None
) -> Tensor:
    """Cross entropy of unit features [B, d] among the concepts' prototypes [C, d].

    `spared` [B, C] bool: concepts that are no wrong answers.
    """
    logits = scale * features @ functional.normalize(prototypes, dim=-1).T
    if spared is not None:
        logits = logits.masked_fill(spared, -torch.inf)
    return functional.cross_entropy(logits, target)


class Training:
    """A model in training: everything that a checkpoint holds."""

    def __init__(self, model: str, recipe: Recipe, concepts: Sequence[str]) -> None:
        self.name, self.recipe, self.concepts = model, recipe, concepts
        self.related = related([frozenset(concept.split()) for concept in concepts])
        self.clip = create_model(model, recipe)
        width = self.clip.text_projection.shape[1]
        self.prototypes = nn.Parameter(torch.zeros(len(concepts), width))
        self.optimizer = create_optimizer(self.clip, self.prototypes, recipe)
        self.average = {
            name: value.detach().clone() for name, value in self.clip.state_dict().items()
        }
        self.step = 0
        self.losses: list[float] = []
        """Since the last row of the log."""
        self.log: list[dict[str, float]] = []

    def update(self, pixels: Tensor, batch: Batch) -> None:
        """One step on normalised images [B, 3, S, S]."""
        recipe, clip = self.recipe, self.clip
        # Dropped patches are then a function of the step, as a resumed training needs.
        torch.manual_seed(recipe.seed * 1_000_003 + self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.step)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bf16):
            images = clip.encode_image(pixels.contiguous(memory_format=torch.channels_last))
        images = functional.normalize(images.float(), dim=-1)
        texts, scale = clip.encode_text(batch.texts, normalize=True), clip.logit_scale.exp()
        spared = self.related[batch.concepts] if recipe.spare_related else None
        among = None if spared is None else spared[:, batch.concepts]
        loss = contrastive_loss(images, texts, scale, among)
        self.losses.append(float(loss.detach()))
        if recipe.prototypes and self.step >= recipe.prototypes_from:
            if self.step == recipe.prototypes_from:
                self._begin_prototypes()
            both, twice = torch.cat([images, texts]), torch.cat([batch.concepts] * 2)
            mask = None if spared is None else torch.cat([spared] * 2)
            second = prototype_loss(both, self.prototypes, scale, twice, mask)
            loss = loss + recipe.prototypes * second
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(clip.parameters(), recipe.clip)
        self.optimizer.step()
        with torch.no_grad():
            clip.logit_scale.clamp_(0, MAX_LOGIT_SCALE)
        self.step += 1
        self._follow()

    @torch.no_grad()
    def _begin_prototypes(self) -> None:
        tokenizer = open_clip.get_tokenizer(model_name(self.name))
        tokens = tokenizer([PLAIN_TEMPLATES[0].format(concept) for concept in self.concepts])
        features = [self.clip.encode_text(part, normalize=True) for part in tokens.split(512)]
        self.prototypes.copy_(torch.cat(features))

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
        """A model with the averaged weights, which are the weights themselves where `ema` is 0."""
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
            "prototypes": self.prototypes.detach(),
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
        """Take over a checkpoint, if there is one; SystemExit where it is of another recipe.

        Recipes that have made no difference until then are the same.
        """
        if not path.exists():
            return
        state = torch.load(path, weights_only=True)
        saved, step = Recipe(**state["recipe"]), state["step"]
        if (state["model"], so_far(saved, step)) != (self.name, so_far(self.recipe, step)):
            raise SystemExit(f"{path} is of another recipe: {state['model']}, {saved}")
        self.clip.load_state_dict(state["weights"])
        self.prototypes.data.copy_(state["prototypes"])
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
    """Train or resume: `log.jsonl` gets a row each `every` steps, `last.pt` is the checkpoint.

    `step-N.pt` is a copy of it each `keep` steps: taken as `last.pt`, it begins another ending.
    """
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = open_clip.get_tokenizer(model_name(model))
    batches = Batches(
        corpus.pairs,
        corpus.pixels,
        corpus.monochrome,
        seed=recipe.seed,
        size=IMAGE_SIZE,
        batch_size=recipe.batch_size,
        tokenizer=tokenizer,
        strong=recipe.strong_views,
    )
    training = Training(model, recipe, batches.concepts)
    training.resume(work / "last.pt")
    clip = training.clip
    normalise = _normaliser(clip)
    development = DevelopmentSet(corpus, tokenizer, IMAGE_SIZE)
    clock, start, saved = time.monotonic(), training.step, time.monotonic()
    with ThreadPoolExecutor(1) as loader:
        coming = loader.submit(batches, start)
        while training.step < recipe.steps:
            batch = coming.result()
            coming = loader.submit(batches, training.step + 1)
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
    """The model's recipe with the fields that the command line names."""
    changed = {name: value for name, value in changes.items() if value is not None}
    return replace(RECIPES[model], **changed)


def main() -> None:
    """Command line."""
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
    given = vars(parser.parse_args())
    torch.set_num_threads(given["threads"])
    model, work = given["model"], given["work"]
    recipe = _recipe(model, {field.name: given[field.name] for field in fields(Recipe)})
    corpus = load_corpus(given["source"], given["cache"])
    clip = train(model, recipe, corpus, work)
    tokenizer = open_clip.get_tokenizer(model_name(model))
    export(clip, tokenizer, corpus, given["out"] or work / "open_clip_model.safetensors")


if __name__ == "__main__":
    main()
