"""The kinds of input that the product reads: a valid original of each, and how it is read."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.data import FAMILIES, Transform
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.images import read_rgb
from carft_sweep.carft_core.data.transforms import evaluation_view
from carft_sweep.carft_core.errors import NonFinite, RequestError
from carft_sweep.carft_core.export.predictor import Predictor
from carft_sweep.carft_core.models.clip import open_model
from carft_sweep.carft_core.models.prompts import TEMPLATE_SETS, read_template_file
from carft_sweep.carft_core.models.source import CONFIG, PICKLED_WEIGHTS, SAFE_WEIGHTS
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.training.loop import epochs
from carft_sweep.sweeps.cli import main as carft_sweep
from carft_sweep.sweeps.spec.spec import load_spec
from carft_sweep.sweeps.spec.user_code import register_family

SWEEP = "small"
CLIP = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
CLASSES = ("anchor", "bell", "cat")


class Meaningless(Exception):
    """An input that was accepted although it means nothing."""


@dataclass(frozen=True)
class Kind:
    """A kind of input: its valid originals, what is mutated of them, and how the product reads
    it."""

    name: str
    make: Callable[[Path], None]
    """Writes the originals into a folder."""
    targets: Sequence[str]
    """Glob patterns, below that folder, of the files to mutate."""
    read: Callable[[Path, Path, random.Random], None]
    """Reads the mutated file (second) in a folder of them. Raises the product's errors, or
    Meaningless."""
    known_as: Sequence[str] = ()
    """What a message may name instead of the file, such as a folder whose files do not fit
    together; `{}` stands for the folder of the originals."""


def write_images(root: Path, *, per_class: int = 4) -> None:
    """Write an image folder of three classes: train, test and one shift."""
    for number, split in enumerate(("train", "test", "shifts/dark")):
        for place, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(per_class):
                _picture(100 * number + 10 * place + index).save(folder / f"{index}.png")


def _picture(seed: int, size: tuple[int, int] = (40, 36)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def write_clip(folder: Path) -> None:
    """Write a CLIP with random weights, as open_clip lays a model out."""
    folder.mkdir(parents=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(**CLIP)
    (folder / CONFIG).write_text(json.dumps({"model_cfg": CLIP}))
    save_file(model.state_dict(), folder / SAFE_WEIGHTS)


def trial(root: Path, clip: Path) -> dict[str, Any]:
    """Return the `trial` of a sweep that trains `clip` on the images in `root` in a moment."""
    return {
        "model": {"name": str(clip)},
        "data": {"family": "image_folder", "root": str(root), "val_fraction": 0.25},
        "prompts": {"classes": "simple", "contexts": "simple"},
        "algorithm": {"name": "car_ft"},
        "optim": {"lr": 0.001, "epochs": 2, "batch_size": 4},
        "device": "cpu",
    }


def _make_sweep(folder: Path) -> None:
    plain = {
        "name": "chaos",
        "description": "Everything that a sweep file may say.",
        "method": "tpe",
        "metric": {"name": "id/val/top1", "goal": "maximize"},
        "parameters": {
            "algorithm.kl_weight": {"distribution": "log_uniform_values", "min": 0.1, "max": 10},
            "optim.lr": {"values": [0.00001, 0.0001]},
            "optim.epochs": {"min": 2, "max": 4},
        },
        "run_cap": 12,
        "early_terminate": {"type": "asha", "reduction_factor": 3},
        "seeds": [0, 1, 2],
        "baselines": ["zero_shot", {"name": "fine_tune"}],
        "selection": {"within": 0.005},
        "confirm_seeds": [10, 11],
        "retries": 2,
        "resources": {"gpus": 0, "cpus": 1},
        "trial": {
            "data": {"family": "icon_shift", "shifts": ["pixel"]},
            "algorithm": {"name": "car_ft"},
            "merges": [{"name": "wise_ft", "alphas": [0.0, 0.5, 1.0]}],
            "keep": {"weights": True, "predictions": True},
        },
    }
    (folder / "sweep.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))
    recipe = Path(__file__).parents[2] / "sweeps" / "kl_weight.yaml"
    shutil.copy(recipe, folder / "recipe.yaml")


def _read_sweep(folder: Path, target: Path, rng: random.Random) -> None:
    del folder, rng
    spec = load_spec(target)
    again = json.loads(json.dumps(spec.as_dict(), allow_nan=False))
    if not again["seeds"] or spec.trial_count < 1:
        raise Meaningless("a sweep without trials")
    if not spec.is_adaptive:
        spec.config_for(spec.point(0))


def _make_family(folder: Path) -> None:
    write_images(folder / "data")
    (folder / "classes.json").write_text(json.dumps({name: f"a {name}" for name in CLASSES}))
    plain = {
        "name": "toys",
        "summary": "drawings of toys",
        "root": "data",
        "train": "train",
        "test": "test",
        "shifts": {"dark": {"folders": "shifts/dark", "exclude": ["cat"]}},
        "class_names_file": "classes.json",
        "domains": ["dark"],
        "prompts": {"classes": ["a photo of a {}", "a {}"], "contexts": ["a dark photo of a {}"]},
        "defaults": {"optim.lr": 0.00001},
    }
    (folder / "toys.family.yaml").write_text(yaml.safe_dump(plain, sort_keys=False))


def _read_family(folder: Path, target: Path, rng: random.Random) -> None:
    del target, rng
    registries: Sequence[dict[str, Any]] = (FAMILIES, TEMPLATE_SETS)
    before = [dict(registry) for registry in registries]
    try:
        family = register_family(folder / "toys.family.yaml")
        data = family.open(DataConfig(family=family.name))
    finally:  # the next reader is in the same process
        for registry, things in zip(registries, before, strict=True):
            registry.clear()
            registry.update(things)
    if len(data.class_names) < 2 or not len(data.train) or not all(data.class_names):
        raise Meaningless(f"a family of {data.class_names}")


def _make_templates(folder: Path) -> None:
    lines = ["# comment", "a photo of a {}", "a blurry photo of the {}.", "", "ein Bild: {}"]
    (folder / "templates.txt").write_text("\n".join(lines))
    plain = {"name": "mine", "templates": ["a photo of a {}", "art of {}"], "domains": ["art"]}
    (folder / "templates.yaml").write_text(yaml.safe_dump(plain))


def _read_templates(folder: Path, target: Path, rng: random.Random) -> None:
    del folder, rng
    templates = read_template_file(target)
    if not all(text.count("cat") >= 1 for text in templates.texts(["cat"])):
        raise Meaningless("a template without its class")


def _make_images(folder: Path) -> None:
    picture, deep = _picture(0), np.arange(1440, dtype=np.uint16).reshape(36, 40) * 40
    picture.save(folder / "a.jpg", quality=80)
    picture.convert("CMYK").save(folder / "cmyk.jpg", progressive=True)
    picture.save(folder / "b.jpeg", exif=_exif())
    picture.save(folder / "c.png")
    picture.quantize(16).save(folder / "palette.png", transparency=3)
    Image.fromarray(deep).save(folder / "deep.png")
    picture.save(folder / "d.ppm")
    Image.fromarray(deep).save(folder / "e.pgm")
    picture.save(folder / "f.bmp")
    picture.save(folder / "g.tif", compression="tiff_lzw")
    picture.save(folder / "h.tiff", compression="jpeg")
    picture.save(folder / "i.webp", quality=80)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def _read_image(folder: Path, target: Path, rng: random.Random) -> None:
    del folder, rng
    image = read_rgb(target)
    view = evaluation_view(image, Transform(32, (0.5,) * 3, (0.25,) * 3))
    if image.mode != "RGB" or view.shape != (3, 32, 32):
        raise Meaningless(f"{image.mode} {view.shape}")


def _make_weights(folder: Path) -> None:
    write_clip(folder / "safe")
    for name, is_zip in (("zip", True), ("bare", False)):
        copied = folder / name
        copied.mkdir()
        shutil.copy(folder / "safe" / CONFIG, copied / CONFIG)
        state = load_file(folder / "safe" / SAFE_WEIGHTS)
        torch.save(
            {"state_dict": state, "epoch": 3} if is_zip else state,
            copied / PICKLED_WEIGHTS,
            _use_new_zipfile_serialization=is_zip,
        )


def _read_weights(folder: Path, target: Path, rng: random.Random) -> None:
    del folder, rng
    clip = open_model(str(target.parent))
    if not torch.isfinite(clip.encode_text(["a photo of a cat"])).all():
        raise Meaningless("text features that are not finite")


def _make_checkpoint(folder: Path) -> None:
    write_images(folder / "data")
    write_clip(folder / "clip")
    (folder / "run").mkdir()
    _train(folder, until=1)
    if not RunFolder(folder / "run").checkpoint.is_file():
        raise RuntimeError("no checkpoint was kept")


def _train(folder: Path, until: int) -> list[int]:
    config = trial_config(trial(folder / "data", folder / "clip"))
    reached = []
    with contextlib.closing(epochs(config, 0, workdir=folder / "run")) as reports:
        for report in reports:
            reached.append(report.epoch)
            if report.epoch >= until:
                break
    return reached


def _read_checkpoint(folder: Path, target: Path, rng: random.Random) -> None:
    del target, rng
    try:
        reached = _train(folder, until=2)
    except NonFinite:  # numbers that are finite, and too large to go on from: a run that diverged
        return
    history = RunFolder(folder / "run").history()
    if reached[-1:] != [2] or [report["epoch"] for report in history] != [0, 1, 2]:
        raise Meaningless(f"a run that reached {reached} with {len(history)} reports")


def make_home(folder: Path) -> None:
    """Run a small sweep in `folder / "home"`, and export its model to `folder / "model"`."""
    write_images(folder / "data")
    write_clip(folder / "clip")
    plain = {
        "name": SWEEP,
        "method": "grid",
        "parameters": {"algorithm.kl_weight": {"values": [0.1, 1.0]}},
        "seeds": [0, 1],
        "baselines": ["zero_shot", "fine_tune"],
        "trial": {
            **trial(folder / "data", folder / "clip"),
            "merges": [{"name": "wise_ft", "alphas": [0.5]}],
        },
    }
    file = folder / f"{SWEEP}.yaml"
    file.write_text(yaml.safe_dump(plain))
    home = ["--home", str(folder / "home")]
    code, text = _said(["run", str(file), "--in-process", *home])
    code = code or _said(["export", SWEEP, "--out", str(folder / "model"), *home])[0]
    if code:
        raise RuntimeError(f"the small sweep does not run: {text}")


def _make_model(folder: Path) -> None:
    shutil.copytree(MADE["home"] / "model", folder / "model")
    _picture(1).save(folder / "image.png")


def _read_model(folder: Path, target: Path, rng: random.Random) -> None:
    del target, rng
    (prediction,) = Predictor.load(folder / "model", "cpu").predict([folder / "image.png"])
    for guesses in (prediction.classes, prediction.contexts):
        sums = sum(guess.probability for guess in guesses)
        if not guesses or not all(0 <= guess.probability <= 1 for guess in guesses) or sums > 1.001:
            raise Meaningless(f"probabilities {guesses}")


def _copy_home(folder: Path) -> None:
    shutil.copytree(MADE["home"] / "home", folder / "home")


MADE: dict[str, Path] = {}
"""Folders that several kinds copy from, by name."""
LOOKS: Sequence[Sequence[str]] = (
    *(("list", "--json"), ("list",), ("show", SWEEP, "--all"), ("show", SWEEP, "--json")),
    *(("compare", SWEEP), ("compare", SWEEP, "--json"), ("watch", SWEEP)),
    *(("clean", "--json"), ("doctor", "home", "sent")),
)
"""Commands that read a home in a moment."""
WORKS: Sequence[Sequence[str]] = (
    *(("report", SWEEP), ("sync", SWEEP), ("resume", SWEEP), ("export", SWEEP, "--force")),
)
"""Commands that take seconds."""


def _read_home(folder: Path, target: Path, rng: random.Random) -> None:
    del target
    works = [rng.choice(WORKS)] if WORKS and rng.random() < 0.08 else []
    for words in [*rng.sample(LOOKS, 3), *works]:
        _typed(words, folder)


def _typed(words: Sequence[str], folder: Path) -> None:
    """Run a command on the home in this process. Raises RequestError with its output if it exits
    with 2, Meaningless for any other failure."""
    more = {
        "report": ["--out", str(folder / "report.html")],
        "export": ["--out", str(folder / "exported")],
        "resume": ["--in-process"],
    }
    argv = [*words, *more.get(words[0], ()), "--home", str(folder / "home")]
    code, text = _said(argv)
    if code == 2:
        raise RequestError(text)
    if code not in (0, 4):  # 4: `doctor` of a busy machine, where a database takes too long
        raise Meaningless(f"{' '.join(words)} ends with {code}: {text}")
    if "--json" in words:
        json.loads(text, parse_constant=_no_number)


def _no_number(text: str) -> float:
    raise Meaningless(f"{text} in JSON")


def _said(argv: Sequence[str]) -> tuple[int, str]:
    """Run a command in this process; return its exit code and what it wrote."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = carft_sweep(argv)
    is_plain = code == 0
    return code, out.getvalue() if is_plain else out.getvalue() + err.getvalue()


KINDS = {
    kind.name: kind
    for kind in (
        Kind("sweep files", _make_sweep, ["*.yaml"], _read_sweep),
        Kind(
            "family files",
            _make_family,
            ["toys.family.yaml", "toys.family.yaml", "classes.json"],
            _read_family,
        ),
        Kind("template files", _make_templates, ["templates.*"], _read_templates),
        Kind("images", _make_images, ["*"], _read_image),
        Kind(
            "weights",
            _make_weights,
            [f"*/{SAFE_WEIGHTS}", f"*/{PICKLED_WEIGHTS}"],
            _read_weights,
            ("{}/safe", "{}/zip", "{}/bare"),
        ),
        Kind("resume checkpoints", _make_checkpoint, ["run/checkpoint.pt"], _read_checkpoint),
        Kind("model folders", _make_model, ["model/*"], _read_model, ("{}/model",)),
        Kind(
            "home: ledgers",
            _copy_home,
            [f"home/sweeps/{SWEEP}/*.jsonl", f"home/sweeps/{SWEEP}/sent/*"],
            _read_home,
            (f"no sweep '{SWEEP}' in {{}}/home",),  # whose ledger is a link to nothing
        ),
        Kind("home: runs", _copy_home, ["home/runs/*/*.json"], _read_home),
        Kind("home: evaluations", _copy_home, ["home/runs/*/evaluations/*/*"], _read_home),
    )
}
