"""A toy task: a tree of tiny images and a CLIP with random weights, for runs that take a second."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from tests import domain_bed_tree

Config = Callable[..., TrialConfig]
Changes = dict[str, Any]
CLASSES = ("anchor", "bell", "cat")
COLOURS = {"anchor": (200, 40, 40), "bell": (40, 200, 40), "cat": (40, 40, 200)}


def _write_images(folder: Path, colour: tuple[int, int, int], count: int, seed: int) -> None:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for index in range(count):
        noise = rng.integers(-60, 60, (36, 40, 3))
        pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image_folder tree: 3 classes, and two shifts, one of them with 2 classes only."""
    root = tmp_path_factory.mktemp("toy")
    counts = {"train": 8, "test": 4, "shifts/dark": 3, "shifts/pale": 3}
    for place, (folder, count) in enumerate(counts.items()):
        for number, name in enumerate(CLASSES):
            if folder == "shifts/pale" and name == "bell":
                continue
            colour = tuple(c // 2 if folder == "shifts/dark" else c for c in COLOURS[name])
            _write_images(root / folder / name, colour, count, 10 * place + number)  # type: ignore[arg-type]
    return root


@pytest.fixture(scope="session")
def toy_config(toy_root: Path, tiny_clip_files: Path) -> Config:
    """`toy_config({"optim.lr": 1e-3, "algorithm": "fine_tune"})`: a config of the toy task."""
    data = {"family": "image_folder", "root": str(toy_root), "val_fraction": 0.25}
    optim = {"lr": 1e-3, "epochs": 2, "batch_size": 8}
    prompts = {"classes": "simple", "contexts": "simple"}
    return partial(_config, str(tiny_clip_files), data=data, optim=optim, prompts=prompts)


def _config(model: str, changes: Changes | None = None, **sections: Changes) -> TrialConfig:
    """A config whose fields, or whole sections, are changed."""
    fields = {"model": {"name": model}, "algorithm": {"name": "car_ft"}, "device": "cpu"}
    data: Changes = {**fields, **{name: dict(section) for name, section in sections.items()}}
    for name, value in (changes or {}).items():
        section, _, key = name.partition(".")
        data |= {section: {**data[section], key: value} if key else value}
    return trial_config(data)


@pytest.fixture(scope="session")
def pacs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with PACS, 50 images a domain; it is shared: copy what is to be changed."""
    return domain_bed_tree.make(tmp_path_factory.mktemp("pacs"), "pacs", per_domain=50)


@pytest.fixture(scope="session")
def pacs_config(pacs_root: Path, tiny_clip_files: Path) -> Config:
    """As `toy_config`, of two epochs of two steps on PACS without sketch."""
    data = {"family": "pacs", "root": str(pacs_root), "test_domain": "sketch"}
    optim = {"lr": 1e-3, "steps": 4, "steps_per_epoch": 2, "batch_size": 4}
    return partial(_config, str(tiny_clip_files), data=data, optim=optim)
