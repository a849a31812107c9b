"""Training and evaluation on photographs, beside the loop that WiSE-FT was published with.

The loop is that of wise-ft's repository, written anew: torchvision's ImageFolder and DataLoader,
one pass of training, and then for each alpha the whole of the test images once more.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode

from carft_sweep.carft_core.clip import ImageClassifier
from carft_sweep.carft_core.config import TrialConfig, trial_config
from carft_sweep.carft_core.prepare import prepared
from carft_sweep.carft_core.run import finish
from carft_sweep.carft_core.train import epochs
from carft_sweep.sweeps.bench.data import IMAGES, QUICK_IMAGES, make
from carft_sweep.sweeps.bench.measurement import Effort, Measurement, take_turns

ALPHAS = [round(0.1 * step, 1) for step in range(11)]
PUBLISHED = "wise-ft's loop"


class Seconds(NamedTuple):
    """What one run took."""

    training: float
    evaluation: float


def measure_photographs(effort: Effort) -> Iterator[Measurement]:
    """Measure a pass of training on JPEGs, and the evaluation of WiSE-FT at 11 alphas."""
    count = QUICK_IMAGES if effort.quick else IMAGES
    with tempfile.TemporaryDirectory(prefix="carft-bench-") as scratch:
        folder = Path(scratch) / "photographs"
        make(folder, count, tests=count)
        config = trial_config({**trial_on(folder), "algorithm": {"name": "fine_tune"}})
        loop = PublishedLoop(folder, config)
        taken: dict[str, list[Seconds]] = {PUBLISHED: [], "ours": []}

        def ours() -> None:
            with tempfile.TemporaryDirectory(dir=scratch) as place:
                taken["ours"].append(_run(config, Path(place)))

        sides: Mapping[str, Callable[[], None]] = {
            PUBLISHED: lambda: taken[PUBLISHED].append(loop.run()),
            "ours": ours,
        }
        take_turns(effort.rounds, sides)
    for part, name in (("training", "train on"), ("evaluation", "evaluate 11 alphas on")):
        floor, own = (
            [getattr(one, part) for one in taken[side][1:]] for side in (PUBLISHED, "ours")
        )
        yield Measurement(f"{name} {count} JPEGs", PUBLISHED, floor, own)


def trial_on(folder: Path) -> dict[str, Any]:
    """Return the trial of a sweep file that makes one pass over photographs."""
    return {
        "data": {"family": "image_folder", "root": str(folder), "val_fraction": 0.02},
        "optim": {"epochs": 1, "batch_size": 64},
        "merges": [{"name": "wise_ft", "alphas": ALPHAS}],
    }


def _run(config: TrialConfig, place: Path) -> Seconds:
    training = sum(report.seconds for report in epochs(config, 0, workdir=place))
    began = time.perf_counter()
    finish(place, config, 0)
    return Seconds(training, time.perf_counter() - began)


class PublishedLoop:
    """The loop, with the model and the zero-shot classifier of ours."""

    def __init__(self, folder: Path, config: TrialConfig) -> None:
        self.teacher, optim = prepared(config).teacher, config.optim
        self.zero_shot: ImageClassifier = self.teacher.classifier
        shown = self.teacher.transform
        bicubic = InterpolationMode.BICUBIC
        normal = [transforms.ToTensor(), transforms.Normalize(shown.mean, shown.std)]
        crop = transforms.RandomResizedCrop(shown.size, scale=(0.9, 1.0), interpolation=bicubic)
        whole = [transforms.Resize(shown.size, bicubic), transforms.CenterCrop(shown.size)]
        self.train: DataLoader[Any] = DataLoader(
            ImageFolder(str(folder / "train"), transforms.Compose([crop, *normal])),
            batch_size=optim.batch_size,
            shuffle=True,
        )
        self.test: DataLoader[Any] = DataLoader(
            ImageFolder(str(folder / "test"), transforms.Compose([*whole, *normal])),
            batch_size=config.eval.batch_size,
        )
        self.optim = optim

    def run(self, kl_weight: float | None = None) -> Seconds:
        """Train one pass, then evaluate every alpha; CAR-FT with `kl_weight`, else fine-tuning."""
        began = time.perf_counter()
        tuned = self.teacher.new_classifier().train()
        optimiser = torch.optim.AdamW(
            tuned.parameters(), lr=self.optim.lr, weight_decay=self.optim.weight_decay
        )
        for images, labels in self.train:
            optimiser.zero_grad()
            features = tuned.features(images)
            loss = F.cross_entropy(tuned.logits(features), labels)
            if kl_weight is not None:
                contexts = self.teacher.context_log_probs
                frozen = contexts(self.teacher.image_features(images))
                kl = F.kl_div(contexts(features), frozen, reduction="batchmean", log_target=True)
                loss = loss + kl_weight * kl
            loss.backward()
            nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
            optimiser.step()
        trained = time.perf_counter()
        start, end = self.zero_shot.state_dict(), tuned.state_dict()
        for alpha in ALPHAS:
            model = copy.deepcopy(tuned).eval()
            model.load_state_dict(
                {name: (1 - alpha) * start[name] + alpha * end[name] for name in start}
            )
            self.evaluate(model)
        return Seconds(trained - began, time.perf_counter() - trained)

    @torch.no_grad()
    def evaluate(self, model: ImageClassifier) -> float:
        """Return the accuracy on the test images."""
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in self.test)
        return right / len(self.test.dataset)  # type: ignore[arg-type]  # it has a length


def train_as_published(trial: Mapping[str, Any], seed: int, tell: object) -> None:
    """Do a run of a sweep by the loop, which tells nobody about its one epoch."""
    del tell
    torch.manual_seed(seed)
    config = trial_config(trial)
    loop = PublishedLoop(Path(config.data.root or ""), config)
    if config.algorithm.trains:
        loop.run(getattr(config.algorithm, "kl_weight", None))
    else:
        loop.evaluate(loop.zero_shot)
