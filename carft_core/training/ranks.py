"""One run on several processes, each with a device: who computes what, and what they exchange.

The processes are those of torchrun's environment (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR,
MASTER_PORT). Each has the whole run: model, optimiser and data. What differs is which rows of a
batch or of a split pass its tower. docs/decisions says why not DistributedDataParallel.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from carft_sweep.carft_core.errors import RequestError

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others. Whoever started them ends all when one of them ends."""
DRIFT = 1e-3
"""By how much, relative to its norm, a tensor may differ between ranks."""
T = TypeVar("T")
Rows = TypeVar("Rows", bound=Any)
"""An array or a tensor, by rows."""


@dataclass(frozen=True)
class World:
    """The processes (ranks) of a run, as one of them sees them; by default it is the only one.
    Methods that exchange data must be called by every rank, in the same order.
    """

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and reports."""
        return self.rank == 0

    def shard(self, rows: Rows) -> Rows:
        """Return every `size`-th row, from this rank's on. A rank for which no row is left gets the
        first one; what it computes of that does not count."""
        own: Rows = rows[self.rank :: self.size] if self.rank < len(rows) else rows[:1]
        return own

    def cache_key(self) -> list[int]:
        """Return rank and size for cache keys; empty for a single process."""
        return [self.rank, self.size] if self.size > 1 else []

    def share(self, count: int) -> float:
        """Return the fraction of `count` rows that this rank has; 0 for one with a surplus row."""
        return len(range(self.rank, count, self.size)) / count

    def sum_gradients(
        self, parameters: Sequence[nn.Parameter], values: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """Put the sums over ranks into the parameters' gradients, and return the sums of the scalar
        `values`. A parameter without a gradient on any rank keeps none. All in one exchange."""
        if self.size == 1:
            return dict(values)
        grads = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in parameters
        ]
        flags = torch.ones(len(grads), device=grads[0].device)
        for number, parameter in enumerate(parameters):
            if parameter.grad is None:
                flags[number] = 0
        scalars = [value.to(flags).reshape(1) for value in values.values()]
        flat = flat_gradients(grads, [*scalars, flags])
        dist.all_reduce(flat)
        sizes = [parameter.numel() for parameter in parameters]
        *sums, totals, ranks = flat.split([*sizes, len(scalars), len(flags)])
        for number, (parameter, total) in enumerate(zip(parameters, sums, strict=True)):
            if parameter.grad is not None:
                parameter.grad.copy_(total.view_as(parameter))
            elif ranks[number] > 0:  # waits for the device, but only here
                parameter.grad = grads[number].copy_(total.view_as(parameter))
        return dict(zip(values, totals, strict=True))

    def gather(self, rows: Tensor, count: int) -> Tensor:
        """Return all `count` rows in order, from each rank's rows of `shard` [n, ...]."""
        if self.size == 1:
            return rows
        padded = rows.new_zeros(-(-count // self.size), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(parts, padded)
        return torch.stack(parts, dim=1).flatten(0, 1)[:count]

    def agree(self, decision: T) -> T:
        """Return rank 0's decision (plain data) on every rank."""
        if self.size == 1:
            return decision
        # As JSON: an object would be pickled, and what comes over a socket is not run.
        text = torch.frombuffer(bytearray(json.dumps(decision).encode()), dtype=torch.uint8)
        length = torch.tensor(len(text))
        dist.broadcast(length, 0)
        if not self.is_main:
            text = torch.empty(int(length), dtype=torch.uint8)
        dist.broadcast(text, 0)
        agreed: T = json.loads(bytes(text.tolist()))
        return agreed

    def all(self, flag: bool) -> bool:
        """Return whether `flag` is true on every rank."""
        if self.size == 1:
            return flag
        least = torch.tensor(int(flag))
        dist.all_reduce(least, dist.ReduceOp.MIN)
        return bool(least)

    def copy(self, state: Mapping[str, Tensor]) -> None:
        """Put rank 0's values into the tensors of a state dict."""
        for tensor in state.values() if self.size > 1 else ():
            values = tensor.detach().contiguous()
            dist.broadcast(values, 0)
            tensor.detach().copy_(values)

    def differing(self, state: Mapping[str, Tensor]) -> list[str]:
        """Return the names of tensors that differ between ranks by more than rounding."""
        if self.size == 1 or not state:
            return []
        projected, norms = map(torch.stack, zip(*map(_projection, state.values()), strict=True))
        most, least = projected, projected.clone()
        dist.all_reduce(most, dist.ReduceOp.MAX)
        dist.all_reduce(least, dist.ReduceOp.MIN)
        # The norms differ too: a name is given where any rank sees it.
        differs = (most - least > DRIFT * norms).int()
        dist.all_reduce(differs, dist.ReduceOp.MAX)
        return [name for name, differ in zip(state, differs.tolist(), strict=True) if differ]

    def device(self, device: torch.device) -> torch.device:
        """Return this rank's device. Raises RequestError if a run gets fewer devices than ranks."""
        if self.size == 1 or device.type == "cpu":
            return device
        if device != torch.device("cuda"):
            raise RequestError(
                f"device: {device} is one device, and this run has {self.size} processes; say "
                "device: cuda, or resources.gpus: 1"
            )
        number = int(os.environ.get("LOCAL_RANK", self.rank))
        if number >= torch.cuda.device_count():
            raise RequestError(
                f"this run has {self.size} processes, one a GPU, and torch sees "
                f"{torch.cuda.device_count()} GPUs here"
            )
        return torch.device("cuda", number)


def flat_gradients(grads: Sequence[Tensor], more: Sequence[Tensor] = ()) -> Tensor:
    """Return what ranks exchange: gradients, then the vectors `more`, in one float32 vector."""
    return torch.cat([*(grad.float().flatten() for grad in grads), *more])


def _projection(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """Return a fingerprint of a tensor (a sum of its entries with fixed weights), and its norm."""
    entries = tensor.detach().float().flatten()
    waves = torch.cos(torch.arange(len(entries), device=entries.device, dtype=torch.float32))
    return entries @ waves, entries.norm()


def current_ranks() -> World:
    """Return the ranks of this run as seen by this process; the first call waits for all. Raises
    RuntimeError (DistError) when the others do not connect."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=TIMEOUT)
    return World(dist.get_rank(), size)


def shutdown() -> None:
    """Disconnect from the other ranks, without waiting for them."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
