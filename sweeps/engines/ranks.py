"""The processes of a run on several GPUs: a worker is the first and starts the others for the run.

Run as `python -m carft_sweep.sweeps.engines.ranks ENTRY WORKER_PID`, with the job as a line of JSON
on stdin. The environment is torchrun's, which `carft_core.training.ranks` reads. A rank that fails
says so in a line of JSON on stdout; what it prints goes to the run's log.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from carft_sweep.carft_core.runs.result import Decision
from carft_sweep.sweeps.engines.base import FailureClass
from carft_sweep.sweeps.engines.entry import RankFailed, classify, run_entry

RANKS = "CARFT_RANKS"
"""How many processes each run gets, in place of one a GPU; also without GPUs, for tests."""
TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
GRACE = 5.0
"""Seconds for a rank to say why it ended, and for the first to notice that another did."""
_PR_SET_PDEATHSIG = 1

Broken = Callable[[FailureClass, str], None]


def count_ranks(config: Mapping[str, Any]) -> int:
    """Return the number of processes of a run: one a visible GPU on `cuda`, else one."""
    stated = os.environ.get(RANKS)
    if stated:
        return int(stated)
    if config.get("device") != "cuda":
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def forget_torchrun() -> None:
    """Remove torchrun's variables, with which the driver may have been started."""
    for name in TORCHRUN:
        os.environ.pop(name, None)


@contextmanager
def started_ranks(entry: str, job: Mapping[str, Any], size: int, broken: Broken) -> Iterator[None]:
    """Make this process rank 0 of `size` within the context, while the others execute the same job.

    Raises RankFailed if another rank failed first. `broken` is called with that failure, from
    another thread, since this rank may wait for ever on its GPU. After any failure this process
    must end: its connection to the others is closed.
    """
    if size == 1:
        yield
        return
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if sys.platform == "linux":  # nobody beyond this machine is to reach them
        place |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    others = [_Rank(entry, job, place, rank) for rank in range(1, size)]
    os.environ |= place | {"RANK": "0", "LOCAL_RANK": "0"}
    ended = threading.Event()
    for other in others:
        threading.Thread(target=_watch, args=(other, ended, broken), daemon=True).start()
    try:
        yield
        for other in others:
            other.wait(GRACE)
        from carft_sweep.carft_core.training.ranks import shutdown

        shutdown()
    except Exception as error:
        if classify(error)[0] == "crashed":  # perhaps since another rank is gone
            for other in others:
                failure = other.wait(GRACE)
                if failure is not None:
                    raise failure from error
        raise
    finally:
        ended.set()
        for other in others:
            other.kill()
        forget_torchrun()


class _Rank:
    """A rank that this process has started, and that ends when this process ends."""

    def __init__(
        self, entry: str, job: Mapping[str, Any], place: Mapping[str, str], rank: int
    ) -> None:
        self._number = rank
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, entry, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError), self._process.stdin as pipe:  # its end is seen below
            pipe.write(json.dumps(dict(job)).encode() + b"\n")
        self._ended = threading.Event()
        self._failure: RankFailed | None = None

    def follow(self) -> RankFailed | None:
        """Wait for the end of the rank's process; return its failure, or None. Called once."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        code = self._process.wait()
        if line:
            kind, message = json.loads(line)
            self._failure = RankFailed(kind, message)
        elif code:
            cause = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            self._failure = RankFailed("crashed", f"process {self._number} of the run {cause}")
        self._ended.set()
        return self._failure

    def wait(self, seconds: float) -> RankFailed | None:
        """Wait for the rank's failure; return None if there is none after the timeout."""
        self._ended.wait(seconds)
        return self._failure

    def kill(self) -> None:
        """Kill the rank's process."""
        self._process.kill()
        self._process.wait()


def _watch(rank: _Rank, ended: threading.Event, broken: Broken) -> None:
    failure = rank.follow()
    if failure is not None and not ended.wait(2 * GRACE):
        broken(failure.kind, str(failure))


def die_with(parent: int) -> None:
    """Make the system end this process with the thread that started it, of the process `parent`
    (on Linux; elsewhere a worker sees its pipe close, and a rank is in its process group)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main(arguments: list[str]) -> int:
    """Execute one job as one of its ranks, and return the exit code."""
    entry, worker = arguments[0], int(arguments[1])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to decide on.
    die_with(worker)
    answers = os.dup(1)
    os.dup2(2, 1)
    job = json.loads(sys.stdin.readline())
    try:
        run_entry(entry, job, lambda _: Decision.CONTINUE)  # the first rank decides
    except Exception as error:
        traceback.print_exc()
        sys.stderr.flush()
        os.write(answers, (json.dumps(classify(error)) + "\n").encode())
        # Not by way of exit handlers: the other ranks may be waiting in an exchange.
        os._exit(1)
    from carft_sweep.carft_core.training.ranks import shutdown

    shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
