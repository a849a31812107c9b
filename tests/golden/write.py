"""The numbers of every algorithm and merge on one small task, and the file in which they stand.

    python -m tests.golden.write

writes the file anew. Do it when an algorithm or a merge is new, and after raising
TRAINING_REVISION or MEASURING_REVISION in `carft_core/runs/identity.py` because numbers are meant
to move: runs that were made before then are not taken for those made after.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm, Soup
from carft_sweep.carft_core.algorithms.from_checkpoint import FromCheckpoint
from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.data import FAMILIES, FamilyData
from carft_sweep.carft_core.evaluation.measure import measure
from carft_sweep.carft_core.merges import MERGES
from carft_sweep.carft_core.models.classifier import Classifier
from carft_sweep.carft_core.models.clip import open_model
from carft_sweep.carft_core.models.prompts import context_weights, template_set, text_features
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.folder import RunFolder, save_weights
from carft_sweep.carft_core.runs.identity import MEASURING_REVISION, TRAINING_REVISION
from carft_sweep.carft_core.runs.models import UNMERGED
from carft_sweep.carft_core.testing import toy_teacher
from carft_sweep.carft_core.training.loop import Run
from carft_sweep.carft_core.training.setup import RunSetup
from tests.tiny_vit import write_clip

FILE = Path(__file__).with_name("revisions.json")
STEPS = 10
SHOWN = (1, 5, 10)
"""The steps whose loss is kept."""
DIGITS = 7
ON_THE_BUILT_IN = ("fine_tune", "car_ft", "ldifs", "feature_distillation", "mask_fill")
"""The others train a tiny ViT in a tenth of the time, which the last three hardly move."""
Numbers = dict[str, float]


def read() -> dict[str, Any]:
    stored: dict[str, Any] = json.loads(FILE.read_text())
    return stored


@cache
def task(model: str = "builtin") -> RunSetup:
    """A CLIP, six random images of three classes in each of two domains, 80 contexts.

    Nothing is decoded or resized, which other versions of libraries do otherwise.
    """
    teacher, contexts = toy_teacher(open_model(model)), template_set("openai")
    w_ctx = context_weights(
        text_features(teacher.clip, contexts, teacher.class_names, device=teacher.device)
    )
    images = teacher.splits["train"]
    data = FamilyData(teacher.class_names, images, images, None, {}, digest="0" * 64)
    return RunSetup(
        data=data,
        teacher=replace(teacher, contexts=contexts, w_ctx=w_ctx),
        family=FAMILIES["icon_shift_dev"],
        other_heads={},
    )


@cache
def vit() -> str:
    """The folder of a tiny CLIP with a ViT; it goes with the process."""
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return str(write_clip(Path(folder.name)))


def config_of(algorithm: Algorithm) -> TrialConfig:
    """Ten steps, each an epoch by itself, so that its loss is reported."""
    plain = {"data": {"family": "icon_shift_dev"}, "algorithm": "zero_shot", "device": "cpu"}
    config = trial_config(plain)
    steps = {"epochs": None, "steps": STEPS, "steps_per_epoch": 1}
    optim = config.optim.model_copy(update={"lr": 1e-4, "batch_size": 6, **steps})
    return config.model_copy(update={"algorithm": algorithm, "optim": optim})


def moved(teacher: Teacher, seed: int) -> Classifier:
    classifier, generator = teacher.new_classifier(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in classifier.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.02 * parameter.std(correction=0) * noise)
    return classifier.eval()


def numbers_of_algorithm(cls: type[Algorithm]) -> Numbers:
    """The loss of some steps, and what the result says of the images.

    Of a soup, that of three models; of a checkpoint, that of a model's file; of what takes no
    steps, all that it logs.
    """
    algorithm = cls()
    is_small = algorithm.trains and algorithm.name not in ON_THE_BUILT_IN
    setup = task(vit()) if is_small else task()
    with one_thread():
        if isinstance(algorithm, Soup):
            soup = cls.model_validate({"members": [digit * 64 for digit in "012"]})
            assert isinstance(soup, Soup)
            members = [moved(setup.teacher, seed) for seed in (1, 2, 3)]
            return summary_of(lambda: soup.combine(setup.teacher, members))
        if isinstance(algorithm, FromCheckpoint):
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "tuned.safetensors"
                save_weights(file, moved(setup.teacher, 1).state_dict())
                tuned = FromCheckpoint(weights=str(file)).build(setup.teacher)
            return summary_of(lambda: tuned)
        if not algorithm.trains:
            return summary_of(lambda: setup.teacher.classifier)
        with tempfile.TemporaryDirectory() as folder:
            run = Run(config_of(algorithm), 0, RunFolder(Path(folder)), setup)
            with setup.teacher.loader:
                reports = list(run.epochs())[1:]
        logged = {
            f"{name.removeprefix('train/')}@{report.step}": value
            for report in reports
            for name, value in report.metrics.items()
            if report.step in SHOWN and name.startswith("train/") and "/first/" not in name
        }
        logged.pop(f"lr@{STEPS}", None)  # next to nothing
        return logged | summary_of(lambda: algorithm.classifier(run.model, setup.teacher), setup)


def numbers_of_merge(name: str) -> dict[str, Numbers]:
    """By label what each model of a merge with its defaults says of the images."""
    setup, merge = task(), MERGES[name]()
    with one_thread():
        tuned = moved(setup.teacher, 1)
        return {
            point.label: summary_of(partial(merge.model, point, setup.teacher, tuned))
            for point in merge.points()
        }


def summary_of(make: Callable[[], Classifier], setup: RunSetup | None = None) -> Numbers:
    """Statistics of a classifier's logits, and how it is measured."""
    setup = setup or task()
    with torch.no_grad():
        classifier = make().eval()
        (features,) = setup.teacher.encode([classifier], "id/val")
        logits = classifier.logits(features)
    measured = measure(
        {UNMERGED: lambda: classifier}, setup, config_of(ALGORITHMS["zero_shot"]()), {}
    )
    return {
        "logits/mean": float(logits.mean()),
        "logits/std": float(logits.std()),
        "logits/first": float(logits[0, 0]),
        **measured[UNMERGED],
    }


def compute() -> dict[str, Any]:
    return {
        "training_revision": TRAINING_REVISION,
        "measuring_revision": MEASURING_REVISION,
        "algorithms": {cls.name: rounded(numbers_of_algorithm(cls)) for cls in ALGORITHMS.values()},
        "merges": {
            label: rounded(numbers)
            for name in MERGES
            for label, numbers in numbers_of_merge(name).items()
        },
    }


def rounded(numbers: Mapping[str, float]) -> Numbers:
    return {name: float(f"{value:.{DIGITS}g}") for name, value in numbers.items()}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CARFT_CACHE"] = folder
        FILE.write_text(json.dumps(compute(), indent=1) + "\n")
    sys.stdout.write(f"wrote {FILE}\n")


if __name__ == "__main__":
    main()
