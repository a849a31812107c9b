"""A length of time as a sweep file writes it: seconds, or `1d2h30m`."""

from __future__ import annotations

import math
import re

NUMBER = r"\d{1,12}(?:\.\d+)?"
FORM = r"(?:\d+(?:\.\d+)?d)?(?:\d+(?:\.\d+)?h)?(?:\d+(?:\.\d+)?m)?(?:\d+(?:\.\d+)?s)?"
LONGEST = 10 * 365 * 86_400
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
_ALLOWED = "a number of seconds over 0, or days, hours, minutes and seconds such as 1d, 2h30m, 90m"


def seconds(given: object) -> float:
    """Return the seconds of `90`, `"90"`, `"90m"`, `"2h30m"` or `"1d"`. Raises ValueError with the
    allowed forms when the value is no length of time, 0, or over ten years."""
    length = _number(given)
    if length is None or not 0 < length <= LONGEST:
        more = ", at most ten years" if length is not None and length > LONGEST else ""
        raise ValueError(f"must be {_ALLOWED}{more}, got {repr(given)[:80]}")
    return length


def _number(given: object) -> float | None:
    if isinstance(given, (int, float)) and not isinstance(given, bool):
        return float(given) if math.isfinite(given) else None
    if not isinstance(given, str):
        return None
    text = given.strip()
    if re.fullmatch(NUMBER, text):
        return float(text)
    if not text or len(text) > 60 or not re.fullmatch(FORM, text):
        return None
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
    return sum(float(number) * _UNITS[unit] for number, unit in parts)
