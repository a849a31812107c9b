"""The plain settings of a sweep file: everything but its parameters, baselines and trial."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from carft_core.config import Section
from sweeps.metric_names import PATTERN, Goal

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
MAX_SEED = 2**32 - 1
MAX_SEEDS = 1000
RUN_CAP = 20
METHODS: Mapping[str, str] = {
    "grid": "every combination of the listed values",
    "random": "independent draws",
    "tpe": "Optuna's tree-structured Parzen estimator",
}
METHODS_LATER = ("gp", "nsga2", "qmc")
METHOD_ALIASES: Mapping[str, str] = {"bayes": "tpe"}


def _name(value: str) -> str:
    """A name becomes a folder and a run's name in the tracker."""
    if re.fullmatch(NAME, value):
        return value
    raise ValueError(
        "must be at most 100 letters, digits, '_', '-' and '.', beginning with a letter or digit, "
        f"got {value[:120]!r}"
    )


def _method(value: object) -> object:
    name = METHOD_ALIASES.get(value, value) if isinstance(value, str) else value
    if name in METHODS_LATER:
        raise ValueError(f"method {name} is known, but not available in this version")
    return name


def _seeds(value: object) -> object:
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


def _selection(value: object) -> object:
    """`best_val` and `oracle` are short for a mapping with the rule alone."""
    if isinstance(value, str):
        return {"rule": value}
    if isinstance(value, Mapping) and set(value) == {"within"}:
        return {"rule": "within", **value}
    raise ValueError(f"must be best_val, oracle, or {{within: 0.005}}, got {value!r}")


class Metric(Section):
    """What a trial is valued by: the mean of this metric over its seeds."""

    name: Annotated[str, Field(json_schema_extra={"pattern": f"^{PATTERN}$"})] = "id/val/top1"
    goal: Goal = "maximize"
    """Left out, it is the metric's own direction: accuracy up, losses and errors down."""
    merge: str | None = None
    """A point of one of the trial's merges, such as `wise_ft@0.5`; left out, the unmerged model."""


class Selection(Section):
    """How the one setting that represents a sweep is chosen (design, section 7)."""

    rule: Literal["best_val", "within", "oracle"] = "best_val"
    within: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The strongest regularisation whose metric is within this margin of the best."""

    def plain(self) -> str | dict[str, float]:
        """As the sweep file writes it."""
        return self.rule if self.within is None else {"within": self.within}


class Report(Section):
    """What the verdict calls better."""

    id_margin: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """By how much the ID accuracy may be lower."""


class Resources(Section):
    """What one run may use."""

    cpus: Annotated[int, Field(ge=1)] | None = None
    """Threads; left out, as many as torch takes by itself."""


class Settings(Section):
    """The keys of a sweep file that are checked one by one."""

    name: Annotated[str, AfterValidator(_name), Field(json_schema_extra={"pattern": f"^{NAME}$"})]
    description: str = ""
    method: Annotated[
        Literal["grid", "random", "tpe"],
        BeforeValidator(_method),
        WithJsonSchema({"enum": [*METHODS, *METHOD_ALIASES]}),
    ] = "grid"
    metric: Metric = Metric()
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...],
        BeforeValidator(_seeds),
        WithJsonSchema(
            {
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
        ),
    ] = (0,)
    run_cap: Annotated[int, Field(ge=1, le=100_000)] | None = None
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    selection: Annotated[
        Selection,
        BeforeValidator(_selection),
        WithJsonSchema(
            {
                "anyOf": [
                    {"enum": ["best_val", "oracle"]},
                    {
                        "type": "object",
                        "properties": {
                            "within": {
                                "type": "number",
                                "exclusiveMinimum": 0,
                                "exclusiveMaximum": 1,
                            }
                        },
                        "required": ["within"],
                        "additionalProperties": False,
                    },
                ]
            }
        ),
    ] = Selection()
    report: Report = Report()
    retries: Annotated[int, Field(ge=0, le=100)] = 1
    resources: Resources = Resources()
