"""Forks of a process that has everything loaded, and a Ray cluster of several nodes. Linux only."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]
Load = Callable[[str, str | os.PathLike[str]], ModuleType]
PATIENCE = 30.0
"""Seconds that a worker may take to notice that its driver is gone."""
CRASHED = 70
"""Exit code of a fork that raised."""
_DEATH_SIGNAL = 1


def fork(act: Callable[[], int], log: Path, environ: Mapping[str, str]) -> int:
    """Run `act` in a fork of this process that prints into the file `log`; return the fork's id."""
    if threading.active_count() > 1:
        raise RuntimeError(f"threads do not survive a fork: {threading.enumerate()}")
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = CRASHED
    try:
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
        with log.open("ab") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.environ.update(environ)
        code = act()
        atexit._run_exitfuncs()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def command(words: Sequence[str]) -> int:
    """Run `carft-sweep WORDS` in this process; return its exit code."""
    from carft_sweep.sweeps.cli import main as carft_sweep

    return carft_sweep(words)


def captured(words: Sequence[str]) -> tuple[int, str, str]:
    """Run a command in this process; return its exit code, stdout and stderr."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = command(words)
        except Exception:
            traceback.print_exc()
            code = CRASHED
    return code, out.getvalue(), err.getvalue()


def load_all() -> None:
    """Load what a driver loads, so that forks need not."""
    import mlflow  # noqa: F401
    import open_clip  # noqa: F401
    import scipy.stats  # noqa: F401

    import carft_sweep.sweeps.cli.compare
    import carft_sweep.sweeps.cli.run
    import carft_sweep.sweeps.cli.sync
    import carft_sweep.sweeps.engines.ray_tune
    import carft_sweep.tracking.store.mlflow_store  # noqa: F401
    from carft_sweep.tracking.location import stay_private

    stay_private()
    _load_migrations()


def _load_migrations() -> None:
    """Load every migration script of Optuna and MLflow once."""
    import mlflow
    import optuna
    from alembic.util import pyfiles

    pyfiles.load_module_py = loading_once(pyfiles.load_module_py)  # type: ignore[assignment]
    for package, folder in (
        (mlflow, "store/db_migrations/versions"),
        (optuna, "storages/_rdb/alembic/versions"),
    ):
        for file in (Path(str(package.__file__)).parent / folder).glob("*.py"):
            pyfiles.load_module_py(file.stem.replace(".", "_") + "_py", str(file))


def loading_once(load: Load) -> Load:
    """Return Alembic's `load` with a cache: it executes every migration of Optuna and MLflow
    whenever a database is opened, which takes a fifth of the time of a small sweep."""
    loaded = functools.cache(load)

    def once(module_id: str, path: str | os.PathLike[str]) -> ModuleType:
        is_migration = Path(path).parent.name == "versions"  # env.py is one more, and acts
        return loaded(module_id, str(path)) if is_migration else load(module_id, path)

    return once


def workers_left(variable: str, value: str) -> list[int]:
    """Return ids of worker processes with this variable that do not end, whoever started them."""
    mark, until = f"{variable}={value}\0".encode(), time.monotonic() + PATIENCE
    while (workers := [*_workers(mark)]) and time.monotonic() < until:
        time.sleep(0.1)
    return workers


def _workers(mark: bytes) -> Iterator[int]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            trains = b"carft_sweep.sweeps.engines.worker" in (folder / "cmdline").read_bytes()
            if trains and mark in (folder / "environ").read_bytes():
                yield int(folder.name)
        except OSError:  # it has ended meanwhile
            continue


@contextmanager
def ray_nodes(count: int) -> Iterator[str]:
    """Start Ray with a head and `count` nodes of one core, and yield its address. It runs in
    another process, since its threads would not survive a fork."""
    command = [sys.executable, "-m", "benchmarks.chaos.ray_nodes", str(count)]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environ["RAY_raylet_start_wait_time_s"] = "600"  # on a machine that is busy
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.stdin.close()
