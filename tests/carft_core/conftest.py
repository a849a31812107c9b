"""A toy task: a tree of tiny images and a CLIP with random weights, for runs that take a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from tests import domain_bed_tree

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
    for place, (folder, count) in enumerate(
        {"train": 8, "test": 4, "shifts/dark": 3, "shifts/pale": 3}.items()
    ):
        for number, name in enumerate(CLASSES):
            if folder == "shifts/pale" and name == "bell":
                continue
            colour = tuple(c // 2 if folder == "shifts/dark" else c for c in COLOURS[name])
            _write_images(root / folder / name, colour, count, 10 * place + number)  # type: ignore[arg-type]
    return root


@pytest.fixture(scope="session")
def toy_config(toy_root: Path, tiny_clip_files: Path) -> Callable[..., TrialConfig]:
    """`toy_config({"optim.lr": 1e-3, "algorithm": "fine_tune"})`: a config of the toy task."""

    def build(changes: dict[str, Any] | None = None) -> TrialConfig:
        data: dict[str, Any] = {
            "model": {"name": str(tiny_clip_files)},
            "data": {"family": "image_folder", "root": str(toy_root), "val_fraction": 0.25},
            "prompts": {"classes": "simple", "contexts": "simple"},
            "algorithm": {"name": "car_ft"},
            "optim": {"lr": 1e-3, "epochs": 2, "batch_size": 8},
            "device": "cpu",
        }
        return _changed(data, changes)

    return build


def _changed(data: dict[str, Any], changes: dict[str, Any] | None) -> TrialConfig:
    """Put fields of sections, and whole sections, into the place of a config's own."""
    for name, value in (changes or {}).items():
        section, _, key = name.partition(".")
        if key:
            data[section][key] = value
        else:
            data[section] = value
    return trial_config(data)


@pytest.fixture(scope="session")
def pacs_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with PACS, 50 images a domain; it is shared: copy what is to be changed."""
    return domain_bed_tree.make(tmp_path_factory.mktemp("pacs"), "pacs", per_domain=50)


@pytest.fixture(scope="session")
def pacs_config(pacs_root: Path, tiny_clip_files: Path) -> Callable[..., TrialConfig]:
    """As `toy_config`, of two epochs of two steps on PACS without sketch."""

    def build(changes: dict[str, Any] | None = None) -> TrialConfig:
        data: dict[str, Any] = {
            "model": {"name": str(tiny_clip_files)},
            "data": {"family": "pacs", "root": str(pacs_root), "test_domain": "sketch"},
            "algorithm": {"name": "car_ft"},
            "optim": {"lr": 1e-3, "steps": 4, "steps_per_epoch": 2, "batch_size": 4},
            "device": "cpu",
        }
        return _changed(data, changes)

    return build
