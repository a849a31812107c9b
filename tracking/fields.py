"""The fields of a run's config by dotted name, as far as they tell one setting from another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tracking.records import Scalar

_APART = frozenset(
    {"algorithm.name", "algorithm.members", "data.root", "merges", "device", "workers", "seed"}
)
"""Where and how a run was made and what was measured of it, and the name that each run has; a
soup's members are digests, which nobody reads."""
_SECTIONS_APART = ("eval.", "keep.")
_MICRO_BATCH = "optim.micro_batch"


def fields(claimed: Mapping[str, Any]) -> dict[str, Scalar]:
    """The fields in `config` of a run's `config.json`; lists as text.

    What did not enter the run's identity is left out: an algorithm that trains nothing has no
    optimiser, whatever the file of its sweep says.
    """
    config = claimed.get("config")
    identity = claimed.get("identity")
    plain = dict(_flat(config)) if isinstance(config, Mapping) else {}
    optim = identity.get("optim") if isinstance(identity, Mapping) else {}
    if optim is None:
        plain = {name: value for name, value in plain.items() if not name.startswith("optim.")}
    elif "micro_batch" not in optim:
        plain.pop(_MICRO_BATCH, None)
    return {name: value for name, value in plain.items() if tells_apart(name)}


def tells_apart(name: str) -> bool:
    """Whether two runs that differ in this field are of different settings."""
    return name not in _APART and not name.startswith(_SECTIONS_APART)


def scalar(value: object) -> Scalar:
    """The value itself, or its text where it is a list or a mapping."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Scalar]]:
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        else:
            yield name, scalar(value)
