"""Two clocks compared: ours, and another's as it came in an answer."""

from __future__ import annotations

from sweeps.doctor.base import Finding, ok, warning, wrong

LITTLE, MUCH = 2.0, 20.0
"""Seconds. A driver's lease is void after 60 s, and is renewed every ten or so."""


def agree(whose: str, theirs: float, before: float, after: float, grain: float = 0.0) -> Finding:
    """What is to be said of a time told between two moments of ours, in seconds since 1970.

    `grain` is how much it may be rounded down by: 1 s in the header of an answer.
    """
    if theirs + grain < before:
        apart = theirs + grain - before
    elif theirs > after:
        apart = theirs - after
    else:
        apart = 0.0
    if abs(apart) < LITTLE:
        return ok(f"the clock of {whose} agrees with ours")
    told = (
        f"the clock of {whose} is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} ours"
    )
    return (warning if abs(apart) < MUCH else wrong)(told)
