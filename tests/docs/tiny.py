"""`carft-sweep` for the blocks of the docs: the same command, on as little as it can do.

    python -m tests.docs.tiny COMMAND ...

`run` and `check` of a sweep on the built-in data get one value of each parameter, one seed, one
epoch, a tenth of the images, two shifts; everything else is the command as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli import main

if TYPE_CHECKING:
    from carft_sweep.sweeps.spec.spec import SweepSpec

BUILT_IN = ("icon_shift", "icon_shift_dev")


def tiny(words: Sequence[str]) -> list[str]:
    """The arguments, with what makes a sweep short."""
    if len(words) < 2 or words[0] not in ("run", "check"):
        return list(words)
    from carft_sweep.sweeps.spec.spec import load_spec  # for these two only: it loads torch

    try:
        spec = load_spec(next(word for word in words[1:] if not word.startswith("-")))
    except (RequestError, StopIteration):  # the command itself says what is wrong
        return list(words)
    if spec.trial.get("data", {}).get("family", "icon_shift") not in BUILT_IN:
        return list(words)
    changes = [*_changes(spec), *(["confirm_seeds=1"] if "confirm_seeds" in str(words) else [])]
    return [*words, *(word for change in changes for word in ("--set", change))]


def _changes(spec: SweepSpec) -> Iterator[str]:
    yield from ("seeds=1", "trial.optim.epochs=1", "trial.data.train_fraction=0.1")
    yield from (
        "trial.merges=[{name: wise_ft, alphas: [0.5]}]",
        "trial.data.shifts=[outline, pixel]",
    )
    for parameter in spec.parameters:
        (_, first), *_ = parameter.boundary_values()
        yield f"parameters.{parameter.name}.values=[{first}]"


if __name__ == "__main__":
    sys.exit(main(tiny(sys.argv[1:])))
