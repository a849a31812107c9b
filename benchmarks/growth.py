"""How do time and memory grow with the images, the classes and the trials?

    python -m benchmarks.growth [--images] [--classes] [--trials] [--repeats 3] [--json FILE]
                                [--plot FILE]
    python -m benchmarks.growth --from FILE ... [--plot FILE]

Each step is measured at 1, 10 and 100 times a size, each time in a process of its own: its
processor seconds (of a run's steps without imports, of a command from start to exit) and the most
memory that it had. A size costs a + b * size^p, where a is what any size costs; p, the exponent,
follows from the three sizes. It is left out where what 10 times the size adds is within the noise.
`--from` prints and draws what `--json` has kept.

* `--images`: 200 to 20,000 images to train on, and as many that are measured (the test and a
  shift); 10 classes, 7 templates.
* `--classes`: 10 to 1,000 classes with 80 templates and as many contexts; always 4,000 images to
  train on and 4,000 that are measured.
* `--trials`: the commands on homes of 100 to 10,000 finished trials (ten_thousand_trials.py), and a
  driver of 10 to 1,000 trials of simulated training on the local engine (chaos/long_sweep.py).

The model is a CLIP of random weights with towers of one and two layers, so that what surrounds it
shows; images are PNG files of 32 pixels. The steps of a run are `open` (data, prompts, model) with
nothing in the user's cache, `open again` with what it left there, `train` for an epoch of CAR-FT,
and `evaluate` the model and WiSE-FT at three alphas, with predictions kept. `run` is a sweep of
the zero-shot model, fine-tuning and CAR-FT on these images, which `compare` and `report` are of.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.ten_thousand_trials import COMMANDS, build, measure

# This process stays small, since what a child is charged for memory begins with its parent's: torch
# and the like are imported by the children, or when everything is measured.

MODEL = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
TIMES = (1, 10, 100)
IMAGES, CLASSES, TRIALS, DRIVEN = 200, 10, 100, 10
"""The smallest sizes."""
IMAGES_OF_CLASSES = 4000
STEPS = ("open", "open again", "train", "evaluate")
ON_A_HOME = ("list", "show", "compare", "report")
NOISE = {"cpu_s": (0.05, 0.05), "peak_mb": (3.0, 0.01)}
"""Differences below the first, or below this share of the least cost, are chance: an exponent that
hangs on one is not given."""


@dataclass(frozen=True)
class Series:
    """What one step costs at three sizes."""

    of: str
    """`images`, `classes` or `trials`."""
    step: str
    sizes: Sequence[int]
    cpu_s: Sequence[float]
    peak_mb: Sequence[float]


def exponent(costs: Sequence[float], least: float, share: float) -> float | None:
    """Return p of costs a + b * size^p at 1, 10 and 100 times a size.

    0 where nothing grows by more than the noise; None where only the last step does.
    """
    first, second = costs[1] - costs[0], costs[2] - costs[1]
    noise = max(least, share * min(costs))
    if max(first, second) < noise:
        return 0.0
    return math.log10(second / first) if min(first, second) >= noise else None


def main() -> None:
    """Measure, print, keep, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in MEASURES:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument(
        "--repeats",
        type=int,
        default=3,
        help="of a run's steps, at two sizes, and of commands on trials",
    )
    parser.add_argument("--json", type=Path, help="keep what is measured here")
    parser.add_argument("--plot", type=Path, help="draw it here, as SVG")
    parser.add_argument(
        "--from", dest="sources", type=Path, nargs="+", help="measure nothing, read these"
    )
    parser.add_argument("--step", nargs=2, metavar=("STEP", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        perform(options.step[0], Path(options.step[1]))
        return
    if options.sources:
        results = [json.loads(file.read_text()) for file in options.sources]
        series = [it for result in results for it in result["series"]]
        result = {"machine": results[-1]["machine"], "series": series}
    else:
        measures = [name for name in MEASURES if vars(options)[name]] or [*MEASURES]
        series = [asdict(it) for name in measures for it in MEASURES[name](options.repeats)]
        from carft_sweep.sweeps.bench.measurement import describe_machine

        result = {"machine": describe_machine(), "series": series}
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    measured = [Series(**it) for it in result["series"]]
    sys.stdout.write("\n".join([result["machine"], *table(measured)]) + "\n")
    if options.plot:
        options.plot.write_text(draw(measured))


def measure_images(repeats: int) -> Iterator[Series]:
    """Measure a run, a sweep and its commands by the number of images."""
    sizes = [IMAGES * times for times in TIMES]
    points = {size: Point(images=size, classes=CLASSES, templates="simple") for size in sizes}
    yield from _measure_points("images", points, repeats)


def measure_classes(repeats: int) -> Iterator[Series]:
    """Measure the same by the number of classes."""
    sizes = [CLASSES * times for times in TIMES]
    points = {
        size: Point(images=IMAGES_OF_CLASSES, classes=size, templates="openai") for size in sizes
    }
    yield from _measure_points("classes", points, repeats)


def measure_trials(repeats: int) -> Iterator[Series]:
    """Measure commands on large homes, and a driver."""
    sizes = [TRIALS * times for times in TIMES]
    costs: dict[str, dict[int, Cost]] = {name: {} for name in ON_A_HOME}
    with tempfile.TemporaryDirectory(prefix="carft-growth-") as scratch:
        for size in sizes:
            home = Path(scratch) / str(size)
            build(home, size)
            for name in ON_A_HOME:
                for _ in range(repeats):
                    spent = cost("carft_sweep", *COMMANDS[name], "--home", str(home))
                    costs[name][size] = spent.least(costs[name].get(size))
            shutil.rmtree(home)
    for name in ON_A_HOME:
        yield _series("trials", name, costs[name])
    driver = {size: _drive(size) for size in (DRIVEN * times for times in TIMES)}
    yield _series("trials", "driver of run", driver)


MEASURES: Mapping[str, Callable[[int], Iterator[Series]]] = {
    "images": measure_images,
    "classes": measure_classes,
    "trials": measure_trials,
}


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    cpu_s: float
    peak_mb: float

    def least(self, other: Cost | None) -> Cost:
        """What two measurements agree on: whatever else the machine did has only added."""
        if other is None:
            return self
        return Cost(min(self.cpu_s, other.cpu_s), min(self.peak_mb, other.peak_mb))


def cost(module: str, *arguments: str) -> Cost:
    """Run a module as a process."""
    row = measure(arguments, 1, module=module)
    return _reported(Cost(row["cpu_s"], row["peak_mb"]), " ".join(arguments))


def _reported(spent: Cost, what: str) -> Cost:
    sys.stderr.write(f"{spent.cpu_s:7.2f} s {spent.peak_mb:5.0f} MB  {what}\n")
    return spent


def _series(of: str, step: str, costs: Mapping[int, Cost]) -> Series:
    sizes = sorted(costs)
    seconds = [costs[size].cpu_s for size in sizes]
    return Series(of, step, sizes, seconds, [costs[size].peak_mb for size in sizes])


def _drive(trials: int) -> Cost:
    """The driver's process of a sweep, without its workers."""
    from benchmarks.chaos.long_sweep import drive

    with tempfile.TemporaryDirectory(prefix="carft-growth-") as scratch:
        looks, code, output = drive(Path(scratch) / "home", trials, "local")
    if code:
        raise SystemExit(f"a sweep of {trials} simulated trials exited {code}: {output}")
    spent = Cost(looks[-1].cpu_s, max(look.rss_mb for look in looks))
    return _reported(spent, f"driver of {trials} trials")


@dataclass(frozen=True)
class Point:
    """A task of one size."""

    images: int
    """To train on, and as many to measure."""
    classes: int
    templates: str

    def config(self, folder: Path) -> dict[str, Any]:
        """The fields of a run on the images of a folder."""
        return {
            "model": {"name": str(folder / "model")},
            "data": {"family": "image_folder", "root": str(folder / "images")},
            "prompts": {"classes": self.templates, "contexts": self.templates},
            "algorithm": {"name": "car_ft"},
            "optim": {"epochs": 1, "lr": 1e-4, "batch_size": 128},
            "merges": [{"name": "wise_ft", "alphas": [0.25, 0.5, 0.75]}],
            "device": "cpu",
        }

    def sweep(self, folder: Path) -> dict[str, Any]:
        """A sweep of three such runs."""
        return {
            "name": "growth",
            "method": "grid",
            "parameters": {"algorithm.kl_weight": {"values": [1.0]}},
            "seeds": [0],
            "baselines": ["zero_shot", "fine_tune"],
            "parallel": 1,
            "trial": self.config(folder),
        }


def _measure_points(of: str, points: Mapping[int, Point], repeats: int) -> Iterator[Series]:
    costs: dict[str, dict[int, Cost]] = {}
    for size, point in points.items():
        with tempfile.TemporaryDirectory(prefix="carft-growth-") as scratch:
            folder = Path(scratch)
            os.environ["CARFT_CACHE"] = str(folder / "cache")
            (folder / "point.json").write_text(json.dumps(asdict(point)))
            cost("benchmarks.growth", "--step", "make", scratch)
            for _ in range(1 if size == max(points) else repeats):
                for step, spent in _measure_steps(folder):
                    by_size = costs.setdefault(step, {})
                    by_size[size] = spent.least(by_size.get(size))
            for command, spent in _measure_commands(folder, point):
                costs.setdefault(command, {})[size] = spent
    for step, by_size in costs.items():
        yield _series(of, step, by_size)


def _measure_steps(folder: Path) -> Iterator[tuple[str, Cost]]:
    """Measure each step of a run, from an empty cache on."""
    for left in ("cache", "run"):
        shutil.rmtree(folder / left, ignore_errors=True)
    for step in STEPS:
        cost("benchmarks.growth", "--step", step, str(folder))
        yield step, Cost(**json.loads((folder / "cost.json").read_text()))


def _measure_commands(folder: Path, point: Point) -> Iterator[tuple[str, Cost]]:
    """Measure a sweep and the commands that look at it."""
    home = ["--home", str(folder / "home")]
    sweep = folder / "growth.yaml"
    sweep.write_text(json.dumps(point.sweep(folder)))
    yield "run", cost("carft_sweep", "run", str(sweep), *home, "--quiet")
    for command in ("compare", "report"):
        yield command, cost("carft_sweep", command, "growth", *home)


def perform(step: str, folder: Path) -> None:
    """Do one step, in a process of its own, and leave what it took in `cost.json`."""
    point = Point(**json.loads((folder / "point.json").read_text()))
    if step == "make":
        make_task(point, folder)
        return
    import open_clip  # noqa: F401 - it and the others are imported where they are first needed
    import torch
    import torchvision.transforms.v2  # noqa: F401

    from carft_sweep.carft_core.config import trial_config
    from carft_sweep.carft_core.prepare import prepared
    from carft_sweep.carft_core.run import finish
    from carft_sweep.carft_core.train import epochs

    torch.set_num_threads(1)
    began = time.process_time()
    config, workdir = trial_config(point.config(folder)), folder / "run"
    if step == "train":
        for _ in epochs(config, 0, workdir=workdir):
            pass
    elif step == "evaluate":
        finish(workdir, config, 0)
    else:
        prepared(config)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak = used / (2**20 if sys.platform == "darwin" else 2**10)
    taken = Cost(round(time.process_time() - began, 3), round(peak))
    (folder / "cost.json").write_text(json.dumps(asdict(taken)))


def make_task(point: Point, folder: Path) -> None:
    """Write images of coloured noise, class by class, and a CLIP with random weights."""
    import numpy as np
    import open_clip
    import torch
    from PIL import Image
    from safetensors.torch import save_file

    draw_from = np.random.default_rng(0)
    counts = {"train": point.images, "test": point.images // 2, "shifts/dim": point.images // 2}
    for split, count in counts.items():
        for number in range(count):
            label = number % point.classes
            place = folder / "images" / split / f"class {label:04}"
            place.mkdir(parents=True, exist_ok=True)
            colour = np.array([label * 37, label * 91, label * 151]) % 200
            pixels = (colour + draw_from.integers(0, 56, (32, 32, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{number:06}.png", compress_level=1)
    torch.manual_seed(0)
    model = open_clip.CLIP(**MODEL)
    (folder / "model").mkdir()
    (folder / "model" / "open_clip_config.json").write_text(json.dumps({"model_cfg": MODEL}))
    save_file(model.state_dict(), folder / "model" / "open_clip_model.safetensors")


def table(series: Sequence[Series]) -> list[str]:
    """List the lines of a table in Markdown."""
    lines = []
    for of in dict.fromkeys(it.of for it in series):
        rows = [it for it in series if it.of == of]
        lines += ["", f"| {of} | processor seconds | exponent | memory, MB | exponent |"]
        lines += ["|---|---|---|---|---|"]
        lines += [
            f"| `{it.step}` at {_listed(it.sizes, ',')} | {_listed(it.cpu_s, '.2f')} | "
            f"{_written(exponent(it.cpu_s, *NOISE['cpu_s']))} | {_listed(it.peak_mb, '.0f')} | "
            f"{_written(exponent(it.peak_mb, *NOISE['peak_mb']))} |"
            for it in rows
        ]
    return lines


def _listed(numbers: Sequence[float], form: str) -> str:
    return ", ".join(f"{number:{form}}" for number in numbers)


def _written(power: float | None) -> str:
    return "" if power is None else f"{power:.2f}"


def draw(series: Sequence[Series]) -> str:
    """Draw time and memory beside each other, a row for images, classes and trials each; SVG."""
    import altair as alt
    import vl_convert

    rows = [
        alt.hconcat(
            *(
                _panel([it for it in series if it.of == of], of, quantity)
                for quantity in ("cpu_s", "peak_mb")
            )
        )
        for of in dict.fromkeys(it.of for it in series)
    ]
    title = alt.Title("dashed: in proportion to the size", fontSize=11, fontWeight="normal")
    spec = alt.vconcat(*rows, spacing=24, title=title).resolve_scale(
        color="independent", shape="independent"
    )
    config = {
        "background": "white",
        "padding": {"left": 5, "top": 5, "bottom": 5, "right": 20},
        "font": "Helvetica, Arial, sans-serif",
        "axis": {"gridOpacity": 0.4, "labelFontSize": 11, "titleFontSize": 12},
        "legend": {"labelFontSize": 11, "title": None, "symbolStrokeWidth": 2},
        "view": {"stroke": "#bbbbbb"},
    }
    return vl_convert.vegalite_to_svg(spec.to_dict(), config=config)


COLOURS = ("#1a85d6", "#d55e00", "#009e73", "#c065a0", "#8f7a00", "#8a63d2", "#444444")
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "triangle-right")
TITLES = {"cpu_s": "processor seconds", "peak_mb": "memory, MB"}


def _panel(series: Sequence[Series], of: str, quantity: str) -> Any:
    """Both axes logarithmic, with a dashed line of what is proportional to the size."""
    import altair as alt

    points = [
        {"step": it.step, "size": size, "cost": value}
        for it in series
        for size, value in zip(it.sizes, vars(it)[quantity], strict=True)
    ]
    costs, sizes = ([point[key] for point in points] for key in ("cost", "size"))
    low, high = min(costs) / 1.3, max(costs) * 1.3
    steps = [it.step for it in series]
    looks = {
        channel: {"field": "step", "type": "nominal", "scale": {"domain": steps, "range": values}}
        for channel, values in (("color", [*COLOURS]), ("shape", [*SYMBOLS]))
    }
    x = alt.X("size:Q", title=of, scale=alt.Scale(type="log", nice=False, padding=12))
    x["axis"] = alt.Axis(values=sorted({*sizes}), format=",")
    y = alt.Y(
        "cost:Q",
        title=TITLES[quantity],
        scale=alt.Scale(type="log", domain=[low, high], nice=False),
    )
    y["axis"] = alt.Axis(values=_ticks(low, high), format=",", minExtent=35, maxExtent=35)
    marked = alt.Chart(alt.InlineData(values=points)).encode(x=x, y=y, **looks)
    ends = [{"size": min(sizes), "cost": low}, {"size": max(sizes), "cost": 0.0}]
    ends[1]["cost"] = low * max(sizes) / min(sizes)
    guide = alt.Chart(alt.InlineData(values=ends)).mark_line(
        color="#999999", strokeDash=[4, 4], strokeWidth=1, clip=True
    )
    return alt.layer(
        guide.encode(x="size:Q", y="cost:Q"),
        marked.mark_line(strokeWidth=1.5),
        marked.mark_point(filled=True, size=55, opacity=1),
    ).properties(width=290, height=210)


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 in each decade; of more than two decades the 1 alone."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 100 * low else (1,)
    ticks = [float(step * 10**decade) for decade in decades for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


if __name__ == "__main__":
    main()
