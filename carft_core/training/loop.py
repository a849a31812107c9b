"""The one training loop, whatever the algorithm."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from carft_sweep.carft_core.algorithms import Batch, blame_own_code, loss_and_terms
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data.bank import Bank, Kind
from carft_sweep.carft_core.data.loader import (
    BatchRange,
    BatchSource,
    LoadedBatch,
    RankPlan,
    training_plan,
)
from carft_sweep.carft_core.errors import NonFinite, RequestError
from carft_sweep.carft_core.evaluation.measure import predict, split_metrics
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.clip import checkpoint_gradients
from carft_sweep.carft_core.models.teacher import on_device, to_views
from carft_sweep.carft_core.runs.evaluations import RunResult, finish, is_complete
from carft_sweep.carft_core.runs.folder import DAMAGED, RunFolder
from carft_sweep.carft_core.runs.identity import check_ranks, identify
from carft_sweep.carft_core.runs.result import Decision, EpochReport
from carft_sweep.carft_core.training.compilation import compile_towers, eager_unless
from carft_sweep.carft_core.training.numerics import (
    autocast,
    peak_memory_mb,
    reset_peak_memory,
    seeded,
    to_device,
)
from carft_sweep.carft_core.training.optim import (
    Schedule,
    freeze_all_but,
    learning_rate,
    schedule_of,
    warmup_steps,
)
from carft_sweep.carft_core.training.ranks import current_ranks
from carft_sweep.carft_core.training.resumption import DamagedCheckpoint, restore
from carft_sweep.carft_core.training.setup import RETENTION, RunSetup, open_setup
from carft_sweep.carft_core.training.step_log import Logs, StepLog

_LOG = logging.getLogger(__name__)

FINITE_CHECK_EVERY = 50
"""Steps between two looks at whether the loss is finite: a look waits for the device."""
CHECKPOINT_SHARE, CHECKPOINT_EVERY = 0.01, 300.0
"""Checkpoints take this share of the time, but are at most so many seconds (or one epoch) apart. A
crash costs what was trained after the last one."""
FIRST_SAVING = 0.1
"""Seconds that a run's first checkpoint is taken to need."""


def train(
    config: TrialConfig,
    seed: int,
    *,
    report: Callable[[EpochReport], Decision] = lambda _: Decision.CONTINUE,
    workdir: Path | None = None,
) -> RunResult | None:
    """Train one run, evaluate it, and return its result. None when `report` returned STOP before
    the last epoch.

    With a `workdir` the run resumes there, and is only evaluated when it is trained already. Where
    it is one of several ranks (`training.ranks`), rank 0's `report` and `workdir` count. Raises
    RequestError where model or data cannot be opened, NonFinite when the loss is not finite.
    """
    world = current_ranks()
    with contextlib.ExitStack() as stack:
        if workdir is None:
            workdir = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="carft-")))
        workdir = Path(world.agree(str(workdir)))
        run = _begin(config, seed, workdir)
        if run is not None:
            stack.enter_context(run.teacher.loader)  # its workers evaluate the run as well
            with contextlib.closing(run.epochs()) as reports:
                for epoch in reports:
                    stops = world.agree(report(epoch) is Decision.STOP)
                    if stops and epoch.epoch < epoch.epochs:
                        return None
            del run  # optimiser and gradients, which would lie on the device meanwhile
        return finish(workdir, config, seed)


def epochs(
    config: TrialConfig, seed: int, *, workdir: Path | None = None
) -> Generator[EpochReport, None, None]:
    """Train, and yield the report of each epoch; the generator may be closed between two epochs.

    With a `workdir` the history is kept there at every epoch, and a checkpoint as often as
    `CHECKPOINT_SHARE` allows and when the generator is closed. Called again, training continues
    after the checkpoint, to bit-identical weights on one CPU with the same number of threads;
    epochs that came after it are trained and yielded again. A run that is trained yields nothing.

    Raises RequestError when model or data cannot be used as asked, NonFinite when the loss is not
    finite, OSError when a checkpoint cannot be read from its disk.
    """
    if workdir is None:
        with tempfile.TemporaryDirectory(prefix="carft-") as scratch:
            yield from epochs(config, seed, workdir=Path(scratch))
        return
    run = _begin(config, seed, workdir)
    if run is not None:
        with run.teacher.loader:
            yield from run.epochs()


def _begin(config: TrialConfig, seed: int, workdir: Path) -> Run | None:
    """Claim a run's folder and return the opened run; None where nothing is left to train."""
    world = current_ranks()
    config, folder = config.for_seed(seed), RunFolder(workdir, writes=world.is_main)
    check_ranks(config, world.size)
    if world.is_main:
        folder.claim(config, seed, identify(config, seed))
    is_done = folder.is_trained(config) or (
        not config.keep.weights and world.is_main and is_complete(workdir, config)
    )
    if world.agree(is_done):
        return None
    if not config.algorithm.trains:
        folder.mark_trained(seconds=0.0)
        return None
    folder.unmark_trained()
    with blame_own_code(config.algorithm):
        return Run(config, seed, folder, open_setup(config))


class Run:
    """One run while it trains."""

    def __init__(self, config: TrialConfig, seed: int, folder: RunFolder, setup: RunSetup) -> None:
        self.config, self.seed, self.folder, self.setup = config, seed, folder, setup
        self.teacher, self.world = setup.teacher, current_ranks()
        self.device = self.teacher.device
        self.algorithm, self.optim = config.algorithm, config.optim
        self._build()
        images, balanced = self.teacher.splits["train"], config.data.balanced
        self.plan = training_plan(
            images,
            batch_size=self.optim.batch_size,
            seed=seed,
            balanced=balanced,
            whole_passes=self.optim.steps_per_epoch is None,
        )
        self.schedule = schedule_of(self.optim, images, balanced=balanced)
        if self.algorithm.solves:
            self.schedule = Schedule(steps=1, per_epoch=1)
        # Workers hide what loading costs, and would have to wait for the disk.
        is_worth_keeping = images.source.decodes and not self.teacher.workers
        self.batches = BatchSource(
            "train",
            self.plan if self.world.size == 1 else RankPlan(self.plan, self.world),
            seed,
            self.view_bank if is_worth_keeping else None,
        )
        self.steps, self.epoch_count = self.schedule.steps, self.schedule.epochs
        self.warmup = warmup_steps(self.optim.warmup, self.steps)
        self.step = 0
        self.compiled_size = 0
        """The size of the batches that the towers are compiled for; 0: they are not."""
        self.warnings: list[str] = []
        self.history: list[dict[str, Any]] = []
        self.reported = {report["epoch"]: report for report in self.folder.history()}
        """By epoch what an earlier attempt reported, until it is reported again."""
        self.step_log = StepLog(folder.path, self.device, writes=folder.writes)
        self.valued_by = f"id/val/{setup.family.validated_by}"
        self.keeps_best = config.keep.result == "best_val"
        self.best = -math.inf
        self.saved_at, self.saving_took = time.monotonic(), FIRST_SAVING

    def _build(self) -> None:
        """Build module and optimiser as they are before the first step."""
        with seeded(self.seed, 0, self.device):
            model = self.algorithm.build(self.teacher)
        self.model = on_device(model, self.device)
        if self.optim.grad_checkpointing and not self.algorithm.solves:
            checkpoint_gradients(self.model, self.teacher.classifier.visual)
        groups = self.algorithm.groups(self.model, self.optim)
        self.trained = freeze_all_but(self.model, groups)
        self.optimiser = self.algorithm.optimiser(groups, self.optim)

    @functools.cached_property
    def views_key(self) -> list[object]:
        """Key of the cache of training views: what decides them but for the number of the step."""
        whole_passes = self.optim.steps_per_epoch is None
        plan = self.config.data.balanced, whole_passes, self.optim.batch_size
        return self.teacher.training_views(self.seed, *plan, *self.world.cache_key())

    @functools.cached_property
    def view_bank(self) -> Bank:
        """The bank of training views of photographs."""
        side = self.teacher.transform.size
        return self._bank("views", self.views_key, torch.empty(3, side, side, dtype=torch.uint8))

    @functools.cached_property
    def feature_bank(self) -> Bank:
        """The bank of the teacher's features of this run's batches."""
        key = self.teacher.training_features(self.optim.micro_batch, self.views_key)
        return self._bank("features", key, self.teacher.w_cls[0].cpu())

    def _bank(self, kind: Kind, key: list[object], like: Tensor) -> Bank:
        """Return a bank of the batches of this run; `like` is the tensor of one image."""
        return Bank(
            kind,
            key,
            steps=self.schedule.steps,
            per_epoch=self.schedule.per_epoch,
            like=like.expand(len(self.world.shard(self.plan(0).rows)), *like.shape),
        )

    def epochs(self) -> Generator[EpochReport, None, None]:
        """Train from the checkpoint on, if there is one, and yield each epoch's report."""
        with blame_own_code(self.algorithm):
            yield from self._epochs()

    def _epochs(self) -> Generator[EpochReport, None, None]:
        reset_peak_memory(self.device)
        resumed = self._resume()
        if self.world.agree([resumed, self.step]) != [resumed, self.step]:
            raise RuntimeError("another rank resumed from another checkpoint")
        if not resumed:
            with self.teacher.arithmetic(), seeded(self.seed, 0, self.device):
                self.algorithm.start(self.model, self.teacher)
        if self.teacher.compiled:
            set_training_mode(self.model, self.optim.batch_norm)
            warning = compile_towers(self.model, self.teacher, self._micro_batch_size())
            self.warnings = [] if warning is None else [warning]
            self.compiled_size = 0 if warning else self._micro_batch_size()
        self.teacher.loader.expect(self._parts())
        try:
            if not self.history:
                yield self._record(0, self._validate(), seconds=0.0)
            for epoch in range(len(self.history), self.epoch_count + 1):
                began = time.perf_counter()
                metrics = self._solve() if self.algorithm.solves else self._train_epoch(epoch)
                seconds = time.perf_counter() - began
                metrics |= self._validate()
                self.algorithm.after_epoch(self.model, metrics)
                yield self._record(epoch, metrics, seconds)
        except GeneratorExit:  # closed between two epochs
            self._save_checkpoint()
            raise
        seconds = sum(item["seconds"] for item in self.history)
        self.folder.mark_trained(seconds=seconds, warnings=self.warnings)

    def _resume(self) -> bool:
        """Load the checkpoint, and return whether one exists and fits."""
        progress = self.folder.load_checkpoint()
        if progress is None:
            return False
        try:
            best_by = self.valued_by if self.keeps_best else None
            self.step, self.best, self.history = restore(
                progress, self.model, self.optimiser, best_by=best_by
            )
        except DamagedCheckpoint as error:
            _LOG.warning(DAMAGED, self.folder.checkpoint, error)
            self._build()  # some of it may have been loaded
            return False
        self._write_history()
        return True

    def _save_checkpoint(self) -> None:
        began = time.monotonic()
        self.folder.save_checkpoint(
            {
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "step": self.step,
                "best": self.best,
                "history": self.history,
            }
        )
        self.saved_at = time.monotonic()
        self.saving_took = self.saved_at - began

    def _record(self, epoch: int, metrics: Mapping[str, float], seconds: float) -> EpochReport:
        """Write an epoch's report durably; return it. Raises NonFinite for metrics that are not
        finite."""
        self._check_finite(metrics, epoch)
        report = EpochReport(epoch, self.epoch_count, self.step, self.steps, dict(metrics), seconds)
        earlier = self.reported.get(epoch)
        if earlier is not None and _results(earlier["metrics"]) == _results(metrics):
            # Trained again after a resumption: with its first time it is tracked once.
            report = EpochReport(**earlier)
        self.history.append(report.as_dict())
        if self.keeps_best and epoch > 0 and metrics[self.valued_by] > self.best:
            self.best = metrics[self.valued_by]
            self.folder.save_weights("best_val", self.model.state_dict())
        if epoch == self.epoch_count:
            self.folder.save_weights("last", self.model.state_dict())
        # Before the checkpoint: a run that resumed from a newer one would never report this epoch.
        self._write_history()
        wait = min(CHECKPOINT_EVERY, self.saving_took / CHECKPOINT_SHARE)
        if epoch < self.epoch_count and time.monotonic() - self.saved_at > wait:
            self._save_checkpoint()
        return report

    def _write_history(self) -> None:
        """Write the reports of all epochs, also of those reported before that are to be trained
        again."""
        written = {report["epoch"] for report in self.history}
        ahead = [report for epoch, report in self.reported.items() if epoch not in written]
        self.folder.write_history([*self.history, *ahead])

    def _solve(self) -> dict[str, float]:
        """Call `Algorithm.solve` in place of steps; return the metrics of the run's one epoch."""
        with self.teacher.arithmetic(), seeded(self.seed, 1, self.device):
            values = self.algorithm.solve(self.model, self.teacher)
        self.world.copy(self.model.state_dict())
        self.step = 1
        self._check_finite(values, 1, "train/")
        return {
            **{f"train/{name}": value for name, value in values.items()},
            "system/peak_memory_mb": peak_memory_mb(self.device),
        }

    def _train_epoch(self, epoch: int) -> dict[str, float]:
        """Train a pass over the training split, or `optim.steps_per_epoch`; the last epoch may be
        shorter. Return means of logged values over the epoch's images, and the values of the run's
        first step."""
        sums, first = Logs(), Logs()
        began = time.perf_counter()
        set_training_mode(self.model, self.optim.batch_norm)
        self.world.copy(self.model.state_dict())  # so that roundings of devices never add up
        self.step_log.begin_epoch()
        with self.teacher.arithmetic(), seeded(self.seed, epoch, self.device, self.world.rank):
            steps = self.schedule.of_epoch(epoch)
            for number, loaded in enumerate(self.teacher.loader.steps(self.batches, steps)):
                count = len(loaded.labels)
                if self.world.size > 1:
                    count = len(self.plan(self.step).rows)
                values = self._update(self._batch(loaded), self.world.share(count))
                if self.step == 1:
                    first.add(values, 1)
                sums.add(values, count)
                rate = self.optimiser.param_groups[0]["lr"]
                self.step_log.add(self.step, values["loss"], rate, count)
                if number % FINITE_CHECK_EVERY == 0:
                    self._check_finite(sums.means(), epoch, "train/")
        means = sums.means()
        self._check_finite(means, epoch, "train/")
        self._check_same()
        return {
            **{f"train/{name}": value for name, value in means.items()},
            **{f"train/first/{name}": value for name, value in first.means().items()},
            "train/lr": self.optimiser.param_groups[0]["lr"],
            "system/images_per_s": sums.weight / (time.perf_counter() - began),
            "system/peak_memory_mb": peak_memory_mb(self.device),
        }

    def _check_same(self) -> None:
        """Raise RequestError where ranks have different weights."""
        differing = self.world.differing(self.model.state_dict())
        if differing:
            raise RequestError(
                f"{self.algorithm.name} changes {', '.join(differing[:3])} by the images of each "
                "process, so it cannot be trained on several GPUs; set resources.gpus: 1"
            )

    def _update(self, batch: Batch, of_step: float = 1.0) -> dict[str, Tensor]:
        """Take one optimiser step, with this rank's part of the batch, and `of_step`, its share of
        the images; return the logged values, on the device."""
        rate = learning_rate(self.step, steps=self.steps, warmup=self.warmup, peak=self.optim.lr)
        for group in self.optimiser.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)
        logs: list[dict[str, Tensor]] = []

        def closure() -> Tensor:
            self.optimiser.zero_grad(set_to_none=True)
            values: dict[str, Tensor] = {}
            for of_batch, part in self._micro_batches(batch):
                share = of_step * of_batch
                size = min(len(part.labels), self.optim.micro_batch or len(part.labels))
                with eager_unless(self.compiled_size, size):
                    with autocast(self.device, self.teacher.precision):
                        loss, terms = loss_and_terms(self.algorithm, self.model, part, self.teacher)
                    (share * loss).backward()
                for name, value in {"loss": loss, **terms}.items():
                    values[name] = values.get(name, 0) + share * value.detach()
            values = self.world.sum_gradients(self.trained, values)
            if self.optim.clip is not None:
                clip_grad_norm_(self.trained, self.optim.clip)
            logs.append(values)
            return values["loss"]

        self.optimiser.step(closure)  # type: ignore[arg-type]  # a tensor is a float to it
        with torch.no_grad():
            self.algorithm.after_step(self.model, self.step, self.steps)
        self.step += 1
        return logs[0]  # sam computes a second loss, elsewhere

    def _micro_batches(self, batch: Batch) -> Iterator[tuple[float, Batch]]:
        """Yield the batch in parts that fit into memory, each with its share of the images. A batch
        of coupled items is one part, which the loss divides itself."""
        size = self.optim.micro_batch or len(batch.labels)
        if self.algorithm.couples_items or size >= len(batch.labels):
            yield 1.0, batch
            return
        for first in range(0, len(batch.labels), size):
            part = batch.part(slice(first, first + size))
            yield len(part.labels) / len(batch.labels), part

    def _micro_batch_size(self) -> int:
        """Return how many images pass an image tower at once."""
        size = len(self.world.shard(self.plan(0).rows))
        return min(size, self.optim.micro_batch or size)

    def _batch(self, loaded: LoadedBatch) -> Batch:
        images, labels, index, domain = loaded
        views = to_views(images, self.teacher.transform, self.device)
        return Batch(
            images=views,
            labels=to_device(labels, self.device),
            index=to_device(index, self.device),
            domain=None if domain is None else to_device(domain, self.device),
            step=self.step,
            steps=self.steps,
            label_smoothing=self.optim.label_smoothing,
            micro_batch=self.optim.micro_batch,
            teacher_features=functools.partial(self._teacher_features, views, index, self.step),
        )

    def _teacher_features(self, views: Tensor, rows: Tensor, step: int, images: Tensor) -> Tensor:
        """Return the teacher's features of images, read from the bank where `images` are `views`,
        those of `rows` at `step`."""
        features = self.feature_bank.read(step, rows) if images is views else None
        if features is not None:
            return to_device(features, self.device)
        with autocast(self.device, self.teacher.precision):
            parts = images.split(self.optim.micro_batch or len(images))
            features = torch.cat([self.teacher.image_features(part) for part in parts])
        if images is views:
            self.feature_bank.write(step, rows, features)
        return features

    def _parts(self) -> Iterator[BatchRange]:
        """Yield all batches that the rest of the run loads, in order."""
        for epoch in range(len(self.history), self.epoch_count + 1):
            if epoch and not self.algorithm.solves:
                yield self.batches, self.schedule.of_epoch(epoch)
            yield from map(self.teacher.part, self._splits_per_epoch())

    def _splits_per_epoch(self) -> list[str]:
        """Return the names of the splits that are predicted after each epoch: `id/val`; with
        `eval.every_epoch` test and shifts too."""
        names = list(self.setup.measured()) if self.config.eval.every_epoch else ["id/val"]
        return [name for name in names if not name.startswith(RETENTION)]

    def _validate(self) -> dict[str, float]:
        """Return the metrics of the present model on the splits of `_splits_per_epoch`."""
        if not self.step and self.algorithm.starts_at_zero_shot:
            classifier: Classifier = self.teacher.classifier
        else:
            classifier = self.algorithm.classifier(self.model, self.teacher)
        metrics = {}
        for name in self._splits_per_epoch():
            (predictions,) = predict([classifier], name, self.teacher)
            for metric, value in split_metrics(predictions, self.setup.family.metrics).items():
                metrics[f"{name}/{metric}"] = value
        return metrics

    def _check_finite(self, values: Mapping[str, float], epoch: int, group: str = "") -> None:
        for name, value in values.items():
            if not math.isfinite(value):
                raise NonFinite(
                    f"{group}{name} is {value} in epoch {epoch}, step {self.step}, "
                    f"at optim.lr {self.optim.lr:g}"
                )


def set_training_mode(model: nn.Module, batch_norm: Literal["frozen", "train"]) -> None:
    """Set training mode; frozen batch norms keep the pre-training's statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(batch_norm == "train")


def _results(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics that do not depend on the clock."""
    return {name: value for name, value in metrics.items() if not name.startswith("system/")}
