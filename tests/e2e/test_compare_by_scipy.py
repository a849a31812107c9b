"""Every number of `compare --json` follows from what the runs keep, computed again by scipy."""

from __future__ import annotations

import contextlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sweeps.cli import main
from tests.e2e.recomputed import IDENTIFIERS, Measured, Rule, document, leaves

ALPHAS = [0.25, 0.5, 0.75]
EPOCHS = 2
TEMPLATES = """\
itap of a {}.
a bad photo of the {}.
a origami {}.
a photo of the large {}.
a {} in a video game.
art of the {}.
a photo of the small {}.
""".splitlines()
"""Those of `simple`."""
COLOURS = {"blue": (115, 115, 140), "green": (115, 140, 120), "red": (140, 120, 110)}
SPLITS = {"train": (40, 1.0), "test": (30, 1.0), "shifts/dark": (30, 0.6), "shifts/pale": (25, 1.5)}
"""Images of a class, and how bright they are."""

SWEEPS: Mapping[str, Mapping[str, Any]] = {
    "chosen": {},
    "confirmed": {"confirm_seeds": [5, 6, 7, 8, 9]},
}
"""What each file says besides; the runs of the first are also those of the second."""


def images(root: Path) -> None:
    """Three colours in noise that hides them from a third to a half."""
    rng = np.random.default_rng(0)
    for split, (count, light) in SPLITS.items():
        for name, colour in COLOURS.items():
            place = root / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = light * np.array(colour) + rng.normal(0, 30, 3)
                pixels = pixels + rng.normal(0, 40, (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_clip_files: Path) -> Path:
    """Images, and a home with both sweeps."""
    folder = tmp_path_factory.mktemp("numbers")
    images(folder / "images")
    spec: dict[str, Any] = {
        "method": "grid",
        "parameters": {"algorithm.kl_weight": {"values": [0.5, 2.0, 8.0]}},
        "seeds": [0, 1, 2, 3, 4],
        "baselines": ["zero_shot", "fine_tune"],
        "report": {"page": False, "model": False},
        "trial": {
            "model": {"name": str(tiny_clip_files)},
            "data": {
                "family": "image_folder",
                "root": str(folder / "images"),
                "val_fraction": 0.25,
            },
            "prompts": {"classes": "simple", "contexts": "simple"},
            "algorithm": {"name": "car_ft"},
            "optim": {"lr": 0.001, "epochs": EPOCHS, "batch_size": 16},
            "merges": [{"name": "wise_ft", "alphas": ALPHAS}],
            "device": "cpu",
        },
    }
    for name, more in SWEEPS.items():
        file = folder / f"{name}.yaml"
        file.write_text(json.dumps({"name": name, **spec, **more}))
        assert main(["run", str(file), "--in-process", "--home", str(folder / "home")]) == 0
    return folder


def answer(folder: Path, *words: str) -> Any:
    """What a command prints as JSON."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*words, "--json", "--home", str(folder / "home")]) == 0
    return json.loads(printed.getvalue())


@pytest.fixture(scope="module")
def measured(folder: Path, tiny_clip_files: Path) -> dict[str, Measured]:
    """Each sweep's kept predictions."""
    data = folder / "images"
    return {
        name: Measured(
            answer(folder, "show", name), data, tiny_clip_files, ALPHAS, TEMPLATES, EPOCHS
        )
        for name in SWEEPS
    }


RULES: Mapping[str, tuple[tuple[str, ...], Rule]] = {
    "usual": ((), Rule()),
    "images": (("--images",), Rule(images=True)),
    "within": (("--selection", "within=0.3"), Rule(within=0.3)),
    "another_metric": (("--metric", "id/val/nll"), Rule("id/val/nll", sign=-1)),
    "by_a_merge": (("--metric", "wise_ft@0.5/id/val/top1"), Rule(merge="wise_ft@0.5")),
    "against_zero_shot": (("--reference", "zero_shot"), Rule(reference="zero_shot")),
    "against_car_ft": (("--reference", "car_ft"), Rule(reference="car_ft")),
    "wide_margin": (("--id-margin", "0.2"), Rule(margin=0.2)),
}


@pytest.mark.parametrize(
    ("sweep", "by"),
    # What was confirmed is what the file's own rule has chosen.
    [*(("chosen", by) for by in RULES), ("confirmed", "usual"), ("confirmed", "images")],
)
def test_every_number_is_what_scipy_makes_of_the_kept_predictions(
    folder: Path, measured: Mapping[str, Measured], sweep: str, by: str
) -> None:
    words, rule = RULES[by]
    said = dict(leaves(answer(folder, "compare", sweep, *words)))
    expected = {
        path: pytest.approx(value, rel=1e-9, abs=1e-12) if type(value) is float else value
        for path, value in leaves(document(measured[sweep], rule))
    }
    numbers = {
        path: value
        for path, value in said.items()
        if not isinstance(value, str) and not IDENTIFIERS & {*path}
    }
    assert not {*numbers} - {*expected}, "nothing here computes these"
    assert not {*expected} - {*said}, "the JSON lacks these"
    wrong = {path: (said[path], value) for path, value in expected.items() if said[path] != value}
    assert wrong == {}


@pytest.mark.parametrize(
    ("sweep", "by"), [*(("chosen", by) for by in RULES), ("confirmed", "usual")]
)
def test_every_number_of_a_sentence_is_one_of_the_json(folder: Path, sweep: str, by: str) -> None:
    words, _ = RULES[by]
    said = answer(folder, "compare", sweep, *words)
    sentences = " ".join([*said["answer"]["lines"], *said["statistics"]])
    for row in sorted(said["rows"], key=lambda row: -len(row["label"])):
        sentences = sentences.replace(row["label"].replace(" (confirmed)", ""), "")
    numbers = {v for _, v in leaves(said) if isinstance(v, (int, float))}
    known = {"0.001"} if min(numbers) < 0.001 else set()
    for number in numbers:
        known |= {f"{number:g}", f"{number:.3f}", f"{100 * number:.3g}", f"{100 * number:.1f}"}
        known |= {f"{100 * number:+.2f}", f"{100 * number:+.1f}"}
    for test in said["tests"]:  # in how many seeds there is no distance
        values = (test["above_wise_ft_curve"] or {"values": []})["values"]
        known |= {str(values.count(None)), str(len(values))}
    tokens = re.findall(r"(?<![\w@.])[-+]?\d+(?:\.\d+)?", sentences)
    assert tokens
    assert {*tokens} - known == set()
