"""Does the product train and evaluate on a GPU, in the memory and at the speed that one expects?

    python -m benchmarks.gpu.smoke [--device cuda] [--model ViT-B-16] [--steps 200] > gpu.json
    python -m benchmarks.gpu.smoke --device cpu --model tiny --steps 2 --batch 8 --images 32

NOT YET RUN ON A GPU: nobody had one when this was written. What it does on CUDA is the same code as
on a CPU, where a test runs it at the smallest size. Meant to take ten minutes on one H100, and at
most fifteen on two.

Method. An open_clip architecture with random weights (logit scale 100, as CLIP's) is written to a
folder, and noise images as JPEGs to a folder of the family `image_folder` with one shift; nothing
is downloaded. Then, with the product's own `trial_config`, `epochs` and `train`:
1. one step of CAR-FT. Its `train/context_kl` is measured before the weights have moved, so it must
   be at most KL_LIMIT, in bf16 too: teacher and student see the same view through the same
   arithmetic;
2. `--steps` steps of CAR-FT, in epochs of a quarter: images/s of each epoch but the first, whose
   kernels are being chosen, beside a bare step of the same kind over one batch that lies on the
   device, beside the loader alone, and beside the GPU's peak by its data sheet; the loader beside
   what a core decodes; and the greatest memory of tensors beside what `carft-sweep check` says;
3. evaluation of 12 models (unmerged, WiSE-FT at 11 alphas) on val, test and the shift;
4. with `--all` (always on CUDA) a quarter of the steps each with `compile: true`, with
   `optim.grad_checkpointing: true`, in two runs at once, and on two GPUs where there are two (on a
   CPU as two processes), each beside the same steps of 2. Compiled, KL before the first step must
   be small too, without a fall-back;
5. on CUDA, the losses of a few steps in fp32 beside a CPU's; copies on their own stream while
   products are computed: the bytes arrive; and a ResNet's step with cuDNN's first kernels and with
   those that it found fastest.

How to read it. Figures come as they are measured, `ok` or `NO` where there is a limit, and then all
as one JSON, from which docs/performance.md is written; the command fails if there is a NO. Limits
of speed and memory are for CUDA alone. Where images/s are those of the loader, cores are the limit
and not the GPU. Memory that is more than computed is often a graph that lives too long. `contexts`
is the entropy of the teacher's distribution over contexts beside that of an even one: were it even,
a KL of 0 would prove nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from benchmarks.floor.measurement import describe_machine
from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.data.loader import BatchSource, EpochPlan
from carft_sweep.carft_core.models.teacher import on_device
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.carft_core.training.loop import epochs, train
from carft_sweep.carft_core.training.memory import run_cost
from carft_sweep.carft_core.training.numerics import MIB, arithmetic, to_device
from carft_sweep.carft_core.training.setup import open_setup
from carft_sweep.sweeps.engines.base import Job
from carft_sweep.sweeps.engines.ranks import RANKS
from carft_sweep.sweeps.engines.supervisor import Supervisor
from carft_sweep.sweeps.plan.gpu_cost import GPUS

KL_LIMIT = 1e-4
EVEN = 0.98
"""A distribution counts as even from this share of the even distribution's entropy on."""
WARM_STEPS = 3
MEMORY_MARGIN = 0.1
"""By what fraction the memory of tensors may differ from what was computed."""
OF_FLOOR = 0.9
"""Least speed of training, as a share of that of the bare step or of the loader, the slower."""
OF_PEAK = 0.4
"""Share of the GPU's peak of operations a second that is aimed at."""
LOSS_MARGIN = 0.02
"""By what fraction the loss may differ between two ways of computing the same steps."""
FP32_MARGIN = 1e-3
"""Likewise between two devices in fp32."""
COPIES = 20
ALPHAS = [round(0.1 * step, 1) for step in range(11)]
CLASSES = ("cat", "dog", "house", "tree")
SIDE = 256
"""Pixels of an image's side."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TINY: Mapping[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
}
"""A ViT for the test of this file."""


class Figure(NamedTuple):
    """What was measured, and whether it is within its limit; None where there is no limit."""

    name: str
    value: float
    unit: str
    beside: Mapping[str, float | str] = {}
    """Numbers and words that the value is compared with."""
    ok: bool | None = None


def make_model(folder: Path, name: str) -> None:
    """Write a CLIP `name` with random weights to a folder that open_clip and the product open."""
    architecture = copy.deepcopy(dict(TINY)) if name == "tiny" else open_clip.get_model_config(name)
    if architecture is None:
        raise SystemExit(f"open_clip has no {name}")
    torch.manual_seed(0)
    model = open_clip.CLIP(**copy.deepcopy(architecture))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))
    folder.mkdir(parents=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": architecture, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")


def make_images(root: Path, count: int) -> None:
    """Write noise JPEGs: `count` to train on, an eighth as many for val, test and a shift."""
    rng = np.random.default_rng(0)
    rest = max(count // 8, len(CLASSES))
    for split, images in (("train", count), ("val", rest), ("test", rest), ("shifts/noise", rest)):
        for number in range(images):
            file = root / split / CLASSES[number % len(CLASSES)] / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((SIDE, SIDE)).save(file, quality=85)


def smoke(options: argparse.Namespace, scratch: Path) -> Iterator[Figure]:
    """Yield all figures."""
    make_model(scratch / "model", options.model)
    make_images(scratch / "data", options.images)
    precision = options.precision or ("bf16" if options.device.startswith("cuda") else "fp32")

    def config(steps: int, **more: Any) -> TrialConfig:
        optim = {
            "lr": 1e-5,
            "steps": steps,
            "steps_per_epoch": max(steps // 4, 1),
            "batch_size": options.batch,
            "micro_batch": options.micro_batch,
        }
        fields = {
            "model": {"name": str(scratch / "model")},
            "data": {"family": "image_folder", "root": str(scratch / "data")},
            "algorithm": "car_ft",
            "prompts": {"contexts": "openai"},
            "device": options.device,
            "precision": precision,
            "workers": options.workers,
            "keep": {"weights": True, "predictions": True},
            **more,
        }
        return trial_config({**fields, "optim": optim | more.get("optim", {})})

    *_, first = epochs(config(1), 0, workdir=scratch / "first")
    kl = first.metrics["train/context_kl"]
    yield Figure("KL before the first step", kl, "nats", {"limit": KL_LIMIT}, kl <= KL_LIMIT)
    full = config(options.steps, merges=[{"name": "wise_ft", "alphas": ALPHAS}])
    reports = list(epochs(full, 0, workdir=scratch / "run"))
    loss = reports[-1].metrics["train/loss"]
    yield Figure("loss at the end", loss, "", {}, math.isfinite(loss))
    yield memory(full, reports[-1].metrics["system/peak_memory_mb"])
    later = [report.metrics for report in reports if report.epoch > 1] or [reports[-1].metrics]
    speed = statistics.median(metrics["system/images_per_s"] for metrics in later)
    yield from speeds(full, speed, scratch / "model", options, precision)
    began = time.perf_counter()
    result = train(full, 0, workdir=scratch / "run")
    seconds = time.perf_counter() - began
    assert result is not None
    models = 1 + len(result.merges)
    yield Figure("evaluation on three splits", seconds, "s", {"models": models}, models == 12)
    entropy = result.merges["wise_ft@0"]["metrics"]["context/id/test/entropy"]
    even = math.log(len(open_clip.OPENAI_IMAGENET_TEMPLATES))
    yield Figure("contexts", entropy, "nats", {"even": even}, entropy < EVEN * even)
    if options.all or options.device.startswith("cuda"):
        yield from ways(config, options, scratch)
    if options.device.startswith("cuda"):
        yield fp32_losses(config, options, scratch)
        yield copies(torch.device(options.device))
        yield resnet(options, precision)


def memory(config: TrialConfig, held: float) -> Figure:
    """Return the most MiB of a run's tensors beside the computed; on a CPU the process's."""
    cost = run_cost(config)
    assert cost is not None
    expected, device = cost.peak / MIB, torch.device(config.device)
    if device.type != "cuda":
        return Figure("memory of the process", held, "MiB", {"computed": expected})
    measured = torch.cuda.max_memory_allocated(device) / MIB
    ok = abs(measured / expected - 1) <= MEMORY_MARGIN
    return Figure("memory", measured, "MiB", {"computed": expected, "with pieces": held}, ok)


def speeds(
    config: TrialConfig, speed: float, model: Path, options: argparse.Namespace, precision: str
) -> Iterator[Figure]:
    """Yield images/s of training (`speed`) and of the loader, beside their floors."""
    cost, on_gpu = run_cost(config), options.device.startswith("cuda")
    assert cost is not None
    bare, (loading, core) = bare_speed(model, options, precision), loading_speeds(config)
    decoding = core * max(1, options.workers)
    yield Figure("loader", loading, "images/s", {"the cores decode": decoding})
    ok = speed >= OF_FLOOR * min(bare, loading) if on_gpu else None
    yield Figure("training", speed, "images/s", {"bare step": bare, "loader": loading}, ok)
    name = torch.cuda.get_device_name(options.device) if on_gpu else ""
    gpu = next((gpu for key, gpu in GPUS.items() if key.replace("-", " ") in name), None)
    peak = None if gpu is None else gpu.bf16 if precision == "bf16" else gpu.fp32
    if peak is not None:
        share = cost.step / options.batch / peak
        beside = {"bare step": bare * share, "aim": OF_PEAK}
        yield Figure("operations", speed * share, "of the GPU's peak", beside)


def loading_speeds(config: TrialConfig) -> tuple[float, float]:
    """Return images/s of all workers together, and of one core that decodes without any."""
    teacher, size = open_setup(config).teacher, config.optim.batch_size
    split = teacher.splits["train"]
    plan = EpochPlan(len(split), size, seed=0)
    with teacher.loader as loader:
        times = [
            time.perf_counter()
            for _ in loader.steps(BatchSource("train", plan, 1), range(plan.steps))
        ]
    rows = [*range(min(64, len(split)))]
    began = time.perf_counter()
    split.source.views(rows, transform=teacher.transform, seed=1, epoch=1)
    core = len(rows) / (time.perf_counter() - began)
    # Of the second batch on: the workers have started by then.
    loaded = (len(split) - size) / (times[-1] - times[0]) if len(times) > 1 else core
    return loaded, core


def ways(
    config: Callable[..., TrialConfig], options: argparse.Namespace, scratch: Path
) -> Iterator[Figure]:
    """Yield a figure for each other way to compute the same steps."""
    steps = max(options.steps // 4, 2)
    plain = last_report(config(steps), scratch / "plain")

    def compared(name: str, *runs: Mapping[str, float]) -> Figure:
        loss, expected = runs[-1]["train/loss"], plain["train/loss"]
        beside = {
            "plain": plain["system/images_per_s"],
            "loss": loss,
            "loss, plain": expected,
            "MiB": sum(metrics["system/peak_memory_mb"] for metrics in runs),
            "MiB, plain": plain["system/peak_memory_mb"],
        }
        speed = sum(metrics["system/images_per_s"] for metrics in runs)
        return Figure(name, speed, "images/s", beside, abs(loss / expected - 1) <= LOSS_MARGIN)

    workdir = scratch / "compiled-first"
    *_, first = epochs(config(1, compile=True), 0, workdir=workdir)
    kl = first.metrics["train/context_kl"]
    fallback = RunFolder(workdir).trained()["warnings"]  # type: ignore[index]  # it is trained
    ok = kl <= KL_LIMIT and not fallback
    yield Figure("KL, compiled", kl, "nats", {"warnings": " ".join(fallback)}, ok)
    yield compared("compiled", last_report(config(steps, compile=True), scratch / "compiled"))
    checkpointing = config(steps, optim={"grad_checkpointing": True})
    yield compared("grad_checkpointing", last_report(checkpointing, scratch / "checkpointing"))
    places = [scratch / "one", scratch / "other"]
    yield compared("two runs at once", *in_workers(config(steps), places, ranks=1))
    gpus = torch.cuda.device_count() if options.device.startswith("cuda") else 2
    if gpus > 1 and ":" not in options.device:
        yield compared("two ranks", *in_workers(config(steps), [scratch / "two"], ranks=2))


def last_report(config: TrialConfig, folder: Path) -> Mapping[str, float]:
    """Return the metrics of a run's last epoch."""
    *_, last = epochs(config, 0, workdir=folder)
    return last.metrics


def in_workers(
    config: TrialConfig, folders: Sequence[Path], *, ranks: int
) -> list[Mapping[str, float]]:
    """Return the last metrics of runs that start together, in workers as an engine starts them."""
    reports: dict[Supervisor, Mapping[str, float]] = {}
    os.environ[RANKS] = str(ranks)
    try:
        for folder in folders:
            name, worker = folder.name, Supervisor()
            reports[worker] = {}
            worker.begin(Job(name, name, config.as_dict(), 0, str(folder)))
        while busy := [worker for worker in reports if worker.job is not None]:
            for worker in busy:
                event = worker.next(0.1)
                if event is None:
                    continue
                if event["kind"] == "report":
                    reports[worker] = event["report"]["metrics"]
                    worker.answer(Decision.CONTINUE)
                elif event["kind"] == "failed":
                    raise SystemExit(f"in a worker: {event['failure']['message']}")
        return [*reports.values()]
    finally:
        for worker in reports:
            worker.close()
        del os.environ[RANKS]


def fp32_losses(
    config: Callable[..., TrialConfig], options: argparse.Namespace, scratch: Path
) -> Figure:
    """Return the loss of two small steps in fp32 on the GPU, beside that of the CPU."""
    losses = {}
    for device in (options.device, "cpu"):
        small = {"batch_size": 8, "micro_batch": None, "steps_per_epoch": 2}
        run = config(2, device=device, precision="fp32", optim=small)
        losses[device] = last_report(run, scratch / f"fp32-{device[:4]}")["train/loss"]
    ok = abs(losses[options.device] / losses["cpu"] - 1) <= FP32_MARGIN
    return Figure("loss in fp32", losses[options.device], "", {"on the CPU": losses["cpu"]}, ok)


def copies(device: torch.device) -> Figure:
    """Return how many batches that are copied beside products arrive wrong, or are overwritten."""
    square = torch.randn(4096, 4096, device=device)
    batches = [torch.full((2**24,), number, dtype=torch.uint8) for number in range(COPIES)]
    sums = []
    for batch in batches:
        copy = to_device(batch.pin_memory(), device)
        for _ in range(10):
            square = (square @ square).clamp(-1, 1)
        sums.append(copy.float().mean())
    wrong = [number for number, mean in enumerate(sums) if float(mean) != number]
    return Figure("copies that arrive wrong", len(wrong), f"of {COPIES}", {}, not wrong)


def resnet(options: argparse.Namespace, precision: Any) -> Figure:
    """Return images/s of a ResNet's steps by cuDNN's own choice of kernels, and by trying them."""
    device, size = torch.device(options.device), min(options.batch, 128)
    tower = on_device(open_clip.create_model("RN50").visual, device)
    images = torch.randn(size, 3, 224, 224, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    speeds = []
    for tries in (False, True):
        with arithmetic(device, precision, convolutional=tries):
            for step in range(WARM_STEPS + options.bare_steps):
                if step == WARM_STEPS:
                    _wait(device)
                    began = time.perf_counter()
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    loss = tower(images).float().square().mean()
                loss.backward()
            _wait(device)
            speeds.append(size * options.bare_steps / (time.perf_counter() - began))
    return Figure("RN50", speeds[0], "images/s", {"with kernels that were tried": speeds[1]})


def bare_speed(folder: Path, options: argparse.Namespace, precision: str) -> float:
    """Return images/s of steps like CAR-FT's, without text side, on one batch on the device."""
    device = torch.device(options.device)
    size = options.micro_batch or options.batch
    student = open_clip.create_model(f"local-dir:{folder}").visual.to(device)
    teacher = copy.deepcopy(student).requires_grad_(False).eval()
    side = student.image_size[0]
    images = torch.randn(size, 3, side, side, device=device)
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-5, fused=True)
    began = 0.0
    for step in range(WARM_STEPS + options.bare_steps):
        if step == WARM_STEPS:
            _wait(device)
            began = time.perf_counter()
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            features = F.normalize(student(images).float(), dim=-1)
            with torch.no_grad():
                frozen = F.normalize(teacher(images).float(), dim=-1)
        (features * frozen).sum(dim=1).square().mean().backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
    _wait(device)
    return float(size * options.bare_steps / (time.perf_counter() - began))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> int:
    """Make, run, print; return 1 if a figure is beyond its limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--model", default="ViT-B-16", help="open_clip's name, or `tiny`")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="by default bf16 on CUDA")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--micro-batch", type=int)
    parser.add_argument("--bare-steps", type=int, default=20, help="of the bare loop beside it")
    parser.add_argument("--all", action="store_true", help="the further ways also on a CPU")
    parser.add_argument("--images", type=int, default=4096)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    device = "the CPU"
    if options.device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise SystemExit("torch sees no CUDA device; try --device cpu --model tiny")
        device = torch.cuda.get_device_name(options.device)
    began, figures = time.perf_counter(), list[Figure]()
    with tempfile.TemporaryDirectory(prefix="carft-smoke-") as scratch:
        for figure in smoke(options, Path(scratch)):
            figures.append(figure)
            mark = {None: "", True: "ok", False: "NO"}[figure.ok]
            words = [
                f"{key} {value}" if isinstance(value, str) else f"{key} {value:.4g}"
                for key, value in figure.beside.items()
            ]
            text = f"{figure.name}: {figure.value:.4g} {figure.unit}; {', '.join(words)}"
            sys.stderr.write(f"{mark:2} {text}\n")
    result = {
        "machine": describe_machine(),
        "device": device,
        "options": vars(options),
        "seconds": time.perf_counter() - began,
        "figures": [figure._asdict() for figure in figures],
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    return int(any(figure.ok is False for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
