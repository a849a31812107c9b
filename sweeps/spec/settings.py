"""The keys of a sweep file as pydantic models, and their short forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    WithJsonSchema,
    model_serializer,
    model_validator,
)

from carft_sweep.carft_core.config.fields import PositiveInt, Section, error_of, explained
from carft_sweep.carft_core.errors import Problem, misspelt, unknown
from carft_sweep.sweeps.spec.durations import FORM, NUMBER, seconds
from carft_sweep.sweeps.spec.metrics import PATTERN, Goal, natural_goal, problem
from carft_sweep.tracking.comparison.metrics import By
from carft_sweep.tracking.comparison.spec import SELECTION_RULES, TASK

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
MAX_SEED = 2**32 - 1
MAX_SEEDS = 1000
MOST_PER_GPU = 100
MAX_RETRIES = 100
RESOURCE = r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,99}"

Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
SeedList = (
    Annotated[int, Field(ge=1, le=MAX_SEEDS)]
    | Annotated[
        list[Seed],
        Field(min_length=1, max_length=MAX_SEEDS, json_schema_extra={"uniqueItems": True}),
    ]
)
"""Seeds, or how many, as a sweep file writes them."""


def check_name(value: str) -> str:
    """Return `value` unchanged. Raises ValueError if it cannot name a folder and an MLflow run."""
    if re.fullmatch(NAME, value):
        return value
    raise ValueError(
        "must be at most 100 letters, digits, '_', '-' and '.', beginning with a letter or digit, "
        f"got {value[:120]!r}"
    )


def expand_seeds(value: object) -> tuple[Any, ...]:
    """Return seeds 0, ..., n - 1 for a number n, and a list as a tuple; else raise ValueError."""
    if type(value) is int and 1 <= value <= MAX_SEEDS:
        return tuple(range(value))
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= MAX_SEEDS:
        raise ValueError(
            f"must be a list of seeds, or how many, 1 to {MAX_SEEDS}, got {repr(value)[:80]}"
        )
    twice = [seed for index, seed in enumerate(value) if seed in value[:index]]
    if twice:
        raise ValueError(f"the seed {twice[0]!r} is in the list twice")
    return tuple(value)


def expand_fresh_seeds(value: object, info: ValidationInfo) -> tuple[Any, ...]:
    """Return the n seeds after the largest of the key `seeds` for a number n, and a list as a
    tuple. Raises ValueError for seeds of `seeds`: they select, and so cannot confirm."""
    seeds, taken = expand_seeds(value), info.data.get("seeds", ())
    first = max(taken, default=-1) + 1
    if isinstance(value, int):
        return tuple(range(first, first + value))
    why = "is one of seeds, by which settings are chosen"
    advice = f"take seeds from {first} on, or say how many"
    wrong = [index for index, seed in enumerate(seeds) if seed in taken]
    if wrong:
        raise error_of(Problem((index,), f"{seeds[index]} {why}; {advice}") for index in wrong)
    return seeds


def check_race(value: RaceSeeds | None, info: ValidationInfo) -> RaceSeeds | None:
    """Return `value` unchanged. Raises ValueError if it could never save a seed."""
    seeds = len(info.data.get("seeds", ())) or MAX_SEEDS + 1
    if value is not None and value.after >= seeds:
        had = "1 seed" if seeds == 1 else f"{seeds} seeds"
        message = f"must leave seeds to save: after {value.after} of {had} there is none"
        raise error_of([Problem(("after",) if seeds > 1 else (), message)])
    return value


def check_metric(value: str) -> str:
    """Return `value` unchanged. Raises ValueError if no metric has this name."""
    wrong = problem(value)
    if wrong is not None:
        raise ValueError(wrong)
    return value


def expand_selection(value: object) -> object:
    """Return the long form of a rule's name or of `{within: ...}`; else raise ValueError."""
    if isinstance(value, str) and value in SELECTION_RULES:
        return {"rule": value}
    if isinstance(value, Mapping) and set(value) == {"within"}:
        return {"rule": "within", **value}
    raise ValueError(f"must be {', '.join(SELECTION_RULES)}, or {{within: 0.005}}, got {value!r}")


def short_for(key: str, kind: Any) -> BeforeValidator:
    """Return a validator that turns a text into `{key: text}`. `kind` is the long form's type."""

    def expand(value: object) -> object:
        return {key: value} if isinstance(value, str) else value

    return BeforeValidator(expand, json_schema_input_type=str | kind)


def expand_retries(value: object) -> object:
    """Expand n to n more attempts after a crash and a timeout; return other values unchanged."""
    return {"crashed": value, "timeout": value} if type(value) is int else value


def check_gpus(value: float) -> float:
    """Return a number of GPUs, a share below 1 as 1/n, cut to Ray's four decimals so that n runs
    fit on one GPU. Raises ValueError for a share that is not near 1/n, or a fraction above 1."""
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
    shares = {_share(n) for n in (runs - 1, runs) if n}
    return value if value in shares else _share(runs)


def _share(runs: int) -> float:
    return int(10_000 / runs) / 10_000


RUN_CAP = 20
MOST_GOALS = 4
Method = Literal["grid", "random", "tpe", "gp", "qmc", "nsga2"]
METHODS: Mapping[Method, str] = {
    "grid": "every combination of the listed values",
    "random": "independent draws",
    "tpe": "Optuna's tree-structured Parzen estimator",
    "gp": "Optuna's Gaussian process",
    "qmc": "a quasi-random sequence, which fills the space evenly",
    "nsga2": "Optuna's genetic algorithm, made for several goals",
}
BAYES = "bayes"
"""W&B's name of a search that learns."""
ADAPTIVE = ("tpe", "gp", "nsga2")
"""The methods whose proposals depend on how earlier trials end."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Duration = Annotated[
    float,
    BeforeValidator(seconds),
    WithJsonSchema(
        {
            "type": ["number", "string"],
            "exclusiveMinimum": 0,
            "pattern": f"^({NUMBER}|{FORM})$",
            "x-words": "a length of time",
            "examples": [5400, "90m", "2h30m", "1d"],
        }
    ),
]
"""In seconds."""
MetricName = Annotated[
    str, AfterValidator(check_metric), Field(json_schema_extra={"pattern": f"^{PATTERN}$"})
]


class Metric(Section):
    """A goal of trials: the mean of a metric over a trial's seeds."""

    name: MetricName = "id/val/top1"
    """A metric of the runs; only those of `id/val`, `ood/val` and `train` may choose."""
    goal: Goal = "maximize"
    """Left out, it is the metric's own direction: accuracy up, losses and errors down."""
    merge: str | None = None
    """Value the merged model at this point, such as `wise_ft@0.5`; one of the trial's `merges`."""
    target: Finite | None = None
    """Once a trial's value has reached it, no new trial begins; of `metric` only."""

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, data: Any) -> Any:
        """Return `data` without empty keys; `goal` is the metric's own direction if not given."""
        if not isinstance(data, Mapping):
            return data
        fields = {key: value for key, value in data.items() if value is not None}
        name = fields.get("name", "id/val/top1")
        return {"goal": natural_goal(name), **fields} if isinstance(name, str) else fields

    @model_validator(mode="after")
    def _in_its_direction(self) -> Self:
        if self.goal != natural_goal(self.name):
            message = f"{self.name} is better the other way round; leave goal out"
            raise error_of([Problem(("goal",), message)])
        return self

    def on(self, task: str) -> Metric:
        """Return the metric of one of several tasks, with the task's name in place of `{task}`."""
        return self.model_copy(update={"name": self.name.replace(TASK, task)})


class Constraint(Section):
    """What a setting must keep to be chosen: a metric, at least as good as a baseline's."""

    name: MetricName = "id/val/top1"
    """A metric of the runs, as for `metric.name`."""
    of: str = "zero_shot"
    """The baseline whose best setting is the reference."""
    margin: Annotated[Finite, Field(ge=0)] = 0.0
    """How much worse a setting may be, in units of the metric."""


RuleName = Literal["best_val", "oracle"]
Margin = Annotated[float, Field(gt=0, lt=1)]


class Within(Section):
    """The strongest regularisation whose metric is within a margin of the best."""

    within: Margin


class Selection(Section):
    """How the one setting that represents a sweep is chosen."""

    rule: RuleName | Literal["within"] = "best_val"
    within: Margin | None = None
    """The strongest regularisation whose metric is within this margin of the best."""

    @model_serializer
    def to_short(self) -> str | dict[str, float]:
        """Return the selection as the sweep file writes it."""
        return self.rule if self.within is None else {"within": self.within}


class Report(Section):
    """What the verdict calls better, and what a sweep leaves at its end."""

    id_margin: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """How much ID accuracy a better method may lose, a fraction."""
    ood_margin: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """The gain in OOD accuracy that is worth having: NO GAIN excludes it, a fraction."""
    by: By | None = None
    """The accuracy of tables, charts and verdict; left out, what the family's benchmark ranks
    by."""
    by_family: Mapping[str, By] = Field(default_factory=dict)
    """Instead of `by` where families are tasks: `{cifar10: top1}`."""
    page: bool = True
    """Whether the report is written as an HTML page, and kept in MLflow."""
    model: bool = True
    """Whether the selected model is kept in MLflow, where its weights are kept at all."""


class Resources(Section):
    """What one run may use."""

    cpus: PositiveInt | None = None
    """Threads of a run; left out, an even share of the machine, or for one run at a time what torch
    takes."""
    gpus: Annotated[
        Annotated[float, Field(ge=0, allow_inf_nan=False)] | Literal["auto"] | None,
        AfterValidator(lambda value: check_gpus(value) if isinstance(value, float) else value),
    ] = None
    """A whole number, or 1/n such as 0.25 for n runs on one GPU; left out, one where there is one.
    `auto`: as many runs on one GPU as its memory holds."""
    custom: Mapping[
        Annotated[str, Field(pattern=f"^{RESOURCE}$")], Annotated[Finite, Field(ge=0.0001)]
    ] = Field(default_factory=dict)
    """Resources of a Ray cluster by name: `{big_memory: 1}`."""


class _Rule(Section):
    """What all rules of early termination share."""

    metric: MetricName | None = None
    """A metric of every epoch; left out, the sweep's own."""
    allow_grid: bool = False
    """Whether points of a grid may be stopped, which then enter no mean, test or curve."""
    min_epochs: PositiveInt = 1
    """The first epoch after which a trial may be stopped; the first rung of `asha`."""


class Median(_Rule):
    """Stops a trial that is worse than the median of the others at the same epoch."""

    type: Literal["median"] = "median"
    startup_trials: Annotated[int, Field(ge=0)] = 5
    """Complete trials that are needed before any is stopped."""
    min_trials: PositiveInt = 1
    """Trials that must have a value at the same epoch."""


class Asha(_Rule):
    """Lets the best share of the trials pass each of a series of rungs."""

    type: Literal["asha"] = "asha"
    reduction_factor: Annotated[int, Field(ge=2)] = 4
    """Of so many trials at a rung, one continues."""


class Patience(_Rule):
    """Stops a trial that has not improved for a while."""

    type: Literal["patience"] = "patience"
    patience: PositiveInt = 3
    """Epochs without an improvement of more than `min_delta`."""
    min_delta: Annotated[Finite, Field(ge=0)] = 0.0
    """The least that counts as an improvement."""


class Threshold(_Rule):
    """Stops a trial whose metric leaves a range."""

    type: Literal["threshold"] = "threshold"
    lower: Finite | None = None
    """A trial below it stops; `lower`, `upper` or both."""
    upper: Finite | None = None
    """A trial above it stops."""

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.lower is None and self.upper is None:
            raise ValueError("threshold needs lower, upper or both")
        if self.lower is not None and self.upper is not None and self.lower >= self.upper:
            message = f"must be greater than lower, {self.lower:g}, got {self.upper:g}"
            raise error_of([Problem(("upper",), message)])
        return self


EarlyTerminate = Annotated[Median | Asha | Patience | Threshold, Field(discriminator="type")]
EARLY_TERMINATION: Mapping[str, type[Median | Asha | Patience | Threshold]] = {
    rule.model_fields["type"].default: rule for rule in (Median, Asha, Patience, Threshold)
}


def read_rule(value: object) -> object:
    """Return a rule of early termination, validated by the model of its type."""
    types = [*EARLY_TERMINATION]
    kind = value.get("type") if isinstance(value, Mapping) else None
    if isinstance(value, Mapping) and kind is None and (key := misspelt("type", value)):
        raise error_of([Problem((key,), unknown("field", key, ["type"]))])
    if kind not in types:
        raise ValueError(f"must be a mapping with a type: {', '.join(types)}; got {value!r}"[:200])
    model = EARLY_TERMINATION[str(kind)]
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise error_of(explained(error, model)) from None


class RaceSeeds(Section):
    """When a trial that is clearly worse after its first seeds needs no more."""

    margin: Annotated[Finite, Field(gt=0)]
    """How much worse than the best trial is clearly worse, in units of the metric."""
    after: PositiveInt = 1
    """Seeds that every trial runs."""


class Retries(Section):
    """How often a run that failed is tried again, by class; `nan` and `data` never are."""

    crashed: Annotated[int, Field(ge=0, le=MAX_RETRIES)] = 1
    """A run that ended with an error, or whose process died."""
    timeout: Annotated[int, Field(ge=0, le=MAX_RETRIES)] = 1
    """One that took longer than `timeout`, or showed no life."""
    preempted: Annotated[int, Field(ge=0, le=1000)] = 10
    """One that lost its machine; it resumes from its last checkpoint."""
    out_of_memory: Annotated[int, Field(ge=0, le=20)] = 3
    """One that ran out of memory: each time with half the micro-batch and the same batch."""


class RunsOf(Section):
    """Which runs of the sweep a soup is made of: those that are done."""

    algorithm: str
    """The trials' algorithm, or a baseline; `of: fine_tune` says the same."""
    settings: Literal["selected", "all"] = "selected"
    """The setting that is chosen of it, on all of `seeds`, or every setting, as the soups' paper
    has it."""


class After(Section):
    """A soup, made of finished runs when every trial has ended."""

    algorithm: Annotated[Mapping[str, Any], short_for("name", Mapping[str, Any])]
    """A soup by name, with its own fields."""
    of: Annotated[RunsOf, short_for("algorithm", RunsOf)]
    """Which runs; the name of an algorithm is short for its selected setting."""


TRY_FIRST: dict[str, Any] = {
    "anyOf": [
        {"type": "array", "items": {"type": "object"}},
        {
            "type": "object",
            "properties": {"from": {"type": "string"}, "best": {"type": "integer", "minimum": 1}},
            "required": ["from"],
            "additionalProperties": False,
        },
    ]
}
"""Points, or the best ones of another sweep."""


class Settings(Section):
    """The keys of a sweep file that are checked one by one."""

    name: Annotated[
        str, AfterValidator(check_name), Field(json_schema_extra={"pattern": f"^{NAME}$"})
    ]
    """With the home it is the sweep's identity; left out, the file's name. At most 100 letters,
    digits, `_`, `-` and `.`."""
    description: str = ""
    """Shown beside the name."""
    tags: Mapping[str, str] = Field(default_factory=dict)
    """Tags of the sweep and of its runs in MLflow: `{paper: icml, group: baselines}`."""
    notes: str = ""
    """Text in Markdown, below the answer on MLflow's page of the sweep: 5,000 letters in all."""
    experiment: str = ""
    """Its experiment in MLflow, unless MLFLOW_EXPERIMENT_NAME names one; else `carft-sweep`."""
    method: Annotated[Method, WithJsonSchema({"enum": [*METHODS, BAYES]})] = "grid"
    """How points of the space are chosen."""
    metric: Metric = Metric()
    """What a trial is valued by."""
    metrics: Annotated[
        tuple[Metric, ...], Field(strict=False, min_length=2, max_length=MOST_GOALS)
    ] = ()
    """Several goals, instead of `metric`; selection and tables go by the first."""
    constraint: Constraint | None = None
    """A metric that a setting must keep to be chosen: ID, while `metric` is of OOD validation."""
    seeds: Annotated[
        tuple[Seed, ...], BeforeValidator(expand_seeds, json_schema_input_type=SeedList)
    ] = (0,)
    """Runs per trial: a list of seeds, or how many; 3 is `[0, 1, 2]`."""
    confirm_seeds: Annotated[
        tuple[Seed, ...], BeforeValidator(expand_fresh_seeds, json_schema_input_type=SeedList)
    ] = ()
    """Seeds that no choice has seen, on which what was chosen runs again and is judged."""
    after: Annotated[tuple[After, ...], Field(strict=False)] = ()
    """Soups of finished runs, made when every trial has ended."""
    race_seeds: Annotated[RaceSeeds | None, AfterValidator(check_race)] = None
    """Spares trials that are clearly worse the rest of their seeds."""
    run_cap: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """How many trials there are; left out, a whole grid, or 20."""
    time_budget: Duration | None = None
    """For the sweep, over all its executions; then no run is started any more."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """For the search: with it the same points are proposed again."""
    tasks: str | None = None
    """The parameter whose values are tasks: every setting runs on each, settings are chosen for
    each apart, and tables have a column for each."""
    try_first: Annotated[
        tuple[Mapping[str, Any], ...], Field(strict=False), WithJsonSchema(TRY_FIRST)
    ] = ()
    """Points that are tried before the method proposes any; what they leave out is proposed.
    `{from: SWEEP, best: 5}` takes the best points of another sweep of the home."""
    try_first_from: str = ""
    """The sweep that the points of `try_first` are the best of, which `try_first: {from: ...}`
    sets."""
    early_terminate: Annotated[EarlyTerminate | None, BeforeValidator(read_rule)] = None
    """Stops trials that are not worth continuing."""
    selection: Annotated[
        Selection, BeforeValidator(expand_selection, json_schema_input_type=RuleName | Within)
    ] = Selection()
    """How the one setting that represents the sweep is chosen."""
    report: Report = Report()
    """What the verdict goes by, and what a sweep leaves at its end."""
    retries: Annotated[
        Retries,
        BeforeValidator(
            expand_retries,
            json_schema_input_type=Annotated[int, Field(ge=0, le=MAX_RETRIES)] | Retries,
        ),
    ] = Retries()
    """How often a run that failed is tried again: a number, or one for each class of failure."""
    timeout: Duration | None = None
    """For one run; one that takes longer has failed."""
    breaker: Annotated[int, Field(ge=0, le=100_000)] = 5
    """Failures in a row, for one cause or on one node, that stop the sweep; 0: never. A full disk
    stops it at once."""
    engine: Literal["auto", "local", "ray"] = "auto"
    """Where runs execute: worker processes here, or Ray; `auto` takes Ray where there is a
    cluster."""
    parallel: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = "auto"
    """The most runs at once; `auto`: as many as GPUs, or cores and memory, hold."""
    resources: Resources = Resources()
    """What one run may use."""
    imports: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        BeforeValidator(
            lambda value: [value] if isinstance(value, str) else value,
            json_schema_input_type=str | list[str],
        ),
        Field(strict=False),
    ] = Field((), alias="import")
    """Modules with algorithms, merges and families of your own: names, or paths relative to the
    file."""

    @property
    def goals(self) -> tuple[Metric, ...]:
        """The goals of a trial; selection, early termination and tables use the first."""
        return self.metrics or (self.metric,)
