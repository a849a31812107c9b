"""The one training loop, whatever the algorithm."""

from __future__ import annotations

import contextlib
import hashlib
import math
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from carft_core.algorithms import Batch, Term
from carft_core.config import TrialConfig
from carft_core.data.loader import Loader, training_plan
from carft_core.device import autocast
from carft_core.errors import NonFinite
from carft_core.evaluate import open_others, predict, split_metrics
from carft_core.identity import identify
from carft_core.optim import adamw, learning_rate, schedule_of, warmup_steps
from carft_core.prepare import Bench, open_bench
from carft_core.run import RunFolder, RunResult, finish, load_progress, save_progress, save_weights


class Decision(Enum):
    """What `report` wants of a run."""

    CONTINUE = "continue"
    STOP = "stop"


@dataclass(frozen=True)
class EpochReport:
    """Where a run stands. Epoch 0 is the model before training."""

    epoch: int
    epochs: int
    step: int
    steps: int
    metrics: Mapping[str, float]
    seconds: float = 0.0
    timestamp: int = field(default_factory=lambda: time.time_ns() // 1_000_000)
    """Milliseconds since the Unix epoch, when it was measured."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


Report = Callable[[EpochReport], Decision]


def unwatched(report: EpochReport) -> Decision:
    """Go on, whatever happens."""
    del report
    return Decision.CONTINUE


FINITE_CHECK_EVERY = 50
"""Steps between two looks at whether the loss is finite: a look waits for the device."""


def train(
    config: TrialConfig,
    seed: int,
    *,
    report: Report = unwatched,
    workdir: Path | None = None,
    cache: Path | None = None,
) -> RunResult | None:
    """Train one run and evaluate it. None when `report` said STOP before the last epoch.

    With a `workdir` the run resumes there, and is only evaluated when it is trained already.
    Raises RequestError for what cannot be opened, NonFinite when the loss is not finite.
    """
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="carft-")))
        with contextlib.closing(epochs(config, seed, workdir=workdir, cache=cache)) as reports:
            for epoch in reports:
                if report(epoch) is Decision.STOP and epoch.epoch < epoch.epochs:
                    return None
        return finish(workdir, config, seed, cache=cache)


def epochs(
    config: TrialConfig,
    seed: int,
    *,
    workdir: Path | None = None,
    cache: Path | None = None,
) -> Generator[EpochReport, None, None]:
    """Train, and yield after each epoch; may be closed between two epochs.

    With a `workdir` every epoch is saved there before it is yielded; called again, training goes
    on behind the last saved epoch, to bit-identical weights on one CPU with the same number of
    threads. A run that is trained already yields nothing.

    Raises RequestError when model or data cannot be used as asked, NonFinite when the loss is not.
    """
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="carft-") as scratch:
            yield from epochs(config, seed, workdir=Path(scratch), cache=cache)
        return
    config, folder = config.for_seed(seed), RunFolder(workdir)
    folder.claim(config, seed, identify(config, seed, cache=cache))
    if folder.is_trained(config):
        return
    if not config.algorithm.trains:
        folder.mark_trained(seconds=0.0)
        return
    bench = open_bench(config, cache)
    open_others(config, bench, cache)  # what cannot be measured is told before anything trains
    run = _Run(config, seed, folder, bench)
    with run.loader:
        yield from run.epochs()


class _Run:
    """One run while it trains."""

    def __init__(self, config: TrialConfig, seed: int, folder: RunFolder, bench: Bench) -> None:
        self.config, self.seed, self.folder, self.bench = config, seed, folder, bench
        self.student = config.algorithm.student(bench.teacher).to(bench.device)
        parameters = list(config.algorithm.trainable(self.student))
        self.trained = [parameter for _, parameter in parameters if parameter.requires_grad]
        self.optimiser = adamw(parameters, config.optim)
        self.schedule = schedule_of(config.optim, bench.data.train, balanced=config.data.balanced)
        self.steps, self.epoch_count = self.schedule.steps, self.schedule.epochs
        self.warmup = warmup_steps(config.optim.warmup, self.steps)
        self.loader = Loader(
            bench.data.train,
            transform=bench.transform,
            plan=training_plan(
                bench.data.train,
                batch_size=config.optim.batch_size,
                seed=seed,
                balanced=config.data.balanced,
                whole_passes=config.optim.steps_per_epoch is None,
            ),
            seed=seed,
            workers=config.workers,
            pin_memory=bench.device.type == "cuda",
        )
        self.step = 0
        self.history: list[dict[str, Any]] = []
        self.best = -math.inf

    def epochs(self) -> Iterator[EpochReport]:
        self._resume()
        if not self.history:
            yield self._record(0, self._before_training(), seconds=0.0)
        for epoch in range(len(self.history), self.epoch_count + 1):
            began = time.perf_counter()
            metrics = self._train_epoch(epoch)
            seconds = time.perf_counter() - began
            metrics |= self._validate()
            yield self._record(epoch, metrics, seconds)
        self.folder.mark_trained(seconds=sum(item["seconds"] for item in self.history))

    def _resume(self) -> None:
        progress = load_progress(self.folder.checkpoint)
        if progress is None:
            return
        self.student.load_state_dict(progress["student"])
        self.optimiser.load_state_dict(progress["optimiser"])
        self.step, self.best = progress["step"], progress["best"]
        self.history = progress["history"]
        # A crash between the two has left the last epoch in the checkpoint alone, which goes.
        self.folder.write_history(self.history)

    def _record(self, epoch: int, metrics: Mapping[str, float], seconds: float) -> EpochReport:
        """Make the epoch durable, then hand it out. Raises NonFinite for what is no number."""
        self._check_finite(metrics, epoch)
        report = EpochReport(epoch, self.epoch_count, self.step, self.steps, dict(metrics), seconds)
        self.history.append(report.as_dict())
        classifier = self.config.algorithm.classifier(self.student, self.bench.teacher)
        validated = metrics[f"id/val/{self.bench.validated_by}"]
        if epoch > 0 and validated > self.best:
            self.best = validated
            save_weights(self.folder.weights("best_val"), classifier.state_dict())
        if epoch == self.epoch_count:
            save_weights(self.folder.weights("last"), classifier.state_dict())
        save_progress(
            self.folder.checkpoint,
            {
                "student": self.student.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "best": self.best,
                "history": self.history,
            },
        )
        self.folder.write_history(self.history)
        return report

    def _before_training(self) -> dict[str, float]:
        """The terms of the loss on the first batch and what the algorithm tells of its teacher."""
        images, labels, *_ = next(self.loader.steps(range(1)))
        # Under a gradient, as in training: without one some layers round differently.
        self.student.eval()
        values: dict[str, float] = {}
        for share, batch in self._micro_batches(images, labels):
            with autocast(self.bench.device, self.bench.precision):
                terms = self.config.algorithm.terms(self.student, batch, self.bench.teacher)
                told = self.config.algorithm.probe(batch, self.bench.teacher)
            of_terms = {name: float(term.value.detach()) for name, term in terms.items()}
            for name, value in {**of_terms, **told}.items():
                values[name] = values.get(name, 0.0) + share * value
        return {f"train/{name}": value for name, value in values.items()} | self._validate()

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """One pass over the training split, or `optim.steps_per_epoch`; the last may be cut."""
        sums: dict[str, Tensor] = {}
        images_seen, began = 0, time.perf_counter()
        set_mode(self.student, train=True, batch_norm=self.config.optim.batch_norm)
        if self.bench.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.bench.device)
        with _seeded(self.seed, epoch, self.bench.device):
            batches = self.loader.steps(self.schedule.of_epoch(epoch))
            for number, (images, labels, *_) in enumerate(batches):
                for name, value in self._update(images, labels).items():
                    sums[name] = sums.get(name, torch.zeros((), device=value.device)) + value * len(
                        labels
                    )
                images_seen += len(labels)
                if number % FINITE_CHECK_EVERY == 0:
                    self._check_finite(sums, epoch, "train/")
        self._check_finite(sums, epoch, "train/")
        seconds = time.perf_counter() - began
        return {
            **{f"train/{name}": float(total) / images_seen for name, total in sums.items()},
            "train/lr": self.optimiser.param_groups[0]["lr"],
            "system/images_per_s": images_seen / seconds,
            "system/peak_memory_mb": _peak_memory_mb(self.bench.device),
        }

    def _update(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One optimiser step, in micro-batches that add up to the batch's mean; the terms."""
        rate = learning_rate(
            self.step, steps=self.steps, warmup=self.warmup, peak=self.config.optim.lr
        )
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        values: dict[str, Tensor] = {}
        self.optimiser.zero_grad(set_to_none=True)
        for share, batch in self._micro_batches(images, labels):
            with autocast(self.bench.device, self.bench.precision):
                terms = self.config.algorithm.terms(self.student, batch, self.bench.teacher)
            (share * _loss(terms)).backward()
            for name, value in _logged(terms).items():
                values[name] = values.get(name, 0) + share * value
        if self.config.optim.clip is not None:
            clip_grad_norm_(self.trained, self.config.optim.clip)
        self.optimiser.step()
        self.step += 1
        return values

    def _micro_batches(self, images: Tensor, labels: Tensor) -> Iterator[tuple[float, Batch]]:
        """The batch in parts that fit into memory, each with its share of the images."""
        size = self.config.optim.micro_batch or len(labels)
        for first in range(0, len(labels), size):
            part = slice(first, first + size)
            batch = self._batch(images[part], labels[part])
            yield len(batch.labels) / len(labels), batch

    def _batch(self, images: Tensor, labels: Tensor) -> Batch:
        device, algorithm = self.bench.device, self.config.algorithm
        images = self.bench.transform.normalise(images.to(device, non_blocking=True))
        if device.type == "cuda":
            images = images.to(memory_format=torch.channels_last)
        features = None
        if "features" in algorithm.teacher_quantities:
            with autocast(device, self.bench.precision):
                features = self.bench.teacher.features(images)
        labels = labels.to(device, non_blocking=True)
        return Batch(images, labels, self.config.optim.label_smoothing, features)

    def _validate(self) -> dict[str, float]:
        """`id/val` of the model as it is; with `eval.every_epoch` test and shifts too."""
        splits = self.bench.evaluated_splits()
        names = list(splits) if self.config.eval.every_epoch else ["id/val"]
        classifier = self.config.algorithm.classifier(self.student, self.bench.teacher)
        metrics = {}
        for name in names:
            predictions = predict(
                classifier,
                splits[name],
                name,
                transform=self.bench.transform,
                device=self.bench.device,
                precision=self.bench.precision,
                batch_size=self.config.eval.batch_size,
                workers=self.config.workers,
            )
            for metric, value in split_metrics(predictions, self.bench.further_metrics).items():
                metrics[f"{name}/{metric}"] = value
        return metrics

    def _check_finite(
        self, values: Mapping[str, Tensor] | Mapping[str, float], epoch: int, group: str = ""
    ) -> None:
        for name, value in values.items():
            if not math.isfinite(float(value)):
                raise NonFinite(
                    f"{group}{name} is {float(value)} in epoch {epoch}, step {self.step}, "
                    f"at optim.lr {self.config.optim.lr:g}"
                )


def set_mode(student: nn.Module, *, train: bool, batch_norm: Literal["frozen", "train"]) -> None:
    """Training or evaluation mode; frozen batch norms keep the pre-training's statistics."""
    student.train(train)
    for module in student.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(train and batch_norm == "train")


def _loss(terms: Mapping[str, Term]) -> Tensor:
    """The sum of the weighted terms; one of weight 0 is left out of the graph."""
    return torch.stack([t.weight * t.value for t in terms.values() if t.weight != 0]).sum()


def _logged(terms: Mapping[str, Term]) -> dict[str, Tensor]:
    values = {name: term.value.detach() for name, term in terms.items()}
    return {"loss": _loss(terms).detach(), **values}


@contextlib.contextmanager
def _seeded(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """Global random state (dropout, stochastic depth) as a function of (seed, epoch) alone.

    So a resumed epoch draws what it would have drawn, and nobody else's state is touched.
    """
    devices = [device] if device.type == "cuda" else []
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield


def _peak_memory_mb(device: torch.device) -> float:
    """Of the device in this epoch on CUDA, else of the process so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
