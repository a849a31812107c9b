"""A run on disk: the files of its folder."""

from __future__ import annotations

import errno
import functools
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import (
    check_archive,
    check_regular,
    open_regular,
    read_json,
    write_atomically,
    write_json,
)
from carft_sweep.carft_core.requirements import refuse_outdated
from carft_sweep.carft_core.runs.identity import Identity
from carft_sweep.carft_core.runs.result import Claim, History, Trained

DAMAGED = "%s is damaged (%s); the run begins again"
"""The log message on a damaged checkpoint; it takes the file and the reason."""

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunFolder:
    """The files of one run, under `runs/<digest>/`."""

    path: Path
    writes: bool = True
    """Whether this process writes the files; of the ranks of one run only rank 0 does."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint from which an unfinished run resumes; deleted once the run is trained."""
        return self.path / "checkpoint.pt"

    def weights(self, kind: str) -> Path:
        """Return the file of the module's weights after the `last` or the `best_val` epoch."""
        return self.path / "weights" / f"{kind}.safetensors"

    def metrics(self, label: str) -> Path:
        """Return the file with the metrics of one evaluated model."""
        return self.path / "evaluations" / label / "metrics.json"

    def predictions(self, label: str) -> Path:
        """Return the file with the predictions of one evaluated model, by split and image."""
        return self.path / "evaluations" / label / "predictions.parquet"

    def member(self, digest: str) -> RunFolder:
        """Return the folder of another run of the same home, for a soup."""
        return RunFolder(self.path.parent / digest)

    def claim(self, config: TrialConfig, seed: int, identity: Identity) -> None:
        """Write the run's config and identity into its folder, and remove large unfinished files of
        a killed process. Raises RequestError for a folder that belongs to another run, or is named
        by another run's digest."""
        if not self.writes:
            return
        name, digest = self.path.name, identity.digest
        if re.fullmatch("[0-9a-f]{64}", name) and name != digest:
            raise RequestError(
                f"{self.path} is the folder of run {name[:12]}, but here the run would be "
                f"{digest[:12]}: model, data, code, device or precision differ from its name"
            )
        file = self.path / "config.json"
        claimed = read_json(file, Claim)
        if claimed is None:
            parts = {"digest": identity.digest, "identity": dict(identity.parts)}
            write_json(file, {**parts, "seed": seed, "config": config.as_dict()})
        elif claimed["digest"] != identity.digest:
            raise RequestError(
                f"{self.path} holds another run ({claimed['digest'][:12]}), not "
                f"{identity.digest[:12]}; give each run a folder of its own"
            )
        # Not other temporary files, which the driver may be writing just now.
        for left in (*self.path.glob(".checkpoint.pt.*"), *self.path.glob("weights/.*.*")):
            left.unlink(missing_ok=True)

    def claimed(self) -> dict[str, Any]:
        """Return what `claim` wrote. Raises RequestError where the folder holds no run."""
        claimed: dict[str, Any] | None = read_json(self.path / "config.json", Claim)
        if claimed is None:
            raise RequestError(f"{self.path} holds no run")
        return claimed

    def write_history(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Write the reports of all epochs so far."""
        if self.writes:
            write_json(self.path / "history.json", list(history))

    def history(self) -> list[dict[str, Any]]:
        """Return the reports that `write_history` wrote."""
        return read_json(self.path / "history.json", History) or []

    def save_checkpoint(self, progress: Mapping[str, Any]) -> None:
        """Write atomically what a run needs to resume exactly: tensors and plain data."""
        if self.writes:
            write_atomically(self.checkpoint, functools.partial(_save, progress))

    def load_checkpoint(self) -> dict[str, Any] | None:
        """Return what `save_checkpoint` wrote; None for a missing file, or a damaged one, which is
        logged.

        After a damaged file the run starts from the beginning. Raises OSError when the disk fails,
        after which another try may succeed, RequestError where torch is too old to read the file
        safely.
        """
        if self.checkpoint.exists():
            risk = f"{self.checkpoint} is a pickle: a crafted one may run code when it is read"
            refuse_outdated("torch", risk)
        try:
            with open_regular(self.checkpoint) as file:
                check_archive(self.checkpoint, sums=True)
                progress: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except MemoryError:
            raise
        except Exception as error:  # foreign bytes make the unpickler raise nearly anything
            # torch seeks before the beginning of a file that is cut short.
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise
            if self.checkpoint.is_dir():  # nothing can take its place
                raise
            reason = str(error).partition("\n")[0]
            _LOG.warning(DAMAGED, self.checkpoint, reason[:200])
            return None
        return progress

    def save_weights(self, kind: str, state: Mapping[str, Tensor]) -> None:
        """Write a module's state dict as safetensors, atomically."""
        if self.writes:
            save_weights(self.weights(kind), state)

    def mark_trained(self, *, seconds: float, warnings: Sequence[str] = ()) -> None:
        """Record, as the last write of training, that it is complete; delete the checkpoint."""
        if not self.writes:
            return
        mark = {"seconds": seconds, "ended": time.time(), "warnings": list(warnings)}
        write_json(self.path / "trained.json", mark)
        self.checkpoint.unlink(missing_ok=True)

    def unmark_trained(self) -> None:
        """Remove the record of `mark_trained`, before a run trains again."""
        if self.writes:
            (self.path / "trained.json").unlink(missing_ok=True)

    def trained(self) -> dict[str, Any] | None:
        """Return the record that `mark_trained` wrote; None before the end of training."""
        mark: dict[str, Any] | None = read_json(self.path / "trained.json", Trained)
        return mark

    def is_trained(self, config: TrialConfig) -> bool:
        """Return whether training is complete and the weights that `config` requests exist."""
        if self.trained() is None:
            return False
        return not config.algorithm.trains or self.weights(config.keep.result).exists()


def _save(progress: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # PyTorch does not say why it cannot write to a path
        try:
            torch.save(dict(progress), file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # such as a full disk
                raise error.__context__ from None
            raise


def save_weights(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a state dict as safetensors, on the CPU, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_atomically(path, lambda file: save_file(tensors, str(file)))


def load_weights(path: Path, *, follow: bool = False) -> dict[str, Tensor]:
    """Return the state dict that `save_weights` wrote, `follow` as for `read_json`. Raises
    RequestError for another file."""
    check_regular(path, follow=follow)
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise RequestError(f"{path} is not a safetensors file: {error}") from None
