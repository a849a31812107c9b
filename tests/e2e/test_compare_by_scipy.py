"""A sweep of real runs: the numbers of `compare --json` are what scipy makes of the predictions
that are kept, and those of its sentences are in the JSON.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from PIL import Image
from scipy import special, stats

from carft_sweep.sweeps.cli import main

pytestmark = pytest.mark.timeout(600)
BINS = 15
ID, OOD = "id/test/top1", "ood/mean/top1"
MERGES = ["wise_ft@0.25", "wise_ft@0.5", "wise_ft@0.75"]
COLOURS = {"blue": (115, 115, 140), "green": (115, 140, 120), "red": (140, 120, 110)}
LIGHT = {"train": 1.0, "test": 1.0, "shifts/dark": 0.6, "shifts/pale": 1.5}
"""How bright the images of a split are."""
COUNTS = {"train": 24, "test": 18, "shifts/dark": 18, "shifts/pale": 15}
"""Images of a class."""
DIGITS = {"nll": 1e-6, "ece": 1e-6, "brier": 5e-3}
"""What is lost where probabilities are kept in single and logits in half precision."""
WEIGHT = "algorithm.kl_weight"
SWEEPS: Mapping[str, Mapping[str, Any]] = {
    "chosen": {},
    "confirmed": {"confirm_seeds": [5, 6, 7, 8, 9]},
    "drawn": {
        "method": "random",
        "run_cap": 5,
        "parameters": {
            WEIGHT: {"distribution": "log_uniform_values", "min": 0.1, "max": 10.0},
            "algorithm.context_scale": {"values": [5, 20, 80]},
        },
        "seeds": [0, 1],
    },
}
"""What each file says besides; the runs of the first are also those of the second."""
RULES: Mapping[str, Sequence[str]] = {
    "usual": (),
    "within": ("--selection", "within=0.3"),
    "another_metric": ("--metric", "id/val/nll"),
    "by_a_merge": ("--metric", "wise_ft@0.5/id/val/top1"),
    "against_zero_shot": ("--reference", "zero_shot"),
    "wide_margins": ("--id-margin", "0.2", "--ood-margin", "0.1"),
}


def images(root: Path) -> None:
    """Three colours in noise that hides them from a third to a half."""
    rng = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for name, colour in COLOURS.items():
            place = root / split / name
            place.mkdir(parents=True)
            for number in range(count):
                pixels = LIGHT[split] * np.array(colour) + rng.normal(0, 30, 3)
                pixels = pixels + rng.normal(0, 40, (32, 32, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny_clip_files: Path) -> Path:
    """Images, and a home with the sweeps."""
    folder = tmp_path_factory.mktemp("numbers")
    images(folder / "images")
    place = {"family": "image_folder", "root": str(folder / "images"), "val_fraction": 0.25}
    spec: dict[str, Any] = {
        "method": "grid",
        "parameters": {WEIGHT: {"values": [0.5, 8.0]}},
        "seeds": [0, 1, 2, 3, 4],
        "baselines": ["zero_shot", "fine_tune", "flyp"],  # two rivals, for Holm's rule
        "report": {"page": False, "model": False},
        "trial": {
            "model": {"name": str(tiny_clip_files)},
            "data": place,
            "prompts": {"classes": "simple", "contexts": "simple"},
            "algorithm": {"name": "car_ft"},
            "optim": {"lr": 0.001, "epochs": 2, "batch_size": 16},
            "merges": [{"name": "wise_ft", "alphas": [0.25, 0.5, 0.75]}],
            "device": "cpu",
        },
    }
    for name, more in SWEEPS.items():
        file = folder / f"{name}.yaml"
        file.write_text(json.dumps({"name": name, **spec, **more}))
        assert main(["run", str(file), "--in-process", "--home", str(folder / "home")]) == 0
    for runs in settings(folder).values():
        for run in runs.values():
            group_units(run)
    return folder


def group_units(run: Path) -> None:
    """Make two images of each shift one unit with those of the same numbers in the other shifts, as
    in a family whose images are views of drawings, which no folder of images says.
    """
    for file in run.glob("evaluations/*/predictions.parquet"):
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
    """What a command prints as JSON."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main([*words, "--json", "--home", str(folder / "home")]) == 0
    return json.loads(printed.getvalue())


Runs = Mapping[int | None, Path]
"""Their folders by seed; that of zero-shot, which no seed changes, under None."""


def settings(folder: Path) -> dict[str, Runs]:
    """The runs of each setting of the first sweep, under its label."""
    shown = answer(folder, "show", "chosen")
    return {
        " ".join([it["algorithm"], *(f"kl_weight={value:g}" for value in it["params"].values())]): {
            run["seed"]: Path(run["folder"]) for run in it["runs"]
        }
        for it in (*shown["baselines"], *shown["trials"])
    }


@functools.cache
def predictions(run: Path, model: str = "unmerged") -> pd.DataFrame:
    """What a model of a run says of every image, and whether it is `right`."""
    rows = pd.read_parquet(run / "evaluations" / model / "predictions.parquet")
    texts = {name: rows[name].astype(str) for name in ("split", "id", "unit")}
    return rows.assign(**texts, right=(rows.label == rows.prediction).astype(float))


@functools.cache
def measured(run: Path, model: str = "unmerged") -> dict[str, float]:
    """Every metric of a model, as docs/metrics.md defines it, but those of contexts."""
    found: dict[str, float] = {}
    for split, rows in predictions(run, model).groupby("split"):
        p = special.softmax(np.stack(rows.logits.to_list()).astype(float), axis=1)
        confidence = rows.confidence.to_numpy(float)
        binned = np.ceil(confidence * BINS).astype(int)
        surplus = np.bincount(binned, weights=rows.right - confidence, minlength=BINS + 1)
        found[f"{split}/top1"] = rows.right.mean()
        found[f"{split}/nll"] = -np.log(rows.p_label.to_numpy(float)).mean()
        found[f"{split}/brier"] = ((p - np.eye(p.shape[1])[rows.label]) ** 2).sum(axis=1).mean()
        found[f"{split}/ece"] = np.abs(surplus).sum() / len(rows)
    for metric in ("top1", "nll", "ece", "brier"):
        shifts = [found[f"ood/{name}/{metric}"] for name in ("dark", "pale")]
        found[f"ood/mean/{metric}"] = float(np.mean(shifts))
    found["gap/top1"] = found[ID] - found[OOD]
    found["hmean/top1"] = float(stats.hmean([found[ID], found[OOD]]))
    return found


def test_metrics_of_every_model_are_those_of_its_predictions(folder: Path) -> None:
    rows = {row["label"]: row for row in answer(folder, "compare", "chosen")["rows"]}
    (start,) = settings(folder)["zero_shot"].values()
    for label, runs in settings(folder).items():
        for model in ("unmerged", *(MERGES if label != "zero_shot" else ())):
            row = rows.pop(label if model == "unmerged" else f"{label} + {model}")
            own = [measured(run, model) for run in runs.values()]
            gains = [values[OOD] - measured(start)[OOD] for values in own]
            assert row["metrics"]["gain/ood/top1"]["values"] == pytest.approx(gains)
            for name in own[0]:
                said, values = row["metrics"][name], [each[name] for each in own]
                digits = DIGITS.get(name.rpartition("/")[2], 1e-9)
                assert said["values"] == pytest.approx(values, abs=digits), (label, model, name)
                assert said["mean"] == pytest.approx(np.mean(values), abs=digits)
                if len(values) == 5 and np.ptp(values) > 1e-9:
                    ends = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
                    assert said["ci95"] == pytest.approx(ends, abs=2 * digits), (label, name)
    assert rows == {}


def image_error(pairs: Sequence[tuple[pd.DataFrame, pd.DataFrame]], start: str) -> dict[str, Any]:
    """The variance over drawings of images of a difference that is the mean over splits, and over
    pairs of models: the units' own sums, whose mean is 0, vary as those of other units would.
    """
    sums = []
    for one, two in pairs:
        both = one.merge(two, on=["split", "id", "unit"], validate="one_to_one")
        both = both[both.split.str.startswith(start)]
        difference = both.right_x - both.right_y
        by_split = difference.groupby(both.split)
        share = 1 / by_split.transform("size") / both.split.nunique()
        sums.append((share * (difference - by_split.transform("mean"))).groupby(both.unit).sum())
    total = pd.concat(sums).groupby(level=0).sum() / len(pairs)
    units = len(total)
    variance = float(units * total.var(ddof=1))
    counts = {"freedom": units - 1, "units": units, "images": len(both)}
    return {"se": pytest.approx(np.sqrt(variance)), "variance": pytest.approx(variance), **counts}


def test_verdicts_are_students_over_seeds_and_images_adjusted_by_holm(folder: Path) -> None:
    compared = answer(folder, "compare", "chosen")
    runs = settings(folder)
    trials = [label for label in runs if label.startswith("car_ft")]
    chosen = max(
        trials, key=lambda it: np.mean([measured(run)["id/val/top1"] for run in runs[it].values()])
    )
    assert compared["selected"]["label"] == chosen
    assert {test["candidate"] for test in compared["tests"]} == {chosen, "flyp"}
    one_sided: list[float] = []
    for test in compared["tests"]:
        sides = [
            [runs[test[side]][seed] for seed in range(5)] for side in ("candidate", "reference")
        ]
        tails = []
        for metric, start, bound in ((OOD, "ood/", 0.0), (ID, "id/test", -0.005)):
            ours, theirs = ([measured(run)[metric] for run in side] for side in sides)
            values, said = np.subtract(ours, theirs), test[metric]
            assert said["values"] == pytest.approx(values)
            assert said["mean"] == pytest.approx(values.mean())
            pairs = [(predictions(a), predictions(b)) for a, b in zip(*sides, strict=True)]
            assert said["spreads"]
            assert said["images"] == image_error(pairs, start)
            variances = np.array([stats.sem(values) ** 2, said["images"]["variance"]])
            freedom = (
                variances.sum() ** 2 / (variances**2 / [4, said["images"]["freedom"]]).sum()
            )  # Welch's and Satterthwaite's
            student = stats.t(freedom, values.mean(), np.sqrt(variances.sum()))
            assert said["interval"] == pytest.approx(student.interval(said["level"]))
            assert said["p"] == pytest.approx(2 * min(student.cdf(0), student.sf(0)))
            tails.append(student.cdf(bound))
        assert test["p_better"] == pytest.approx(min(1, 2 * max(tails)))
        one_sided.append(test["p_better"])
    first, second = sorted(one_sided)
    adjusted = [min(1, 2 * first), min(1, max(2 * first, second))]
    assert sorted(it["p_better_holm"] for it in compared["tests"]) == pytest.approx(adjusted)


def leaves(value: Any) -> Iterator[Any]:
    """Each number, truth value, null and text of a JSON document."""
    if isinstance(value, (dict, list)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from leaves(part)
    else:
        yield value


@pytest.mark.parametrize(
    ("sweep", "by"), [*(("chosen", by) for by in RULES), ("confirmed", "usual"), ("drawn", "usual")]
)
def test_every_number_of_a_sentence_is_one_of_the_json(folder: Path, sweep: str, by: str) -> None:
    said = answer(folder, "compare", sweep, *RULES[by])
    sentences = " ".join([*said["answer"]["lines"], *said["statistics"]])
    for row in sorted(said["rows"], key=lambda row: -len(row["label"])):
        sentences = sentences.replace(row["label"].replace(" (confirmed)", ""), "")
    # Of a p that is smaller, and the share of sweeps and the most seeds that power is computed for.
    known = {"0.001", "80", "200"}
    for number in {it for it in leaves(said) if isinstance(it, (int, float))}:
        known |= {f"{number:g}", f"{number:.3f}", f"{100 * number:.3g}"}
        known |= {f"{100 * number:.1f}", f"{100 * number:.2f}"}
        known |= {f"{100 * number:+.2f}", f"{100 * number:+.1f}", f"{number:+.2f}"}
    tokens = re.findall(r"(?<![\w@.])[-+]?\d+(?:\.\d+)?", sentences)
    assert tokens
    assert {*tokens} - known == set()
