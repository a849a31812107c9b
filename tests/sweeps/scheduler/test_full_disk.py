"""Whichever write is the first to find the disk full, the sweep says so and goes on later."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli.removal import waste
from tests.sweeps.conftest import ONE_RUN, ToySweep, toy_in

NEVER = 10**9


@contextmanager
def full_from(folder: Path, number: int) -> Iterator[list[str]]:
    """Let the disk be full for files below `folder`, from so manieth write on, within the context;
    what was to be written.
    """
    written, open_descriptor, open_file = list[str](), os.open, io.open

    def take(path: Any) -> None:
        if isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(f"{folder}/"):
            written.append(os.fspath(path))
            if len(written) >= number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), os.fspath(path))

    def descriptor(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR):
            take(path)
        return open_descriptor(path, flags, *more, **named)

    def file(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
        if set(mode) & {*"wax+"}:
            take(path)
        return open_file(path, mode, *more, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", descriptor)
        patch.setattr(io, "open", file)
        yield written


def check_full_from(toy: ToySweep, number: int) -> int:
    """Run into the full disk, then to the end; how many writes there were."""
    toy.folder.mkdir(exist_ok=True)
    toy.home.prepare()
    error = ""
    with full_from(toy.home.path, number) as written:
        try:
            error = toy.run(**ONE_RUN).broken or ""
        except (OSError, RequestError) as raised:
            error = str(raised)
    assert not error or "No space left on device" in error
    assert not error or str(toy.home.path) in error
    before = toy.trained()
    toy.run(**ONE_RUN)
    assert toy.values() == {0.3: 0.8}
    assert [trial.state for trial in toy.ledger().trials()] == ["complete"]
    (run,) = toy.tracked().values()
    assert run.state == "finished"
    # Behind each epoch its report is on the disk: at most the last one is trained again.
    assert sum(toy.trained().values()) <= 5 + (1 if before else 0)
    assert not [*waste(toy.home)]
    return len(written)


@pytest.fixture(scope="module")
def writes(tmp_path_factory: pytest.TempPathFactory) -> int:
    """How many writes an undisturbed sweep takes."""
    with pytest.MonkeyPatch.context() as patch:
        return check_full_from(toy_in(tmp_path_factory.mktemp("undisturbed"), patch), NEVER)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_a_full_disk_costs_only_time(toy: ToySweep, writes: int, share: float) -> None:
    check_full_from(toy, 1 + round(share * writes))
