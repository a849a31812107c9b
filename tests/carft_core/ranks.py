"""Several processes on this CPU as the ranks of one run."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from carft_sweep.carft_core.training.ranks import shutdown

SECONDS = 120


def on_ranks(size: int, function: Callable[[], Any]) -> list[Any]:
    """What `function` returns on each rank; raises AssertionError where one does not end well.

    The ranks are forked, which takes no second, and nothing of theirs is left in this process.
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    ranks = []
    for rank in range(size):
        receiving, sending = fork.Pipe(duplex=False)
        process = fork.Process(target=_run, args=(rank, size, port, function, sending))
        process.start()
        sending.close()
        ranks.append((process, receiving))
    try:
        results = []
        for rank, (_, receiving) in enumerate(ranks):
            assert receiving.poll(SECONDS), f"rank {rank} hangs"
            try:
                results.append(receiving.recv())
            except EOFError:
                raise AssertionError(f"rank {rank} failed") from None
        return results
    finally:
        for process, _ in ranks:
            process.kill()
            process.join()


def _run(rank: int, size: int, port: int, function: Callable[[], Any], sending: Connection) -> None:
    torch.set_num_threads(1)
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), **place}
    try:
        sending.send(function())
        shutdown()
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(0)
