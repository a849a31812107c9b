"""What every shipped recipe with a real model takes of a GPU: does it fit, and how many hours?

    python -m benchmarks.gpu.recipes [RECIPE ...] [--profile rivals] [--model ViT-B-16 ...]

What `carft-sweep check RECIPE --gpu NAME` says, without weights, images or a GPU. Method: each
family is opened with as many images as published and none on the disk; a model is open_clip's
architecture, with QuickGELU as OpenAI's weights want it, beside an empty file in place of weights:
memory and operations follow from shapes. A recipe with profiles of other families is there once for
each. Printed is a Markdown table, which docs/performance.md has.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import ClassVar
from unittest import mock

import numpy as np
import torch
from torch import Tensor

from carft_sweep.carft_core import data
from carft_sweep.carft_core.data import FAMILIES, Family, FamilyData, Source, Split
from carft_sweep.carft_core.data.base import DataConfig, forget_data
from carft_sweep.carft_core.data.class_names import class_list
from carft_sweep.carft_core.data.families.imagenet import SHIFTS
from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.training import setup
from carft_sweep.carft_core.training.memory import run_cost
from carft_sweep.sweeps.engines.resources import Node, requirements_of
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.plan.estimate import RemainingWork, estimate_sweep
from carft_sweep.sweeps.plan.gpu_cost import GPUS, hardware_with, time_on
from carft_sweep.sweeps.spec.spec import load_spec

RECIPES: Mapping[str, Sequence[str]] = {
    "imagenet": ("",),
    "wilds": ("", "fmow"),
    "domainbed": ("", "vlcs", "office_home", "terra_incognita", "domain_net"),
    "downstream": ("",),
}
"""By recipe: its profiles of other families; "" is none."""
CLASSES = {"imagenet": "imagenet/wnids", "iwildcam": "wilds/iwildcam", "fmow": "wilds/fmow"}
GB = 1e9


class Published(Source):
    """A source of black images, in place of photographs that are not on the disk."""

    decodes: ClassVar[bool] = True

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        """Return black images."""
        del seed, epoch
        return torch.zeros(len(rows), 3, transform.size, transform.size, dtype=torch.uint8)


def images(name: str, count: int, classes: int, group: str | None = None) -> Split:
    """Return a split of `count` images, of each class in turn, all of one `group`."""
    return Split(
        ids=tuple(f"{name}/{number}" for number in range(count)),
        labels=torch.arange(count) % classes,
        source=Published(),
        groups=None if group is None else (group,) * count,
    )


def joined(splits: Sequence[Split]) -> Split:
    """Return the images of several domains as one split."""
    return Split(
        ids=tuple(of for split in splits for of in split.ids),
        labels=torch.cat([split.labels for split in splits]),
        source=Published(),
        groups=tuple(of for split in splits for of in split.groups or ()),
    )


def published(family: Family) -> Family:
    """Return a family with its published numbers of images, without any file."""
    counts = {name: folder.images for name, folder in family.folders.items()}
    group = "domainbed" if "train" not in counts else "downstream"
    names = class_list(CLASSES.get(family.name, f"{group}/{family.name}"))
    digest = hashlib.sha256(repr((family.name, counts)).encode()).hexdigest()

    def open_(config: DataConfig) -> FamilyData:
        splits = {
            name: images(name, count, len(names), name if group == "domainbed" else None)
            for name, count in counts.items()
            if name != "c"  # ImageNet-C is measured where a file asks for it
        }
        family_data = partial(FamilyData, class_names=names, digest=digest, uneven="none is there")
        if group == "domainbed":
            parts = {}
            for name, split in splits.items():
                held_out = int(len(split) * config.val_fraction)
                rows = np.arange(len(split))
                parts[name] = split.subset(rows[held_out:]), split.subset(rows[:held_out])
            domain = str(config.test_domain)
            shift, out = (replace(part, groups=None) for part in parts.pop(domain))
            train, val = (joined(of) for of in zip(*parts.values(), strict=True))
            shifts, extras = {domain: shift}, {f"{domain}_out": out}
            return family_data(train=train, val=val, test=None, shifts=shifts, extras=extras)
        shifts = {name: splits[name] for name in SHIFTS if name in splits}
        shifts |= {"test": splits["shifts/test"]} if "shifts/test" in splits else {}
        extras = {"val": splits["extras/val"]} if "extras/val" in splits else {}
        train, test = splits["train"], splits["test"]
        return family_data(
            train=train, val=splits.get("val"), test=test, shifts=shifts, extras=extras
        )

    return replace(family, open=open_)


def row(
    recipe: str, profile: str, model: str, gpus: Sequence[str], cores: int, scratch: Path
) -> str:
    """Return the table's row of one recipe and model."""
    weights = scratch / f"{model}.safetensors"
    weights.write_text(model)
    name = model if "quickgelu" in model else f"{model}-quickgelu"
    overrides = [f"model.name={name}", f"model.pretrained={weights}", f"data.root={scratch}"]
    overrides += [f"profile={profile}"] if profile else []
    spec = load_spec(recipe, overrides)
    cells = [f"`{recipe}`" + (f", `{profile}`" if profile else ""), model]
    for gpu in gpus:
        node = Node(f"a machine with {gpu}", cores, 1)
        hardware = hardware_with(gpu, requirements_of(spec.resources, [node]))
        work = estimate_sweep(spec, Home(scratch / "home"), hardware).work
        cells += [fit(work, hardware.room or 0), hours(gpu, work, cores)]
    return f"| {' | '.join(cells)} |"


def fit(work: Sequence[RemainingWork], room: int) -> str:
    """Return the memory of the largest run and its micro-batches as text; `room` is in bytes."""
    trained = [item.config for item in work if item.steps]
    peaks = []
    for config in trained:
        cost = run_cost(config)
        peaks.append(0 if cost is None else cost.peak)
    largest = max(zip(peaks, trained, strict=True), key=lambda pair: pair[0])
    parts = sorted({config.optim.micro_batch or 0 for config in trained} - {0})
    text = f"{largest[0] / GB:.1f} GB"
    if parts:
        text += f", `micro_batch` {', '.join(map(str, parts))}"
    return text if largest[0] <= room else f"**does not fit**: {text}"


def hours(gpu: str, work: Sequence[RemainingWork], cores: int) -> str:
    """Return the hours of the GPU, and of the cores that decode beside it, as text."""
    time = time_on(gpu, work, cores)
    return "?" if time is None else f"{time.computing / 3600:.1f}; {time.decoding / 3600:.1f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("recipes", nargs="*", default=[*RECIPES], metavar="RECIPE")
    parser.add_argument("--model", nargs="+", default=["ViT-B-16"])
    parser.add_argument("--profile", nargs="+", help="these profiles, in place of RECIPES'")
    parser.add_argument("--gpu", nargs="+", default=["H100", "RTX-4090"], choices=GPUS)
    parser.add_argument("--cores", type=int, default=16)
    options = parser.parse_args()
    heads = [part for gpu in options.gpu for part in (gpu, "hours; to decode")]
    sys.stdout.write(f"| recipe | model | {' | '.join(heads)} |\n")
    sys.stdout.write(f"|{'---|' * (2 + len(heads))}\n")
    families = {
        name: published(family) if family.folders else family for name, family in FAMILIES.items()
    }
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        for module in (data, setup):
            stack.enter_context(mock.patch.object(module, "FAMILIES", families))
        for recipe in options.recipes:
            for profile in options.profile or RECIPES[recipe]:
                for model in options.model:
                    line = row(recipe, profile, model, options.gpu, options.cores, Path(scratch))
                    sys.stdout.write(f"{line}\n")
                    sys.stdout.flush()
        forget_data()


if __name__ == "__main__":
    main()
