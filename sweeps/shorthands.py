"""The short ways to write a setting (`seeds: 3`, `retries: 1`) and the long ones they stand for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from tracking.rule_names import NAMED

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
MAX_SEED = 2**32 - 1
MAX_SEEDS = 1000
MOST_PER_GPU = 100
MAX_RETRIES = 100
METHOD_ALIASES: Mapping[str, str] = {"bayes": "tpe"}
_OF_RAY = {"cpu": "cpus", "cpus": "cpus", "gpu": "gpus", "gpus": "gpus"}
_NO_RESOURCE = ("memory", "object_store_memory")

SEEDS_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": "integer", "minimum": 1, "maximum": MAX_SEEDS},
        {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": MAX_SEED},
            "minItems": 1,
            "maxItems": MAX_SEEDS,
            "uniqueItems": True,
        },
    ]
}
RULES = ("best_val", "oracle", *NAMED)
"""Of selection, by name."""
SELECTION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": [*RULES]},
        {
            "type": "object",
            "properties": {
                "within": {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1}
            },
            "required": ["within"],
            "additionalProperties": False,
        },
    ]
}


def name(value: str) -> str:
    """A name becomes a folder and a run's name in the tracker."""
    if re.fullmatch(NAME, value):
        return value
    raise ValueError(
        "must be at most 100 letters, digits, '_', '-' and '.', beginning with a letter or digit, "
        f"got {value[:120]!r}"
    )


def method(value: object) -> object:
    """W&B's names too. Raises ValueError for those that hand the search to another program."""
    if value in ("custom", "ax"):
        raise ValueError(
            f"{value} hands the search to a scheduler of W&B's, which is not here; "
            "name the search itself: grid, random, tpe, gp, qmc or nsga2"
        )
    return METHOD_ALIASES.get(value, value) if isinstance(value, str) else value


def seeds(value: object) -> object:
    """A number n stands for 0, ..., n - 1."""
    if isinstance(value, bool) or not isinstance(value, (int, list, tuple)):
        raise ValueError(f"must be a list of seeds, or how many, got {value!r}")
    if isinstance(value, int):
        if not 1 <= value <= MAX_SEEDS:
            raise ValueError(f"must be 1 to {MAX_SEEDS} seeds, got {value}")
        return tuple(range(value))
    if not 1 <= len(value) <= MAX_SEEDS:
        raise ValueError(f"must be 1 to {MAX_SEEDS} seeds, got a list of {len(value)}")
    twice = [seed for index, seed in enumerate(value) if seed in value[:index]]
    if twice:
        raise ValueError(f"the seed {twice[0]!r} stands in the list twice")
    return tuple(value)


def fresh_seeds(value: object, taken: object) -> object:
    """A number n stands for the n seeds that follow the largest of `taken`, a list or a number.

    Whatever is wrong in either is left as it is, for `seeds` to say.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SEEDS:
        return value
    if isinstance(taken, int):
        taken = list(range(taken)) if 1 <= taken <= MAX_SEEDS else []
    known = [seed for seed in taken if isinstance(seed, int)] if isinstance(taken, list) else []
    first = max(known, default=-1) + 1
    return list(range(first, first + value))


def selection(value: object) -> object:
    """A rule's name is short for a mapping with the rule alone."""
    if isinstance(value, str):
        return {"rule": value}
    if isinstance(value, Mapping) and set(value) == {"within"}:
        return {"rule": "within", **value}
    raise ValueError(f"must be {', '.join(RULES)}, or {{within: 0.005}}, got {value!r}")


def named(value: object) -> object:
    """A name is short for a mapping with the name alone."""
    return {"name": value} if isinstance(value, str) else value


def runs_of(value: object) -> object:
    """The name of an algorithm is short for the runs of its selected setting."""
    return {"algorithm": value} if isinstance(value, str) else value


def retries(value: object) -> object:
    """A number n stands for n more attempts after a crash, and n after a timeout.

    Raises ValueError when it is no such number, no mapping and no model.
    """
    if isinstance(value, (Mapping, BaseModel)):
        return value
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"must be a number, or {{crashed: 1, timeout: 1, ...}}, got {value!r}")
    if not 0 <= value <= MAX_RETRIES:
        bound = "greater than or equal to 0" if value < 0 else f"at most {MAX_RETRIES}"
        raise ValueError(f"must be {bound}, got {value}")
    return {"crashed": value, "timeout": value}


def gpus(value: float) -> float:
    """A share of a GPU, at least 0, as 1/n, cut to Ray's four decimals, so that n runs fit on one.

    Raises ValueError with the nearest 1/n when the share is none.
    """
    if value == 0 or (value >= 1 and value == int(value)):
        return value
    if value > 1:
        raise ValueError(
            f"must be a whole number above 1, since a run has whole GPUs then, got {value:g}; "
            f"the nearest are {int(value)} and {int(value) + 1}"
        )
    runs = min(max(round(1 / value), 1), MOST_PER_GPU)
    if abs(value - 1 / runs) > 0.01 or value < 0.5 / MOST_PER_GPU:
        raise ValueError(
            f"must be 0, a whole number, or 1/n such as 0.5 or 0.25, got {value:g}; "
            f"the nearest is {1 / runs:.4g}, for {runs} runs on one GPU"
        )
    known = {_share(n) for n in (runs - 1, runs) if n}
    return value if value in known else _share(runs)


def _share(runs: int) -> float:
    return int(10_000 / runs) / 10_000


def resource(value: str) -> str:
    """The name of a custom resource of a Ray cluster."""
    own = _OF_RAY.get(value.lower())
    if own:
        raise ValueError(f"is no custom resource; write it as resources.{own}")
    if value in _NO_RESOURCE:
        raise ValueError("cannot be asked for here; Ray's memory is not shared out between runs")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,99}", value):
        raise ValueError("must be at most 100 letters, digits, '_', '-', '.', ':' and '/'")
    return value


def imports(value: object) -> tuple[str, ...]:
    """One module stands for a list of one. Raises ValueError when it is no list of texts."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)) or not all(
        isinstance(item, str) and item for item in given
    ):
        raise ValueError(
            "must be a list of modules such as my_lab.methods, or of .py files, "
            f"got {repr(value)[:80]}"
        )
    return tuple(given)
