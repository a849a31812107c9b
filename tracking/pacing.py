"""How long a spool lets records gather before it delivers again."""

from __future__ import annotations

LONGEST_ASKED = 600.0
"""A store that asks to be left alone for longer is asked again after these seconds."""
_SHARE = 0.75
_SOON = 0.25


class Pacing:
    """The pause before the next delivery, from how the last one went; all times in seconds.

    Delivering takes at most three quarters of the time: what is told meanwhile is merged, so a
    store under load gets fewer and fuller requests. While it is away, pauses double up to
    `longest`.
    """

    def __init__(self, shortest: float, longest: float) -> None:
        self.pause = shortest
        """How long records gather, unless somebody waits for them."""
        self.least = 0.0
        """How much of it passes though somebody waits."""
        self._shortest, self._longest = shortest, longest
        self._doubled = shortest

    def delivered(self, seconds: float, *, full: bool) -> None:
        """All went well in so many seconds. `full`: longer waiting would merge nothing more."""
        rest = 0.0 if full else seconds * (1 - _SHARE) / _SHARE
        self.pause = min(max(self._shortest, rest), max(self._shortest, self._longest))
        self.least = 0.0
        self._doubled = self._shortest

    def failed(self, *, progress: bool, asked: float | None) -> None:
        """The store could not be used, after `progress` or at once; it may have `asked` to wait.

        A store that takes some of the records and refuses the others as it is busy is not away.
        """
        last = self._shortest if progress else self._doubled
        self._doubled = min(2 * last, self._longest)
        self.pause, self.least = self._doubled, min(self._doubled, _SOON)
        if asked is not None:
            self.least = min(asked, LONGEST_ASKED)
            self.pause = max(self.pause, self.least)
