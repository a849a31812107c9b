"""What a run needs, what machines have, and what a run gets of them."""

from __future__ import annotations

import math
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import psutil

from carft_sweep.carft_core.errors import RequestError

if TYPE_CHECKING:
    from carft_sweep.carft_core.config.trial import TrialConfig
    from carft_sweep.sweeps.spec.settings import Resources


QUERY = (
    "nvidia-smi",
    "--query-gpu=index,uuid,memory.total,compute_cap,mig.mode.current",
    "--format=csv,noheader,nounits",
)
_DIVIDED = "Enabled"
"""The MIG mode of a GPU that can be used in slices alone; its listed memory is that of all."""
_SLICE = re.compile(r"MIG \S*?(\d+)gb\S*\s.*UUID: (MIG-[^)\s]+)")
"""A slice's line of `nvidia-smi -L`: its memory in GB, and its id."""
_NVIDIA_SECONDS = 15.0
_EPSILON = 1e-9
_BF16 = 8.0
"""The compute capability from which on a GPU computes bf16 itself; before, it is emulated."""

CGROUP = Path("/sys/fs/cgroup")
MOST_SHARING = 4
"""Runs on one GPU with `gpus: auto`, at most: so many keep it busy, and share out the cores."""
FREE_SHARE = 0.8
"""Fraction of the available memory that all runs may take; the rest is for other programs."""
GPU_SHARE = 0.9
"""Fraction of a GPU's memory that runs may take: allocators leave gaps, which are lost."""
USABLE_AGAIN = (
    "install torch's build for the driver (nvidia-smi shows its CUDA version), and look at "
    "CUDA_VISIBLE_DEVICES"
)
"""What helps where torch sees no GPU."""


@dataclass(frozen=True)
class Gpu:
    """What is known of one GPU; None is unknown."""

    memory_mb: float | None = None
    """In MiB."""
    bf16: bool | None = None
    """Whether it computes bf16."""
    name: str = ""
    """As CUDA_VISIBLE_DEVICES names it."""


@dataclass(frozen=True)
class RunRequirements:
    """What one run takes of a node."""

    cpus: float
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        custom = [f"{amount:g} {name}" for name, amount in self.custom.items()]
        return ", ".join([_count(self.cpus, "CPU"), _count(self.gpus, "GPU"), *custom])


@dataclass(frozen=True)
class Node:
    """What one machine has."""

    name: str
    cpus: float
    gpus: float = 0.0
    custom: Mapping[str, float] = field(default_factory=dict)
    gpu_memory_mb: tuple[float, ...] = ()
    """Of each GPU, where it is known."""
    bf16: bool | None = None
    """Whether each of its GPUs computes bf16; None where nobody knows."""
    devices: tuple[str, ...] = ()
    """Its GPUs as CUDA_VISIBLE_DEVICES names them; empty for another machine than this one."""

    def with_gpus(self, gpus: Sequence[Gpu]) -> Node:
        """Return the node with the GPUs that it reports."""
        memory = tuple(gpu.memory_mb for gpu in gpus if gpu.memory_mb is not None)
        facts = {gpu.bf16 for gpu in gpus}
        bf16 = False if False in facts else True if facts == {True} else None
        names = tuple(gpu.name for gpu in gpus if gpu.name)
        return replace(self, gpu_memory_mb=memory, bf16=bf16, devices=names)

    @property
    def gpu_type(self) -> str:
        """Ray's resource that names the kind of the node's GPUs, `accelerator_type:...`, or ""."""
        types = (name for name in self.custom if name.startswith("accelerator_type:"))
        return next(types, "")

    def fits(self, need: RunRequirements) -> int:
        """Return how many runs of these requirements fit on the node at once."""
        room = [self.cpus / need.cpus] if need.cpus else []
        if need.gpus >= 1:
            room.append(self.gpus / need.gpus)
        elif need.gpus > 0:  # a run never spreads over two GPUs
            room.append(int(self.gpus) * math.floor(1 / need.gpus + _EPSILON))
        room += [self.custom.get(name, 0.0) / amount for name, amount in need.custom.items()]
        return math.floor(min(room, default=1.0) + _EPSILON)


def sharing(supply: Sequence[Node], takes_mb: float | None) -> Mapping[str, int]:
    """Return, by name of each node with GPUs, how many runs of `takes_mb` MiB its smallest GPU
    holds, from 1 to MOST_SHARING; 1 where a size is unknown."""
    return {
        node.name: max(1, min(MOST_SHARING, int(GPU_SHARE * min(node.gpu_memory_mb) / takes_mb)))
        if takes_mb and len(node.gpu_memory_mb) >= node.gpus
        else 1
        for node in supply
        if node.gpus
    }


def requirements_of(
    resources: Resources, supply: Sequence[Node], parallel: int | None = None
) -> RunRequirements:
    """Return the resources of one run, with defaults for fields that the sweep file leaves open.
    GPUs: one where a machine has any. CPUs: an even share of a node's among the runs that its GPUs
    hold, or among `parallel` runs; else one."""
    has_gpus = any(node.gpus >= 1 for node in supply)
    gpus = float(has_gpus) if resources.gpus is None else resources.gpus
    if gpus == "auto":
        gpus = has_gpus / MOST_SHARING
    need = RunRequirements(0, gpus, resources.custom)
    cpus: float = 1
    if resources.cpus is not None:
        cpus = resources.cpus
    elif gpus > 0:
        shares = [node.cpus // node.fits(need) for node in supply if node.fits(need)]
        cpus = max(1, min(shares, default=1))
    elif parallel is not None:
        share = sum(node.cpus for node in supply) // parallel
        cpus = max(1, min(share, max(node.cpus for node in supply)))
    return replace(need, cpus=cpus)


def max_concurrent_runs(
    need: RunRequirements, supply: Sequence[Node], parallel: int | None = None
) -> int:
    """Return how many runs that take `need` fit at once on the nodes; at most `parallel`."""
    room = sum(node.fits(need) for node in supply)
    return room if parallel is None else min(room, parallel)


def feasible(need: RunRequirements, supply: Sequence[Node]) -> RunRequirements:
    """Return `need` unchanged. Raises RequestError, with the supply, when no run can ever start."""
    if any(node.fits(need) for node in supply):
        return need
    lines = [f"no node can ever meet `resources`: one run needs {need}; there are"]
    for node in supply:
        custom = {name: node.custom.get(name, 0.0) for name in need.custom}
        lines.append(f"  {node.name}: {RunRequirements(node.cpus, node.gpus, custom)}")
    raise RequestError("\n".join(lines if supply else [*lines, "  no nodes"]))


def this_machine() -> Node:
    """Return the resources of this machine that this process may use."""
    gpus, cpus, quota = visible_gpus(), usable_cpus(), cpu_quota()
    whole = cpus if quota is None else min(cpus, max(1, int(quota)))
    return Node("this machine", whole, len(gpus)).with_gpus(gpus)


def devices_of(gpus: float | None, machine: Node, runs: int) -> list[str | None]:
    """Return the CUDA_VISIBLE_DEVICES of each of `runs` runs, which share the GPUs of `machine`. A
    run has `gpus` whole GPUs to itself, or a share of a GPU; shares are spread before a GPU has
    two. With `gpus` None they are None: a run sees all GPUs."""
    if gpus is None:
        return [None] * runs
    names, each = machine.devices, int(gpus)
    if 0 < gpus < 1:
        return [names[run % len(names)] for run in range(runs)]
    return [",".join(names[run * each : (run + 1) * each]) for run in range(runs)]


def usable_cpus() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cpu_quota() -> float | None:
    """Return the number of cores that a control group (version 2) permits; None for no limit."""
    try:
        quota, period = (CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # there is none, or `max`
        return None


def memory_limit() -> int | None:
    """Return the bytes that a control group (version 2) permits; None for no limit."""
    try:
        return int((CGROUP / "memory.max").read_text())
    except (OSError, ValueError):  # there is none, or `max`
        return None


def memory_for_runs_mb() -> float:
    """Return the MiB of this machine's memory that all runs together may take."""
    available: int = psutil.virtual_memory().available
    return FREE_SHARE * min(available, memory_limit() or available) / 2**20


def visible_gpus(environ: Mapping[str, str] | None = None, listing: str | None = None) -> list[Gpu]:
    """List the NVIDIA GPUs that `environ` makes visible, without torch. A slice of MIG is a GPU of
    its own, with the memory that its kind is named by, such as 3g.40gb. `listing` is the output of
    QUERY and, where GPUs are divided, of `nvidia-smi -L`; left out, they are run."""
    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    listing = _listing() if listing is None else listing
    lines = (line.split(",") for line in listing.splitlines() if line.count(",") == 4)
    rows = [[part.strip() for part in parts] for parts in lines]
    # Only GPUs that compute bf16 are divided so.
    slices = [
        Gpu(int(size) * 1e9 / 2**20, bf16=True, name=name) for size, name in _SLICE.findall(listing)
    ]
    if visible is None:
        return [*(_gpu(row) for row in rows if row[4] != _DIVIDED), *slices]
    gpus: list[Gpu] = []
    for name in filter(None, (part.strip() for part in visible.split(","))):
        row = next((row for row in rows if name == row[0] or row[1].startswith(name)), None)
        if row is not None:
            gpus.append(replace(_gpu(row), name=name))
        elif name.startswith("MIG-"):
            known = (part for part in slices if part.name == name)
            gpus.append(next(known, Gpu(bf16=True, name=name)))
        else:
            break  # as CUDA does: what follows one that is not there is hidden
    return gpus


def unusable_gpus(environ: Mapping[str, str] | None = None) -> str:
    """Return why torch uses none of the GPUs that `environ` makes visible; "" where it does, or
    where there are none."""
    import torch

    count = len(visible_gpus(environ))
    if not count or torch.cuda.is_available():
        return ""
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    gpus = _count(count, "GPU")
    return f"nvidia-smi lists {gpus}, but torch {torch.__version__}, {built}, sees none"


def _gpu(row: Sequence[str]) -> Gpu:
    capability = _number(row[3])
    memory = None if row[4] == _DIVIDED else _number(row[2])
    # The id, since CUDA may number them in another order than the listing.
    return Gpu(memory, None if capability is None else capability >= _BF16, row[1])


def _listing() -> str:
    if shutil.which(QUERY[0]) is None:
        return ""
    listing = _output(QUERY)
    return listing + _output((QUERY[0], "-L")) if _DIVIDED in listing else listing


def _output(command: Sequence[str]) -> str:
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=_NVIDIA_SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    return ended.stdout if ended.returncode == 0 else ""


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # `[N/A]`, on machines whose GPU shares the host's memory
        return None


def _count(amount: float, what: str) -> str:
    return f"{amount:g} {what}{'' if amount == 1 else 's'}"


@dataclass(frozen=True)
class Hardware:
    """What one run gets. The driver resolves `auto` against it once, before anything is filed."""

    cpus: int
    """Cores of the run's share."""
    gpus: int = 0
    """CUDA devices that the run sees."""
    mps: bool = False
    bf16: bool = False
    """Whether every GPU on which the run may land is known to compute bf16."""
    why_fp32: str = ""
    """Why `bf16` is False where there are GPUs."""
    gpu_memory: float | None = None
    """MiB of a GPU that the run gets; None where that is unknown."""
    unusable: str = ""
    """Why torch can use none of the GPUs that are there; "" if it can."""

    @property
    def device(self) -> Literal["cpu", "cuda", "mps"]:
        """The device that `device: auto` means."""
        return "cuda" if self.gpus else "mps" if self.mps else "cpu"

    @property
    def room(self) -> int | None:
        """The bytes that the tensors of a run may take on its GPU; None where unknown."""
        if self.gpu_memory is None:
            return None
        from carft_sweep.carft_core.training.numerics import CONTEXT_AT_MOST_MB

        return int((GPU_SHARE * self.gpu_memory - CONTEXT_AT_MOST_MB) * 2**20)

    def resolve(self, config: TrialConfig) -> TrialConfig:
        """Return `config` with its device, precision, workers, and batches on a GPU decided. Raises
        RequestError for a device that the run does not get, for `auto` where torch cannot use the
        GPUs that are there, or for a precision that the device lacks."""
        import torch

        from carft_sweep.carft_core.data.loader import default_workers
        from carft_sweep.carft_core.training.memory import fit_batches
        from carft_sweep.carft_core.training.numerics import resolve_precision

        if config.device == "auto" and self.unusable and not self.gpus:
            remedy = f"{USABLE_AGAIN}; to train on the CPU say device: cpu"
            raise RequestError(f"{self.unusable}: {remedy}")
        device = self.device if config.device == "auto" else config.device
        self._check(device)
        precision = config.precision
        if precision == "auto":
            precision = "bf16" if _is_cuda(device) and self.bf16 else "fp32"
        workers = config.workers
        if workers == "auto":
            workers = default_workers(device.partition(":")[0], self.cpus)
        precision = resolve_precision(precision, torch.device(device))
        changes = {"device": device, "precision": precision, "workers": workers}
        resolved = config.model_copy(update=changes)
        if not _is_cuda(device) or self.room is None:
            return resolved
        return fit_batches(resolved, self.room, self.gpus)

    def notes(self, config: TrialConfig) -> Iterator[str]:
        """Yield notes for the user on how values of `config` were resolved."""
        device = self.device if config.device == "auto" else config.device
        if config.precision == "auto" and _is_cuda(device) and not self.bf16:
            yield f"precision: auto is fp32, since {self.why_fp32}; precision: bf16 would be kept"

    def _check(self, device: str) -> None:
        kind, _, index = device.partition(":")
        if kind == "cuda" and int(index or 0) >= self.gpus:
            gpus = _count(self.gpus, "GPU")
            raise RequestError(f"device: {device} is not there: a run gets {gpus} (resources.gpus)")
        if kind == "mps" and not self.mps:
            raise RequestError("device: mps is not there: a run gets none")


def hardware_here(gpus: float | None, cpus: int | None) -> Hardware:
    """Return the hardware of a run on `gpus` GPUs and `cpus` cores of this machine (None: all)."""
    import torch

    from carft_sweep.carft_core.training.numerics import resolve_precision

    cores = cpus or usable_cpus()
    if gpus == 0:
        return Hardware(cores)
    if not torch.cuda.is_available():
        mps = torch.backends.mps.is_available()
        return Hardware(cores, mps=mps, unusable=unusable_gpus())
    count = torch.cuda.device_count()
    able = (resolve_precision("auto", torch.device("cuda", i)) == "bf16" for i in range(count))
    bf16 = all(able)
    why = "" if bf16 else "a GPU of this machine computes no bf16"
    memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(count)) / 2**20
    return Hardware(
        cores,
        count if gpus is None else math.ceil(gpus),
        bf16=bf16,
        why_fp32=why,
        gpu_memory=memory * min(1.0, gpus or 1.0),
    )


def hardware_of(need: RunRequirements, supply: Sequence[Node]) -> Hardware:
    """Return the least hardware that a run with `need` gets on a node of `supply` that fits it."""
    cores, gpus = max(1, int(need.cpus)), math.ceil(need.gpus)
    if not gpus:
        return Hardware(cores)
    able = [node for node in supply if node.fits(need)]
    unable = [node.name for node in able if node.bf16 is False]
    unknown = [node.name for node in able if node.bf16 is None]
    why = ""
    if unable:
        why = f"a GPU of {', '.join(unable)} computes no bf16"
    elif unknown or not able:
        names = ", ".join(unknown) or "the nodes"
        why = f"it is unknown whether the GPUs of {names} compute bf16"
    sizes = [size for node in able for size in node.gpu_memory_mb]
    memory = min(sizes) * min(1.0, need.gpus) if sizes else None
    return Hardware(cores, gpus, bf16=not why, why_fp32=why, gpu_memory=memory)


def memory_on_gpu_mb(config: Mapping[str, Any]) -> float | None:
    """Return the MiB that a run of this config will take of its GPU; None if unknown."""
    from carft_sweep.carft_core.config.trial import trial_config
    from carft_sweep.carft_core.training.memory import run_cost
    from carft_sweep.carft_core.training.numerics import CONTEXT_AT_MOST_MB

    cost = run_cost(trial_config(config))
    return None if cost is None else cost.peak / 2**20 + CONTEXT_AT_MOST_MB


def _is_cuda(device: str) -> bool:
    return device.partition(":")[0] == "cuda"
