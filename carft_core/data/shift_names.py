"""Which of a family's shifts `data.shifts` names."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from carft_core.errors import RequestError, unknown

RESERVED = ("mean", "val")
"""No shift is called so: `ood/mean` is the mean over shifts, `ood/val` what settings may be chosen
on."""


def named_shifts(asked: Sequence[str], known: Collection[str]) -> tuple[str, ...]:
    """The shifts in the order asked for, each once; `c-fog` also stands for all of `c-fog-...`.

    Raises RequestError for a name that is none of `known` and begins none of them.
    """
    found: dict[str, None] = {}
    for name in asked:
        meant = [one for one in known if one == name or one.startswith(f"{name}-")]
        if not meant:
            raise RequestError(f"data.shifts: {unknown('shift', name, _told(known))}")
        found |= dict.fromkeys(meant)
    return tuple(found)


def _told(known: Collection[str]) -> list[str]:
    """Short enough to read: of many that begin alike, the beginning."""
    if len(known) <= 20:
        return list(known)
    return list(dict.fromkeys(name.partition("-")[0] for name in known))
