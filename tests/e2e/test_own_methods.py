"""A user's own algorithm and family, in a file outside the repository, swept from the shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import APART

ROOT = Path(__file__).parents[2]
PULLS = (0.0, 0.1)
METHODS = '''
"""Fine-tuning that is pulled back to the zero-shot weights, and squares of three colours."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm, Batch, Loss
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data import FAMILIES, Family, FamilyData, Source, Split, Transform
from carft_sweep.carft_core.models.prompts import TemplateSet
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.models.prompts import register_templates
from my_colours import COLOURS


@ALGORITHMS.register
class Pulled(Algorithm):
    """CE + pull * sum of squared distances to the zero-shot weights."""

    name: ClassVar[str] = "pulled"
    summary: ClassVar[str] = "Fine-tuning, pulled to the zero-shot weights"

    pull: Annotated[float, Field(ge=0)] = 0.01

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        start = dict(teacher.classifier.named_parameters())
        distances = [(p - start[name]).square().sum() for name, p in model.named_parameters()]
        distance = torch.stack(distances).sum()
        loss = batch.cross_entropy(model(batch.images))
        return loss + self.pull * distance, {"ce": loss, "distance": distance}


@dataclass(frozen=True)
class Squares(Source):
    name: str
    brightness: float

    def views(
        self, rows: Sequence[int], *, transform: Transform, seed: int | None, epoch: int
    ) -> Tensor:
        key = "fixed" if seed is None else f"{seed}/{epoch}"
        return torch.stack([self.view(row, transform.size, key) for row in rows])

    def view(self, row: int, size: int, key: str) -> Tensor:
        digest = hashlib.sha256(f"{key}/{self.name}/{row}".encode()).hexdigest()
        generator = torch.Generator().manual_seed(int(digest[:8], 16))
        noise = torch.randn(3, size, size, generator=generator) / 8
        colour = torch.tensor(COLOURS[row % 3]).view(3, 1, 1)
        return ((self.brightness * colour + noise).clamp(0, 1) * 255).byte()


def squares(name: str, count: int, brightness: float) -> Split:
    return Split(
        ids=tuple(f"{name}/{row}" for row in range(3 * count)),
        labels=torch.arange(3).repeat(count),
        source=Squares(name, brightness),
    )


def open_squares(config: DataConfig) -> FamilyData:
    del config
    return FamilyData(
        class_names=("red square", "green square", "blue square"),
        train=squares("train", 8, 0.9),
        val=None,
        test=squares("test", 3, 0.9),
        shifts={"dark": squares("dark", 3, 0.3)},
        digest=hashlib.sha256(b"squares/1").hexdigest(),
    )


FAMILIES.register(
    Family("squares", "Squares of three colours", open_squares, {"prompts.contexts": "squares"})
)
register_templates(TemplateSet("squares", ("a photo of a {}", "a dark photo of a {}"), ("dark",)))
'''
COLOURS = "COLOURS = ((1.0, 0.2, 0.2), (0.2, 1.0, 0.2), (0.2, 0.2, 1.0))\n"


def sweep_file(folder: Path, clip: Path) -> Path:
    """The user's folder: two Python files and a sweep file that names one of them."""
    folder.mkdir()
    (folder / "my_methods.py").write_text(METHODS)
    (folder / "my_colours.py").write_text(COLOURS)
    spec: dict[str, Any] = {
        "name": "pulled",
        "import": ["./my_methods.py"],
        "method": "grid",
        "parameters": {"algorithm.pull": {"values": list(PULLS)}},
        "seeds": [0],
        "baselines": ["zero_shot", "fine_tune"],
        "report": {"page": False, "model": False},  # they take longer than this sweep
        "trial": {
            "model": {"name": str(clip)},
            "data": {"family": "squares", "val_fraction": 0.25},
            "prompts": {"classes": "simple"},
            "algorithm": {"name": "pulled"},
            "optim": {"lr": 0.0003, "epochs": 2, "batch_size": 6},
            "device": "cpu",
        },
    }
    path = folder / "pulled.yaml"
    path.write_text(json.dumps(spec))  # JSON is YAML
    return path


@pytest.mark.timeout(600)
def test_a_users_own_algorithm_and_family_are_run_and_compared(
    tmp_path: Path, tiny_clip_files: Path
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    sweep = sweep_file(tmp_path / "mine", tiny_clip_files)
    elsewhere.mkdir()  # where nothing of the user's or the product's lies
    environ = {name: value for name, value in os.environ.items() if name not in APART}
    done = subprocess.run(
        [sys.executable, "-P", "-m", "carft_sweep", "run", str(sweep), "--json"],
        cwd=elsewhere,
        env={**environ, "CARFT_HOME": str(home), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert {row["algorithm"] for row in rows} == {"pulled", "fine_tune", "zero_shot"}
    assert len([*home.glob("runs/*/history.json")]) == len(PULLS) + 1
