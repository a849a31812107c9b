"""Checks of this machine."""

from __future__ import annotations

import math
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from carft_sweep.carft_core.requirements import (
    PROJECT,
    installed_version,
    missed_floor,
    requirements,
    upgrade_command,
)
from carft_sweep.sweeps.doctor.checks import Finding, check, ok, warning, wrong
from carft_sweep.sweeps.engines.resources import USABLE_AGAIN, cpu_quota, unusable_gpus, usable_cpus
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.secrets import read_from
from carft_sweep.tracking.location import existing_folder, waiting
from carft_sweep.tracking.ownership import (
    SHARED_HOMES_VARIABLE,
    account,
    closed_to_group,
    is_shared,
    other_writer,
)
from carft_sweep.tracking.program import program

SHOWN = ("torch", "torchvision", "open_clip_torch", "optuna", "mlflow", "ray", "SQLAlchemy")
"""Packages whose versions are shown; all required ones are checked."""


@check(
    "versions.packages",
    "every required package against the range that the package requires",
    "install a version in the range; `make install-run` brings those that were tested",
)
def _packages(_: Home) -> Iterator[Finding]:
    from packaging.version import Version

    required = requirements()
    if not required:
        yield warning(f"{PROJECT} is not installed as a package, so what it needs is not known")
        return
    for requirement in required:
        name, version = requirement.name, installed_version(requirement.name)
        if version is None:
            message = f"{name} is not installed"
        elif floor := missed_floor(requirement):
            message = f"{name} {version} is older than {floor}"
            message += ": older ones have known holes, or faults"
        elif not requirement.specifier.contains(Version(version).base_version):
            message = f"{name} {version} is outside of {requirement.specifier}"
        else:
            continue
        yield wrong(message, upgrade_command(requirement))
    versions = [f"{name} {version}" for name in SHOWN if (version := installed_version(name))]
    yield ok(", ".join(versions))


SHARED = Path("/dev/shm")
_GIB = 2**30
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@check(
    "machine.cores",
    "usable cores against a container's quota and OMP_NUM_THREADS",
    "let threads and cores agree: resources.cpus in the sweep file, OMP_NUM_THREADS unset",
)
def _cores(_: Home) -> Iterator[Finding]:
    cores, share = usable_cpus(), cpu_quota()
    message = f"{cores} of {os.cpu_count()} cores usable"
    if share is not None and share < cores:
        yield warning(
            f"{message}, but the container gets {share:g} of them: as many threads would wait for "
            "each other",
            f"set in the sweep file: resources: {{cpus: {max(1, math.floor(share))}}}",
        )
    else:
        yield ok(message)
    for name in _THREADS:
        threads = os.environ.get(name, "")
        if threads.isdigit() and int(threads) > cores:
            yield warning(f"{name}={threads} is more than the cores", f"unset {name}")


@check(
    "machine.shared_memory",
    "room in /dev/shm, through which Ray and loaders pass data; less than 1 GiB is little",
    "docker run --shm-size 8g; in Kubernetes mount an emptyDir of medium Memory at /dev/shm",
)
def _shared(_: Home) -> Iterator[Finding]:
    if not SHARED.is_dir():
        return
    size = shutil.disk_usage(SHARED)
    message = f"{SHARED} has {size.free / _GIB:.1f} of {size.total / _GIB:.1f} GiB free"
    yield ok(message) if size.free >= _GIB else warning(message)


@check(
    "gpu.devices",
    "each GPU: seen by torch, computing, bf16, free memory",
    "see nvidia-smi for what else holds the GPU, and for its driver; install a torch that "
    "supports it",
    seconds=60.0,
)
def _gpus(_: Home) -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield from _cuda(index)
    elif torch.backends.mps.is_available():
        yield ok(f"mps, torch {torch.__version__}")
    elif reason := unusable_gpus({}):
        yield wrong(reason, USABLE_AGAIN)
    else:
        yield ok(f"no GPU; torch {torch.__version__} trains on the CPU")


def _cuda(index: int) -> Iterator[Finding]:
    """Yield findings on one GPU: its model, whether it computes, and its free memory."""
    import torch

    gpu = torch.cuda.get_device_properties(index)
    capability = f"{gpu.major}.{gpu.minor}"
    name = f"cuda:{index} {gpu.name}"
    try:
        free, total = torch.cuda.mem_get_info(index)
        ones = torch.ones(64, 64, device=torch.device("cuda", index))
        if float((ones @ ones)[0, 0]) != 64:
            raise RuntimeError("a product of matrices is wrong")
    except RuntimeError as error:  # CUDA's errors; out of memory is one of them
        yield wrong(f"{name}: {str(error).splitlines()[0]}")
        return
    message = (
        f"{name}, capability {capability}, CUDA {torch.version.cuda}, "
        f"{'bf16' if gpu.major >= 8 else 'no bf16'}, "
        f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB free"
    )
    yield ok(message) if free >= 2 * _GIB else warning(message)


_MIB = 2**20
_LITTLE, _TOO_LITTLE = 5000.0, 200.0


@check(
    "home.folder",
    "the home is there and can be written, renamed in and locked, or can be made",
    "name another folder with --home or CARFT_HOME, or mend its permissions; on a network file "
    "system locks must reach every host",
)
def _folder(home: Home) -> Iterator[Finding]:
    path = home.path
    if path.is_dir():
        try:
            with tempfile.TemporaryDirectory(prefix=".doctor-", dir=path) as scratch:
                first, second = Path(scratch, "first"), Path(scratch, "second")
                first.write_text("written\n", encoding="utf-8")
                first.replace(second)
                with waiting(Path(scratch, "lock")):
                    pass
        except OSError as error:
            yield wrong(f"{path.absolute()} cannot be written: {error.strerror or error}")
            return
        yield ok(f"{path.absolute()} can be written and locked")
    elif path.exists():
        yield wrong(f"{path.absolute()} is no folder")
    elif os.access(existing_folder(path), os.W_OK | os.X_OK):
        yield ok(f"{path.absolute()} is not there yet; the first run makes it")
    else:
        above = existing_folder(path)
        yield wrong(f"{path.absolute()} is not there, and {above} cannot be written")


@check(
    "home.disk",
    "free room: below 5 GB is little, below 200 MB too little",
    f"{program()} clean lists what can go",
)
def _disk(home: Home) -> Iterator[Finding]:
    place = existing_folder(home.path)
    free = shutil.disk_usage(place).free / _MIB
    message = f"{free:.0f} MB free"
    level = wrong if free < _TOO_LITTLE else warning if free < _LITTLE else ok
    yield level(message)


@check(
    "home.private",
    "whether another account could write it, which every other command refuses",
    "take the right to write away from others, or name the home in CARFT_SHARED_HOMES",
)
def _private(home: Home) -> Iterator[Finding]:
    path = home.path.absolute()
    writer = other_writer(path) if path.is_dir() else None
    if writer is None:
        return
    message = f"{path} {writer.reason}"
    if is_shared(path):
        yield ok(f"{message}; {SHARED_HOMES_VARIABLE} says that it is shared on purpose")
        if closed := closed_to_group(path):
            more = f" and {len(closed) - 1} more" if len(closed) > 1 else ""
            owner = account("user", closed[0].stat().st_uid)
            yield wrong(
                f"its group may not write {closed[0].relative_to(path)} of {owner}{more}",
                f"their owners: chmod -R g+w {path}, and `umask 002` for what comes",
            )
    else:
        yield warning(message, writer.remedy)


_GIVEN = ("/run/secrets", "/var/run/secrets")
"""Docker and Kubernetes mount secrets there, for one container."""


@check(
    "secrets.files",
    "who may read the files that NAME_FILE variables name, and Ray's token",
    "chmod 600 the file",
)
def _files(_: Home) -> Iterator[Finding]:
    for name, path in {**read_from(), **dict(_ray_tokens())}.items():
        if not path.is_file():
            yield wrong(f"{path} ({name}) is no file", f"make it, or unset {name}")
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077 and not str(path).startswith(_GIVEN):
            message = f"{path} ({name}) can be read by others (mode {mode:o})"
            yield warning(message, f"chmod 600 {path}")
        else:
            yield ok(f"{path} ({name}) is its owner's alone")


def _ray_tokens() -> Iterator[tuple[str, Path]]:
    """Yield (name, file) of Ray's tokens: the file of the variable, and the one that Ray makes."""
    if path := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        yield "RAY_AUTH_TOKEN_PATH", Path(path)
    own = Path("~/.ray/auth_token").expanduser()
    if own.is_file():
        yield "Ray's token", own
