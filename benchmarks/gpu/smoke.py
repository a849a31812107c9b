"""Does the product train and evaluate on a GPU, in the memory and at the speed that one expects?

    python -m benchmarks.gpu.smoke [--device cuda] [--model ViT-B-16] [--steps 200] [--batch 256]
    python -m benchmarks.gpu.smoke --device cpu --model tiny --steps 2 --batch 8 --images 32

NOT YET RUN ON A GPU: nobody had one when this was written. What it does on CUDA is the same code as
on a CPU, where a test runs it at the smallest size; its numbers for a GPU are estimates to check.

Method. An open_clip architecture with random weights (logit scale 100, as CLIP's) is written to a
folder, and noise images as JPEGs to a folder of the family `image_folder` with one shift; nothing
is downloaded. Then, with the product's own `trial_config`, `epochs` and `train`:
1. one step of CAR-FT. Its `train/context_kl` is measured before the weights have moved, so it must
   be at most 1e-4, in bf16 too: teacher and student see the same view through the same arithmetic;
2. `--steps` steps of CAR-FT, in epochs of a quarter; images/s of each epoch but the first, whose
   kernels are being chosen, and the greatest memory that torch held (CUDA only);
3. evaluation of 12 models (unmerged, WiSE-FT at 11 alphas) on val, test and the shift;
4. with `--all` (always on CUDA) a quarter of the steps each with `compile: true`, with
   `optim.grad_checkpointing: true`, and on two GPUs where there are two (on a CPU as two
   processes), each beside the same steps of 2: the loss at the end, by at most LOSS_MARGIN another,
   images/s and memory. Compiled, KL before the first step must be small too, without a fall-back;
5. with `--all` on CUDA, copies on their own stream while products are computed: the bytes arrive;
   and a ResNet's step with cuDNN's first kernels and with those that it found fastest.

How to read it. Each line is a figure, and `ok` or `NO` where a limit is given; the command fails if
there is a NO. Memory is compared with `estimate`: weights of student and teacher, gradients, two
moments, and for the backward pass of an eager ViT 46 d bytes a token and layer in bf16, d its
width (83.5 MB an image of a ViT-B/16); a deviation of more than 30 % asks for an explanation, often
a graph that lives too long. Images/s are those of the whole pipeline, beside those of a bare step
of the same kind over one batch that lies on the device: where the first are far below, the loader
or the loop is the limit and not the GPU. `contexts` is the entropy of the teacher's distribution
over contexts beside that of an even one: were it even, a KL of 0 would prove nothing.
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
from collections.abc import Callable, Mapping
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
from carft_sweep.carft_core.models.teacher import on_device
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.training.loop import epochs, train
from carft_sweep.carft_core.training.numerics import arithmetic, to_device
from carft_sweep.sweeps.engines.base import Decision, Job
from carft_sweep.sweeps.engines.ranks import RANKS
from carft_sweep.sweeps.engines.supervisor import Supervisor

KL_LIMIT = 1e-4
EVEN = 0.98
"""Of the entropy of an even distribution: what counts as even."""
WARM_STEPS = 3
MEMORY_MARGIN = 0.3
ACTIVATIONS = {"bf16": 46, "fp32": 92}
"""Bytes that an eager ViT block keeps for the backward pass, for each token and channel."""
LOSS_MARGIN = 0.02
"""By what fraction the loss may differ between two ways of computing the same steps."""
COPIES = 20
ALPHAS = [round(0.1 * step, 1) for step in range(11)]
CLASSES = ("cat", "dog", "house", "tree")
SIDE = 256
"""Pixels of an image's side."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TINY: Mapping[str, Any] = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {
        "context_length": 77,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
    },
}
"""A ViT for the test of this file."""


class Row(NamedTuple):
    """A figure, and whether it is within its limit; None where there is no limit."""

    name: str
    value: str
    ok: bool | None = None


def make_model(folder: Path, name: str) -> dict[str, Any]:
    """Random weights in a folder that open_clip and the product open; the architecture."""
    architecture = copy.deepcopy(dict(TINY)) if name == "tiny" else open_clip.get_model_config(name)
    if architecture is None or "layers" not in architecture["vision_cfg"]:
        raise SystemExit(f"{name} is no ViT of open_clip's")
    torch.manual_seed(0)
    model = open_clip.CLIP(**copy.deepcopy(architecture))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(100))
    folder.mkdir(parents=True)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": architecture, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    towers = {"image": model.visual, "all": model}
    counts = {key: sum(p.numel() for p in tower.parameters()) for key, tower in towers.items()}
    return {"vision": architecture["vision_cfg"], "parameters": counts}


def make_images(root: Path, count: int) -> None:
    """`count` images to train on and an eighth as many for test and a shift: JPEGs of noise."""
    rng = np.random.default_rng(0)
    few = max(count // 8, len(CLASSES))
    for split, images in (("train", count), ("val", few), ("test", few), ("shifts/noise", few)):
        for number in range(images):
            file = root / split / CLASSES[number % len(CLASSES)] / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            coarse = rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((SIDE, SIDE)).save(file, quality=85)


def estimate_mb(model: Mapping[str, Any], micro_batch: int, precision: str) -> float:
    """Memory of a training step of CAR-FT, in MiB, as the docstring of this file says."""
    vision = model["vision"]
    tokens = (vision["image_size"] // vision["patch_size"]) ** 2 + 1
    of_image = ACTIVATIONS[precision] * vision["width"] * tokens * vision["layers"]
    # Student, its gradients, two moments, and the teacher; with autocast's copy of the weights.
    weights = model["parameters"]["image"] * (5 * 4 + (2 if precision == "bf16" else 0))
    return float(of_image * micro_batch + weights) / 2**20


def smoke(options: argparse.Namespace, scratch: Path) -> list[Row]:
    """All figures."""
    model = make_model(scratch / "model", options.model)
    make_images(scratch / "data", options.images)
    precision = options.precision or ("bf16" if options.device.startswith("cuda") else "fp32")

    def config(steps: int, **more: Any) -> TrialConfig:
        return trial_config(
            {
                "model": {"name": str(scratch / "model")},
                "data": {"family": "image_folder", "root": str(scratch / "data")},
                "algorithm": "car_ft",
                "prompts": {"contexts": "openai"},
                "optim": {
                    "lr": 1e-5,
                    "steps": steps,
                    "steps_per_epoch": max(steps // 4, 1),
                    "batch_size": options.batch,
                    "micro_batch": options.micro_batch,
                },
                "device": options.device,
                "precision": precision,
                "workers": options.workers,
                "keep": {"weights": True, "predictions": True},
                **more,
            }
        )

    rows = []
    *_, first = epochs(config(1), 0, workdir=scratch / "first")
    kl = first.metrics["train/context_kl"]
    rows.append(Row("KL before the first step", f"{kl:.2e} nats", kl <= KL_LIMIT))
    merges = [{"name": "wise_ft", "alphas": ALPHAS}]
    full = config(options.steps, merges=merges)
    began = time.perf_counter()
    reports = list(epochs(full, 0, workdir=scratch / "run"))
    trained = time.perf_counter() - began
    later = [report.metrics for report in reports if report.epoch > 1] or [reports[-1].metrics]
    speed = statistics.median(metrics["system/images_per_s"] for metrics in later)
    bare = bare_speed(scratch / "model", options, precision)
    rows.append(Row("images/s", f"{speed:.0f}, bare step {bare:.0f}, ratio {bare / speed:.2f}"))
    rows.append(Row("training", f"{trained:.1f} s for {reports[-1].step} steps, validation in it"))
    loss = reports[-1].metrics["train/loss"]
    rows.append(Row("loss at the end", f"{loss:.3f}", math.isfinite(loss)))
    rows.append(_memory(reports[-1].metrics, model, options, precision))
    began = time.perf_counter()
    result = train(full, 0, workdir=scratch / "run")
    seconds = time.perf_counter() - began
    assert result is not None
    models = 1 + len(result.merges)
    rows.append(Row("evaluation", f"{models} models in {seconds:.1f} s", models == 12))
    entropy = result.merges["wise_ft@0"]["metrics"]["context/id/test/entropy"]
    even = math.log(len(open_clip.OPENAI_IMAGENET_TEMPLATES))
    rows.append(Row("contexts", f"{entropy:.2f} nats, even {even:.2f}", entropy < EVEN * even))
    if options.all or options.device.startswith("cuda"):
        rows += ways(config, options, scratch)
    if options.device.startswith("cuda"):
        rows += [copies(torch.device(options.device)), resnet(options, precision)]
    return rows


def ways(
    config: Callable[..., TrialConfig], options: argparse.Namespace, scratch: Path
) -> list[Row]:
    """Other ways to compute the same steps."""
    steps = max(options.steps // 4, 2)
    plain = last_report(config(steps), scratch / "plain")
    optim = config(steps).optim.model_dump() | {"grad_checkpointing": True}
    gpus = torch.cuda.device_count() if options.device.startswith("cuda") else 2
    found = {
        "compiled": last_report(config(steps, compile=True), scratch / "compiled"),
        "grad_checkpointing": last_report(config(steps, optim=optim), scratch / "checkpointing"),
    }
    rows = []
    one = scratch / "compiled-first"
    *_, first = epochs(config(1, compile=True), 0, workdir=one)
    kl = first.metrics["train/context_kl"]
    fallback = RunFolder(one).trained()["warnings"]  # type: ignore[index]  # it is trained
    text = f"{kl:.2e} nats before the first step {' '.join(fallback)}"
    rows.append(Row("compiled", text, kl <= KL_LIMIT and not fallback))
    if gpus > 1 and ":" not in options.device:
        found["two processes"] = on_two(config(steps), scratch / "two")
    for name, metrics in found.items():
        loss, expected = metrics["train/loss"], plain["train/loss"]
        speed, slow = (it["system/images_per_s"] for it in (metrics, plain))
        memory, much = (it["system/peak_memory_mb"] for it in (metrics, plain))
        text = (
            f"loss {loss:.4f}, plain {expected:.4f}; {speed:.0f} images/s, plain {slow:.0f}; "
            f"{memory:.0f} MiB, plain {much:.0f}"
        )
        rows.append(Row(name, text, abs(loss / expected - 1) <= LOSS_MARGIN))
    return rows


def last_report(config: TrialConfig, folder: Path) -> Mapping[str, float]:
    """The metrics of a run's last epoch."""
    *_, last = epochs(config, 0, workdir=folder)
    return last.metrics


def on_two(config: TrialConfig, folder: Path) -> Mapping[str, float]:
    """The same of a run on two processes, by a worker as an engine starts it."""
    job = Job(digest="two", label="two", config=config.as_dict(), seed=0, workdir=str(folder))
    last: Mapping[str, float] = {}
    os.environ[RANKS] = "2"
    worker = Supervisor()
    try:
        worker.begin(job)
        while True:
            event = worker.next(1.0)
            if event is None:
                continue
            if event["kind"] == "report":
                last = event["report"]["metrics"]
                worker.answer(Decision.CONTINUE)
            elif event["kind"] == "failed":
                raise SystemExit(f"on two processes: {event['failure']['message']}")
            elif event["kind"] in ("finished", "stopped"):
                return last
    finally:
        worker.close()
        del os.environ[RANKS]


def copies(device: torch.device) -> Row:
    """Whether batches that are copied beside products arrive whole, and are not overwritten."""
    square = torch.randn(4096, 4096, device=device)
    batches = [torch.full((2**24,), number, dtype=torch.uint8) for number in range(COPIES)]
    sums = []
    for batch in batches:
        there = to_device(batch.pin_memory(), device)
        for _ in range(10):
            square = (square @ square).clamp(-1, 1)
        sums.append(there.float().mean())
    wrong = [number for number, mean in enumerate(sums) if float(mean) != number]
    return Row("copies", f"{COPIES} beside products, {len(wrong)} of them wrong", not wrong)


def resnet(options: argparse.Namespace, precision: Any) -> Row:
    """Images/s of a ResNet's steps by cuDNN's own choice of kernels, and by trying them."""
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
    return Row("RN50", f"{speeds[0]:.0f} images/s, with kernels that were tried {speeds[1]:.0f}")


def bare_speed(folder: Path, options: argparse.Namespace, precision: str) -> float:
    """Images/s of steps like CAR-FT's, without its text side, on one batch on the device."""
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


def _memory(
    metrics: Mapping[str, float], model: Mapping[str, Any], options: Any, precision: str
) -> Row:
    expected = estimate_mb(model, options.micro_batch or options.batch, precision)
    measured = metrics["system/peak_memory_mb"]
    text = f"{measured:.0f} MiB, estimate {expected:.0f}"
    if not options.device.startswith("cuda"):
        return Row("memory", f"{text} (of the whole process: not comparable)")
    return Row("memory", text, abs(measured / expected - 1) <= MEMORY_MARGIN)


def main() -> int:
    """Make, run, print."""
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
    with tempfile.TemporaryDirectory(prefix="carft-smoke-") as scratch:
        rows = smoke(options, Path(scratch))
    sys.stdout.write(f"{describe_machine()}; {device}\n{options.model}, batch {options.batch}\n")
    marks = {None: "", True: "ok", False: "NO"}
    for row in rows:
        sys.stdout.write(f"{marks[row.ok]:2} {row.name}: {row.value}\n")
    return int(any(row.ok is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
