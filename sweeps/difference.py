"""What a changed sweep file means for the sweep of its name: it goes on, or it begins anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Effect = Literal["goes on", "told again", "anew"]
"""`told again`: the same points keep their trained runs, and get new values from them."""

_GOES_ON = (
    *("description", "baselines", "run_cap", "time_budget", "metric.target", "report", "import"),
    *("retries", "timeout", "breaker", "engine", "parallel", "resources", "webhook"),
    *("confirm_seeds", "after"),
    *("trial.merges", "trial.data.root", "trial.workers", "trial.device"),
)
_TOLD_AGAIN = ("seeds", "trial.keep", "trial.eval", "trial.data.shifts")
_SHOWN = 60
_ABSENT = object()


@dataclass(frozen=True)
class Change:
    """One field that differs."""

    field: str
    before: Any
    now: Any
    effect: Effect

    def __str__(self) -> str:
        return f"{self.field}: {_shown(self.before)} -> {_shown(self.now)}"


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """Every field in which two sweeps, as plain data, differ."""
    return [
        Change(field, old, new, _effect(field)) for field, old, new in _differing(before, now, "")
    ]


def effect(found: list[Change]) -> Effect | None:
    """What all changes together do; None when there are none."""
    for strongest in ("anew", "told again", "goes on"):
        if any(change.effect == strongest for change in found):
            return strongest
    return None


def _effect(field: str) -> Effect:
    if _is_in(field, _TOLD_AGAIN):
        return "told again"
    return "goes on" if _is_in(field, _GOES_ON) else "anew"


def _is_in(field: str, names: tuple[str, ...]) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in names)


def _differing(
    before: Mapping[str, Any], now: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, Any, Any]]:
    for key in dict.fromkeys([*before, *now]):
        old, new = before.get(key, _ABSENT), now.get(key, _ABSENT)
        field = f"{prefix}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from _differing(old, new, f"{field}.")
        elif old is _ABSENT and isinstance(new, Mapping) and new:
            yield from _differing({}, new, f"{field}.")
        elif new is _ABSENT and isinstance(old, Mapping) and old:
            yield from _differing(old, {}, f"{field}.")
        elif old != new:
            yield field, old, new


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(not given)"
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
