"""What a sweep costs, before anybody has a GPU: hours by counting operations, and by decoding.

    python benchmarks/gpu_hours.py imagenet [--profile NAME ...] [--set KEY=VALUE ...]
        [--peak 989e12] [--share 0.35] [--cores 16] [--images-per-core 200]

An estimate, no measurement. The operations of the image tower are counted for one image. A
training image costs three passes, one more where the teacher looks too, an evaluated image one
for each model that is not an end point of a merge. The GPU is taken to reach a share of its peak
(an H100's for bf16 without sparsity). Beside it stands the time that the cores need to decode as
many images, by `benchmarks/loader.py`; a sweep takes about the longer of the two.
`carft-sweep check --measure` measures on the machine that is to do it.
"""

from __future__ import annotations

import argparse
import functools
import logging
import math
import sys
from typing import NamedTuple

import open_clip
import torch
from torch.utils.flop_counter import FlopCounterMode

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import FAMILIES, open_data
from carft_sweep.carft_core.data.families.downstream_tasks import CLASSES
from carft_sweep.carft_core.data.families.imagenet import SHIFTS
from carft_sweep.carft_core.models.source import find_model
from carft_sweep.carft_core.runs.folder import models_of
from carft_sweep.carft_core.training.optim import schedule_of
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec

PASSES = 3
"""Of training: forward, and twice as much backward."""
MEASURED = {"imagenet": ("test", *SHIFTS)}
"""What is measured where `data.shifts` is left out; of other families all but train."""


class Images(NamedTuple):
    """Of a run, as many as published."""

    trained: float
    """Each as often as it trains."""
    epochs: int
    val: float
    measured: float
    """Of test, shifts and extras, and of the tests of other tasks."""


class Cost(NamedTuple):
    """Of several runs."""

    runs: int
    trained: float
    """Images, each as often as it trains."""
    evaluated: float
    """Images, each for every model."""
    operations: float
    """Floating-point operations of the image tower."""

    def hours(self, *, peak: float, share: float) -> float:
        """On a GPU that reaches this share of its peak, in operations a second."""
        return self.operations / (peak * share) / 3600

    def decoding_hours(self, *, cores: int, images_per_core: float) -> float:
        """Of so many cores, each of which decodes so many images a second."""
        return (self.trained + self.evaluated) / (cores * images_per_core) / 3600


def cost(spec: SweepSpec) -> Cost:
    """Of all its runs, none of which is there yet."""
    configs = [spec.config_for(params) for params in spec.points()]
    configs += [baseline.config for baseline in spec.baseline_configs()]
    runs = [
        run_cost(config)
        for config in configs
        for _ in (spec.seeds if config.algorithm.trains or config.follows_seed else (None,))
    ]
    return Cost(*(sum(column) for column in zip(*runs, strict=True)))


def run_cost(config: TrialConfig) -> Cost:
    """Of one run with its merges."""
    images = images_of(config)
    # The end points of a merge are the zero-shot model and the run's own: no pass is their own.
    between = [
        point
        for _, point in filter(None, models_of(config).values())
        if point.values.get("alpha") not in (0.0, 1.0)
    ]
    trained = images.trained if config.algorithm.trains else 0.0
    evaluated = (images.val + images.measured) * (1 + len(between))
    if trained:
        evaluated += images.val * (images.epochs + 1)
    teacher = "contexts" in config.algorithm.uses
    once = operations(config.model.name)
    return Cost(1, trained, evaluated, once * (trained * (PASSES + teacher) + evaluated))


def images_of(config: TrialConfig) -> Images:
    """As `docs` of each family tell what trains and what is measured; of a family whose numbers of
    images are not published, such as one of a family file, as its data hold.
    """
    family, data, optim = FAMILIES[config.data.family], config.data, config.optim
    if not family.folders:
        return images_there(config)
    counts = {name: folder.images for name, folder in family.folders.items()}
    if "train" in counts:
        train, groups = counts.pop("train"), 1
        val = counts.pop("val", round(train * data.val_fraction))
        train -= 0 if "val" in family.folders else val
        train = (
            data.shots * classes(family.name) if data.shots else round(train * data.train_fraction)
        )
        names = MEASURED.get(family.name, counts) if data.shifts is None else ("test", *data.shifts)
        measured = sum(counts[name] for name in names)
    else:
        measured = counts.pop(str(data.test_domain))
        left_out = counts.pop(data.val_domain, 0) if data.val_domain else 0
        groups, every = len(counts), sum(counts.values())
        val = round(data.val_fraction * every) + left_out
        train = round((1 - data.val_fraction) * every)
    measured += sum(
        FAMILIES[name].folders["test"].images
        for name in config.eval.retention
        if name != family.name
    )
    batch = optim.batch_size * (groups if data.balanced else 1)
    steps = optim.steps or (optim.epochs or 1) * math.ceil(train / batch)
    per_epoch = optim.steps_per_epoch or math.ceil(train / batch)
    return Images(float(steps * batch), math.ceil(steps / per_epoch), val, measured)


def images_there(config: TrialConfig) -> Images:
    """By opening the data."""
    opened, optim = open_data(config.for_seed(0).data), config.optim
    schedule = schedule_of(optim, opened.train, balanced=config.data.balanced)
    groups = len(set(opened.train.groups or [""])) if config.data.balanced else 1
    val = 0 if opened.val is None else len(opened.val)
    measured = sum(map(len, opened.measured().values()))
    trained = float(schedule.steps * optim.batch_size * groups)
    return Images(trained, schedule.epochs, val, measured)


def classes(family: str) -> int:
    """Of a downstream task: whose shots are counted. Raises FileNotFoundError for others."""
    return len((CLASSES / f"{family}.txt").read_text(encoding="utf-8").splitlines())


@functools.cache
def operations(model: str) -> float:
    """Of the image tower for one image: a multiplication and an addition count as two."""
    # Of open_clip's own no weights are needed.
    opener = model if model in open_clip.list_models() else find_model(model).opener
    logging.disable(logging.WARNING)  # open_clip says that the weights are random
    try:
        with torch.device("meta"):
            visual = open_clip.create_model(opener, device="meta", load_weights=False).visual
    finally:
        logging.disable(logging.NOTSET)
    size = visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    with FlopCounterMode(display=False) as counted:
        visual(torch.empty(1, 3, height, width, device="meta"))
    return float(counted.get_total_flops())


def main() -> None:
    """Print one line: runs, images, GPU-hours by operations, hours of decoding."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sweep", help="a sweep file, or a shipped recipe's name")
    parser.add_argument("--profile", action="append", default=[])
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--peak", type=float, default=989e12, help="operations a second")
    parser.add_argument("--share", type=float, default=0.35, help="of the peak that is reached")
    parser.add_argument("--cores", type=int, default=16)
    parser.add_argument("--images-per-core", type=float, default=200.0, help="decoded a second")
    given = parser.parse_args()
    profiles = [f"profile={name}" for name in given.profile]
    spec = load_spec(given.sweep, [*profiles, *given.overrides])
    if spec.is_adaptive:
        parser.error(f"what {spec.method} proposes is not known before; add --set method=random")
    total = cost(spec)
    hours = total.hours(peak=given.peak, share=given.share)
    decoding = total.decoding_hours(cores=given.cores, images_per_core=given.images_per_core)
    sys.stdout.write(
        f"{spec.name}: {total.runs} runs, {total.trained / 1e6:.1f} million images trained, "
        f"{total.evaluated / 1e6:.1f} million evaluated; {hours:.1f} GPU-hours at "
        f"{given.share:.0%} of {given.peak / 1e12:.0f} Tflop/s, {decoding:.1f} h of decoding on "
        f"{given.cores} cores\n"
    )


if __name__ == "__main__":
    main()
