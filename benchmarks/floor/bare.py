"""A run as a bare PyTorch loop over preloaded tensors: what training and evaluation cost at least.

No line of the product: torch and open_clip alone. channels_last, fused AdamW, the losses, the
schedule, the validation after each epoch and the final evaluation (top-1, NLL, ECE, Brier, context
KL and entropy in float64, WiSE-FT in between) that a run of the product has; no checkpoints, no
files, no rendering of images. The tensors are what `benchmarks.floor.preload.preload` made.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import open_clip
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import convert_conv2d_weight_memory_format

LAYOUT = torch.channels_last
ECE_BINS = 15
Batch = tuple[Tensor, Tensor]
State = Mapping[str, Tensor]


class Classifier(nn.Module):
    """An image tower and a head on its unit-norm features."""

    def __init__(self, visual: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.visual = visual
        self.head = nn.Parameter(head)

    def features(self, images: Tensor) -> Tensor:
        """Return unit-norm features [B, d] of normalised images [B, 3, S, S]."""
        return F.normalize(self.visual(images), dim=-1)


class Bare:
    """One recipe over preloaded tensors. The zero-shot model's predictions are computed beforehand,
    as a sweep's zero-shot baseline does; its context log-probabilities of training batches are kept
    from the first run that needs them: they are the same in all runs."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self.optim: Mapping[str, Any] = tensors["optim"]
        self.alphas: Sequence[float] = tensors["alphas"]
        self.scale: float = tensors["scale"]
        self.w_ctx: Tensor = tensors["w_ctx"]
        self.epochs = [_laid_out(epoch) for epoch in tensors["epochs"]]
        self.splits = {name: _laid_out(split) for name, split in tensors["splits"].items()}
        model = open_clip.create_model(f"local-dir:{tensors['model']}")
        head = tensors["scale"] * tensors["w_cls"]
        self.teacher = Classifier(model.visual, head)
        convert_conv2d_weight_memory_format(self.teacher, LAYOUT)
        self.teacher.requires_grad_(False).eval()
        self.zero_shot = {name: predict([self.teacher], of)[0] for name, of in self.splits.items()}
        self.frozen: dict[tuple[int, int], Tensor] = {}
        """The teacher's context log-probabilities [B, K] by epoch and batch."""

    def run(self, kl_weight: float | None) -> dict[str, Any]:
        """Train (fine-tuning if `kl_weight` is None, else CAR-FT) and evaluate; return `seconds`,
        of these `training`, `metrics` by model and `history`."""
        began = time.perf_counter()
        student, training, history = self.train(kl_weight)
        metrics = self.evaluate(student.state_dict(), self.alphas, self.splits)
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "training": training, "metrics": metrics, "history": history}

    def train(self, kl_weight: float | None) -> tuple[Classifier, float, list[dict[str, float]]]:
        """Return the tuned model, the seconds of its steps, its validation after each epoch."""
        optim = self.optim
        student = copy.deepcopy(self.teacher).requires_grad_(True)
        parameters = list(student.parameters())
        optimiser = torch.optim.AdamW(
            parameters, lr=optim["lr"], weight_decay=optim["weight_decay"], fused=True
        )
        steps = sum(len(epoch) for epoch in self.epochs)
        warmup = optim["warmup"]
        warmup = min(round(warmup * steps if warmup < 1 else warmup), steps - 1)
        step, seconds, history = 0, 0.0, [self._validate(student)]
        for number, epoch in enumerate(self.epochs):
            began = time.perf_counter()
            student.train()
            losses = torch.zeros(())
            for place, (images, labels) in enumerate(epoch):
                for group in optimiser.param_groups:
                    group["lr"] = optim["lr"] * _schedule(step, warmup, steps)
                optimiser.zero_grad(set_to_none=True)
                loss = self._loss(student, images, labels, (number, place), kl_weight)
                loss.backward()
                if optim["clip"] is not None:
                    nn.utils.clip_grad_norm_(parameters, optim["clip"])
                optimiser.step()
                losses += loss.detach() * len(labels)
                step += 1
            loss_of_epoch = float(losses) / sum(len(labels) for _, labels in epoch)
            seconds += time.perf_counter() - began
            history.append({"train/loss": loss_of_epoch, **self._validate(student)})
        return student, seconds, history

    def _loss(
        self,
        student: Classifier,
        images: Tensor,
        labels: Tensor,
        batch: tuple[int, int],
        kl_weight: float | None,
    ) -> Tensor:
        features = student.features(images)
        logits = features @ student.head.T
        loss = F.cross_entropy(logits, labels, label_smoothing=self.optim["label_smoothing"])
        if kl_weight is None:
            return loss
        if batch not in self.frozen:
            with torch.no_grad():
                self.frozen[batch] = self._contexts(self.teacher.features(images))
        tuned, frozen = self._contexts(features), self.frozen[batch]
        return loss + kl_weight * F.kl_div(tuned, frozen, reduction="batchmean", log_target=True)

    def _contexts(self, features: Tensor) -> Tensor:
        return F.log_softmax(self.scale * features @ self.w_ctx.T, dim=1)

    def _validate(self, student: Classifier) -> dict[str, float]:
        (predicted,) = predict([student], self.splits["id/val"])
        return {f"id/val/{name}": value for name, value in split_metrics(*predicted[1:]).items()}

    def evaluate(
        self, tuned: State, alphas: Sequence[float], splits: Mapping[str, Iterable[Batch]]
    ) -> dict[str, dict[str, float]]:
        """Return the metrics of the tuned model (`unmerged`) and of WiSE-FT at each alpha.

        Batches outside, models inside. The model at alpha 1 is the tuned one and that at alpha 0
        the zero-shot one: neither is computed again.
        """
        start = self.teacher.state_dict()
        states = {"unmerged": tuned}
        for alpha in alphas:
            if alpha not in (0, 1):
                states[f"wise_ft@{alpha:g}"] = {
                    name: (1 - alpha) * start[name] + alpha * tensor
                    for name, tensor in tuned.items()
                }
        models = {label: copy.deepcopy(self.teacher) for label in states}
        for label, state in states.items():
            models[label].load_state_dict(dict(state))
        metrics: dict[str, dict[str, float]] = {label: {} for label in states}
        if 0 in alphas:
            metrics["wise_ft@0"] = {}
        for name, batches in splits.items():
            predicted = dict(zip(models, predict(list(models.values()), batches), strict=True))
            frozen = self.zero_shot[name]
            if 0 in alphas:
                predicted["wise_ft@0"] = frozen
            for label, (features, logits, labels) in predicted.items():
                of_split = split_metrics(logits, labels) | self._moved(frozen[0], features)
                metrics[label] |= {f"{name}/{key}": value for key, value in of_split.items()}
        for values in metrics.values():
            shifts = [values[f"{name}/top1"] for name in splits if name.startswith("ood/")]
            values["ood/mean/top1"] = sum(shifts) / len(shifts)
        if 1 in alphas:
            metrics["wise_ft@1"] = metrics["unmerged"]
        return metrics

    def _moved(self, frozen: Tensor, features: Tensor) -> dict[str, float]:
        """Return the context distribution's KL from that of `frozen`, `kl`, and its `entropy`."""
        w_ctx = self.w_ctx.double().T
        p, q = (
            F.log_softmax(self.scale * unit.double() @ w_ctx, dim=1) for unit in (frozen, features)
        )
        kl = F.kl_div(q, p, reduction="batchmean", log_target=True)
        return {"kl": float(kl), "entropy": float(-(q.exp() * q).sum(dim=1).mean())}


@torch.inference_mode()
def predict(
    models: Sequence[Classifier], batches: Iterable[Batch]
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return (features [N, d], logits [N, C], labels [N]) of each model; read batches once."""
    modes = [model.training for model in models]
    outputs: list[list[Tensor]] = [[] for _ in models]
    labels = []
    for model in models:
        model.eval()
    for images, of_batch in batches:
        images = images.contiguous(memory_format=LAYOUT)
        labels.append(of_batch)
        for model, features in zip(models, outputs, strict=True):
            features.append(model.features(images))
    for model, mode in zip(models, modes, strict=True):
        model.train(mode)
    joined = [torch.cat(features) for features in outputs]
    return [
        (features, features @ model.head.T, torch.cat(labels))
        for model, features in zip(models, joined, strict=True)
    ]


def split_metrics(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return `top1`, `nll`, `ece` and `brier`, computed in float64."""
    log_p = F.log_softmax(logits.double(), dim=1)
    p = log_p.exp()
    confidence, prediction = p.max(dim=1)
    right = (prediction == labels).double()
    edges = torch.arange(1, ECE_BINS, dtype=torch.float64) / ECE_BINS
    surplus = torch.zeros(ECE_BINS, dtype=torch.float64)
    surplus.index_add_(0, torch.bucketize(confidence, edges), right - confidence)
    p_label = p.gather(1, labels[:, None])[:, 0]
    return {
        "top1": float(right.mean()),
        "nll": float(F.nll_loss(log_p, labels)),
        "ece": float(surplus.abs().sum() / len(labels)),
        "brier": float((p.square().sum(dim=1) - 2 * p_label + 1).mean()),
    }


def _laid_out(batches: Iterable[Batch]) -> list[Batch]:
    return [(images.contiguous(memory_format=LAYOUT), labels) for images, labels in batches]


def _schedule(step: int, warmup: int, steps: int) -> float:
    """Return the learning rate as a share of its peak: linear warm-up, then half a cosine to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
