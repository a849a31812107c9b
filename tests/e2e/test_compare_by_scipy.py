"""Every number of `compare --json` follows from what the runs keep, computed again by scipy."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from carft_sweep.carft_core.data import FAMILIES
from tests.e2e.conftest import printed_by
from tests.e2e.recomputed import (
    IDENTIFIERS,
    Numbers,
    Rule,
    Task,
    document,
    leaves,
    numbers_of,
    shown_of,
)

pytestmark = pytest.mark.timeout(600)
ALPHAS = [0.1, 0.5]
"""At the first the models of all seeds predict alike."""
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
LIGHT = {"train": 1.0, "test": 1.0, "shifts/dark": 0.6, "shifts/pale": 1.5}
"""How bright the images of a split are."""
COUNTS = {"train": 20, "test": 12, "shifts/dark": 12, "shifts/pale": 8}
"""Images of a class."""
TASKS: Mapping[str, tuple[Sequence[str], Mapping[str, int]]] = {
    "meadow": ([*COLOURS], {"train": 20, "test": 10, "shifts/dark": 10, "shifts/pale": 8}),
    "orchard": (["green", "red"], {"train": 20, "test": 8, "shifts/dark": 12}),
}
"""Classes and images of each; the second lacks a shift, so that not every metric has a mean."""
WEIGHT = "algorithm.kl_weight"
THREE = {"baselines": ["zero_shot", "fine_tune", "flyp"]}
"""Two rivals, for Holm's rule."""
SWEEPS: Mapping[str, Mapping[str, Any]] = {
    "chosen": THREE,
    "confirmed": {**THREE, "confirm_seeds": [5, 6, 7]},
    "drawn": {
        **{"method": "random", "run_cap": 3, "seeds": [0, 1]},
        "parameters": {
            WEIGHT: {"distribution": "log_uniform_values", "min": 0.1, "max": 10.0},
            "algorithm.context_scale": {"values": [5, 20, 80]},
            "algorithm.kl_direction": {"values": ["teacher_student", "student_teacher"]},
        },
    },
    "tasks": {
        **{"tasks": "data.family", "seeds": [0, 1, 2]},
        "parameters": {
            "data.family": {"values": [f"{task}.family.yaml" for task in TASKS]},
            WEIGHT: {"values": [0.5, 8.0]},
        },
    },
}
"""What each file says besides; the runs of the first are also those of the second."""
IMAGES = {"drawn": "meadow"}
"""Of a sweep with fewer of them."""


def images(root: Path, classes: Sequence[str], counts: Mapping[str, int]) -> None:
    """Three colours in noise: some methods see through it, so that some verdicts are claims."""
    # Equal training images would be one training.
    rng = np.random.default_rng([*root.name.encode()])
    for split, count in counts.items():
        for name in classes:
            place = root / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = LIGHT[split] * np.array(COLOURS[name]) + rng.normal(0, 4, 3)
                pixels = pixels + rng.normal(0, 40, (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png")


def families(folder: Path) -> None:
    for task, (classes, counts) in TASKS.items():
        images(folder / task, classes, counts)
        shifts = {split.partition("/")[2]: split for split in counts if "/" in split}
        declared = {"name": task, "root": task, "test": "test", "shifts": shifts}
        (folder / f"{task}.family.yaml").write_text(json.dumps(declared))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_clip_files: Path) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("numbers")
    images(folder / "images", [*COLOURS], COUNTS)
    families(folder)
    spec: dict[str, Any] = {
        **{"method": "grid", "parameters": {WEIGHT: {"values": [0.5, 8.0]}}},
        "seeds": [0, 1, 2, 3, 4],  # fewer make no claim
        **{"baselines": ["zero_shot", "fine_tune"], "report": {"page": False, "model": False}},
        "trial": {
            "model": {"name": str(tiny_clip_files)},
            "prompts": {"classes": "simple", "contexts": "simple"},
            "optim": {"lr": 0.0025, "epochs": 1, "batch_size": 16},
            "merges": [{"name": "wise_ft", "alphas": ALPHAS}],
            **{"algorithm": {"name": "car_ft"}, "device": "cpu"},
        },
    }
    with mock.patch.dict(FAMILIES):  # what is declared here is gone afterwards
        for name, more in SWEEPS.items():
            own = {"family": "image_folder", "root": str(folder / IMAGES.get(name, "images"))}
            data = {"val_fraction": 0.25} | ({} if "tasks" in more else own)
            file = folder / f"{name}.yaml"
            trial = {**spec["trial"], "data": data}
            file.write_text(json.dumps({"name": name, **spec, "trial": trial, **more}))
            printed_by("run", file, "--in-process", "--home", folder / "home")
        for name in ("confirmed", "tasks"):  # the first has the runs of `chosen` too
            group_units(folder, name)
        yield folder


def group_units(folder: Path, sweep: str) -> None:
    """Make two images of each shift one unit with those of the same numbers in the other shifts.

    As in a family whose images are views of drawings, which no folder of images says.
    """
    shown = answer(folder, "show", sweep)
    settings = [*shown["baselines"], *shown["trials"], *shown["confirmations"]]
    for run in (run for setting in settings for run in setting["runs"]):
        for file in Path(run["folder"]).glob("evaluations/*/predictions.parquet"):
            table = parquet.read_table(file)
            place = table.column_names.index("unit")
            units = pa.array(map(unit_of, table["id"].to_pylist()), table.schema.field(place).type)
            parquet.write_table(table.set_column(place, "unit", units), file)


def unit_of(image: str) -> str:
    """`blue/3` of `shifts/dark/blue/7.png`; other images are units of their own."""
    path = Path(image)
    return f"{path.parent.name}/{int(path.stem) // 2}" if path.parts[0] == "shifts" else image


@functools.cache
def answer(folder: Path, *words: str) -> Any:
    return json.loads(printed_by(*words, "--json", "--home", folder / "home"))


Predicted = Mapping[str, Mapping[str, Numbers]]


@pytest.fixture(scope="module")
def measured(folder: Path, tiny_clip_files: Path) -> Predicted:
    """Each sweep's kept predictions by task; of one without tasks by the name of its images."""

    def of(shown: Any, data: str) -> Numbers:
        return numbers_of(Task(shown, folder / data, tiny_clip_files, ALPHAS, TEMPLATES))

    shown = {name: answer(folder, "show", name) for name in SWEEPS}
    tasks = {task: of(shown_of(shown["tasks"], "data.family", task), task) for task in TASKS}
    places = {name: IMAGES.get(name, "images") for name in shown if name != "tasks"}
    return {name: {at: of(shown[name], at)} for name, at in places.items()} | {"tasks": tasks}


RULES: Mapping[str, tuple[tuple[str, ...], Rule]] = {
    "usual": ((), Rule()),
    "within": (("--selection", "within=0.3"), Rule(within=0.3)),
    "another_metric": (("--metric", "id/val/nll"), Rule("id/val/nll", sign=-1)),
    "by_a_merge": (("--metric", "wise_ft@0.1/id/val/top1"), Rule(merge="wise_ft@0.1")),
    "against_zero_shot": (("--reference", "zero_shot"), Rule(reference="zero_shot")),
    "against_car_ft": (("--reference", "car_ft"), Rule(reference="car_ft")),
    "against_flyp": (("--reference", "flyp"), Rule(reference="flyp")),
    "wide_margins": (
        ("--id-margin", "0.2", "--ood-margin", "0.14"),
        Rule(margin=0.2, ood_margin=0.14),
    ),
}


each_answer = pytest.mark.parametrize(
    ("sweep", "by"),
    # What was confirmed is what the file's own rule has chosen.
    [
        *(("chosen", by) for by in RULES),
        *(("confirmed", "usual"), ("drawn", "usual")),
        *(("tasks", by) for by in ("usual", "within", "by_a_merge")),
    ],
)


@each_answer
def test_every_number_is_what_scipy_makes_of_the_kept_predictions(
    folder: Path, measured: Predicted, sweep: str, by: str
) -> None:
    words, rule = RULES[by]
    stated = dict(leaves(answer(folder, "compare", sweep, *words)))
    expected = {
        path: pytest.approx(value, rel=1e-9, abs=1e-12) if type(value) is float else value
        for path, value in leaves(document(measured[sweep], rule))
    }
    numbers = {path for path, value in stated.items() if not isinstance(value, str)}
    uncomputed = {path for path in numbers - {*expected} if not IDENTIFIERS & {*path}}
    assert not uncomputed, "nothing here computes these"
    assert not {*expected} - {*stated}, "the JSON lacks these"
    pairs = {path: (stated[path], value) for path, value in expected.items()}
    assert {path: pair for path, pair in pairs.items() if pair[0] != pair[1]} == {}


@each_answer
def test_every_number_of_a_sentence_is_one_of_the_json(folder: Path, sweep: str, by: str) -> None:
    words, _ = RULES[by]
    result = answer(folder, "compare", sweep, *words)
    sentences = " ".join([*result["answer"]["lines"], *result["statistics"]])
    for row in sorted(result["rows"], key=lambda row: -len(row["label"])):
        sentences = sentences.replace(row["label"].replace(" (confirmed)", ""), "")
    numbers = {v for _, v in leaves(result) if isinstance(v, (int, float))}
    # Of a p that is smaller, and the share of sweeps and the most seeds that power is computed for.
    known = {"0.001", "80", "200"}
    for number in numbers:
        known |= {f"{number:g}", f"{number:.3f}", f"{100 * number:.3g}"}
        known |= {f"{100 * number:.1f}", f"{100 * number:.2f}"}
        known |= {f"{100 * number:+.2f}", f"{100 * number:+.1f}", f"{number:+.2f}"}
    tokens = re.findall(r"(?<![\w@.])[-+]?\d+(?:\.\d+)?", sentences)
    assert tokens
    assert {*tokens} - known == set()
