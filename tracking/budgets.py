"""How much was spent on tuning each algorithm: a method that was searched longer looks better."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations

from tracking.records import Arm, params_key

OWN = ("algorithm.", "prompts.contexts")
"""Fields that mean nothing to an algorithm which does not vary them."""


@dataclass(frozen=True)
class Budget:
    """What one algorithm was given before its setting was chosen."""

    algorithm: str
    settings: int
    """Of which some run was begun, pruned and failed ones included."""
    runs: int
    epochs: int | None
    """Trained in all these runs; None where some run does not tell."""

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON."""
        return asdict(self)


def budgets(arms: Sequence[Arm]) -> tuple[Budget, ...]:
    """One for each algorithm that trains, in the order of the arms.

    Runs that confirm a choice are no part of it.
    """
    tried = _tried(arms)
    return tuple(_budget(name, tried) for name in dict.fromkeys(arm.algorithm for arm in tried))


def unequal(arms: Sequence[Arm]) -> frozenset[tuple[str, str]]:
    """Pairs of algorithms of which one was tried at more settings, the less tried one first.

    Where only one of the two has fields of its own that vary, such as a KL weight, these do not
    count: a grid over the KL weight alone leaves fine-tuning one point, and that is not too few.
    """
    tried = _tried(arms)
    found = set()
    for pair in combinations(dict.fromkeys(arm.algorithm for arm in tried), 2):
        counts = dict(zip(pair, _counts(tried, *pair), strict=True))
        less, more = sorted(pair, key=lambda name: counts[name])
        if counts[less] < counts[more]:
            found.add((less, more))
    return frozenset(found)


def _counts(arms: Sequence[Arm], one: str, other: str) -> Iterator[int]:
    """Of each of both the settings that differ in fields which mean something to both."""
    varied = {
        name: {field for arm in arms if arm.algorithm == name for field in arm.params}
        for name in (one, other)
    }
    own = [
        {field for field in varied[name] - varied[rival] if field.startswith(OWN)}
        for name, rival in ((one, other), (other, one))
    ]
    left_out: set[str] = set() if all(own) else own[0] | own[1]
    for name in (one, other):
        points = (arm.params for arm in arms if arm.algorithm == name)
        shared = ({f: v for f, v in params.items() if f not in left_out} for params in points)
        yield len({params_key(params) for params in shared})


def _tried(arms: Sequence[Arm]) -> list[Arm]:
    begun = [arm for arm in arms if any(run.state != "missing" for run in arm.runs)]
    return [arm for arm in begun if arm.trains and not arm.confirms]


def _budget(algorithm: str, tried: Sequence[Arm]) -> Budget:
    ours = [arm for arm in tried if arm.algorithm == algorithm]
    runs = [run for arm in ours for run in arm.runs if run.state != "missing"]
    epochs = [run.epochs for run in runs if run.epochs is not None]
    return Budget(
        algorithm, len(ours), len(runs), sum(epochs) if len(epochs) == len(runs) else None
    )
