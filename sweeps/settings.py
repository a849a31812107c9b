"""The plain settings of a sweep file: everything but its parameters, baselines and trial."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema

from carft_core.fields import Section
from sweeps import shorthands
from sweeps.addresses import address
from sweeps.durations import FORM, NUMBER, seconds
from sweeps.metric_names import PATTERN, Goal
from sweeps.shorthands import MAX_RETRIES, MAX_SEED, METHOD_ALIASES, NAME
from tracking.accuracy import By
from tracking.rule_names import TASK

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
Finite = Annotated[float, Field(allow_inf_nan=False)]
Duration = Annotated[
    float,
    BeforeValidator(seconds),
    WithJsonSchema(
        {
            "type": ["number", "string"],
            "exclusiveMinimum": 0,
            "pattern": f"^({NUMBER}|{FORM})$",
            "examples": [5400, "90m", "2h30m", "1d"],
        }
    ),
]
"""In seconds."""


class Metric(Section):
    """What a trial is valued by: the mean of this metric over its seeds."""

    name: Annotated[str, Field(json_schema_extra={"pattern": f"^{PATTERN}$"})] = "id/val/top1"
    goal: Goal = "maximize"
    """Left out, it is the metric's own direction: accuracy up, losses and errors down."""
    merge: str | None = None
    """A point of one of the trial's merges, such as `wise_ft@0.5`; left out, the unmerged model."""
    target: Finite | None = None
    """Once a trial's value has reached it, no new trial begins."""

    def on(self, task: str) -> Metric:
        """The same on one of several tasks, whose name stands where the metric says `{task}`."""
        return self.model_copy(update={"name": self.name.replace(TASK, task)})

    def plain(self) -> dict[str, Any]:
        """As the sweep file writes it."""
        return self.model_dump(exclude={"target"} if self.target is None else None)


class Selection(Section):
    """How the one setting that represents a sweep is chosen (design, section 7)."""

    rule: Literal["best_val", "within", "oracle", "training_domain", "leave_one_domain_out"] = (
        "best_val"
    )
    within: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The strongest regularisation whose metric is within this margin of the best."""

    def plain(self) -> str | dict[str, float]:
        """As the sweep file writes it."""
        return self.rule if self.within is None else {"within": self.within}


class Report(Section):
    """What the verdict calls better, and what a sweep leaves at its end beside it."""

    id_margin: Annotated[float, Field(ge=0, lt=1)] = 0.005
    """By how much the ID accuracy may be lower."""
    by: By | None = None
    """The accuracy of tables, charts and verdict; left out, what the family is ranked by."""
    by_family: Mapping[str, By] = Field(default_factory=dict)
    """The same for each of several families that are tasks; left out, what each is ranked by."""
    page: bool = True
    """The report as an HTML page, also with the sweep's run in MLflow."""
    model: bool = True
    """The selected model in MLflow, where its weights are kept."""

    def plain(self) -> dict[str, Any]:
        """As the sweep file writes it."""
        unsaid = {name for name in ("by", "by_family") if not getattr(self, name)}
        return self.model_dump(exclude=unsaid)


class Resources(Section):
    """What one run may use."""

    cpus: Annotated[int, Field(ge=1)] | None = None
    """Threads; left out, as many as torch takes by itself."""
    gpus: (
        Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(shorthands.gpus)] | None
    ) = None
    """A whole number, or 1/n for n runs on one GPU; left out, one where there is one."""
    custom: Mapping[
        Annotated[str, AfterValidator(shorthands.resource)],
        Annotated[Finite, Field(ge=0.0001)],
    ] = Field(default_factory=dict)
    """Resources of a Ray cluster by name."""

    def plain(self) -> dict[str, Any]:
        """As the sweep file writes it."""
        return {"cpus": self.cpus} | self.model_dump(exclude_defaults=True)


class EarlyTerminate(Section):
    """When a trial is not worth going on with (docs/early-termination.md)."""

    type: Literal["median", "asha", "patience", "threshold"]
    metric: str | None = None
    """A metric of the epoch reports; `load_spec` fills in the sweep's own."""
    min_epochs: Annotated[int, Field(ge=1)] = 1
    """Nothing is decided before so many epochs; asha's first rung."""
    reduction_factor: Annotated[int, Field(ge=2)] = 4
    startup_trials: Annotated[int, Field(ge=0)] = 5
    min_trials: Annotated[int, Field(ge=1)] = 1
    patience: Annotated[int, Field(ge=1)] = 3
    """Epochs without an improvement of more than `min_delta`."""
    min_delta: Annotated[Finite, Field(ge=0)] = 0.0
    lower: Finite | None = None
    upper: Finite | None = None
    allow_grid: bool = False

    def plain(self) -> dict[str, Any]:
        """As the sweep file writes it: with the fields of its type."""
        kept = {"type", "metric", *RULES[self.type]} | (
            {"allow_grid"} if self.allow_grid else set()
        )
        return self.model_dump(include=kept, exclude_none=True)


RULES: Mapping[str, tuple[str, ...]] = {
    "median": ("min_epochs", "startup_trials", "min_trials"),
    "asha": ("min_epochs", "reduction_factor"),
    "patience": ("min_epochs", "patience", "min_delta"),
    "threshold": ("min_epochs", "lower", "upper"),
}
"""Each type of early termination with the fields of its own; the others go with every type."""


class RaceSeeds(Section):
    """When a trial that is clearly worse after its first seeds needs no more."""

    margin: Annotated[Finite, Field(gt=0)]
    """Of the metric: how much worse is clearly worse."""
    after: Annotated[int, Field(ge=1)] = 1
    """Seeds that every trial runs."""


class Retries(Section):
    """How often a run that failed is tried again, by class; `nan` and `data` never are."""

    crashed: Annotated[int, Field(ge=0, le=MAX_RETRIES)] = 1
    timeout: Annotated[int, Field(ge=0, le=MAX_RETRIES)] = 1
    preempted: Annotated[int, Field(ge=0, le=1000)] = 10
    out_of_memory: Annotated[int, Field(ge=0, le=20)] = 3
    """Each time with half the micro-batch and the same effective batch."""

    def plain(self) -> int | dict[str, int]:
        """As the sweep file writes it."""
        short = self == Retries(crashed=self.crashed, timeout=self.crashed)
        return self.crashed if short else self.model_dump()


class RunsOf(Section):
    """Which runs of the sweep a soup is made of: those that are done."""

    algorithm: str
    """That of the trials, or a baseline."""
    settings: Literal["selected", "all"] = "selected"
    """The setting that is chosen of it, on all its seeds, or every setting."""


class After(Section):
    """A run that is made of others, when every trial has ended."""

    algorithm: Annotated[
        Mapping[str, Any],
        BeforeValidator(shorthands.named),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}),
    ]
    """A soup by name, with its own fields."""
    of: Annotated[
        RunsOf,
        BeforeValidator(shorthands.runs_of),
        WithJsonSchema({"anyOf": [{"type": "string"}, RunsOf.model_json_schema()]}),
    ]
    """Which runs; the name of an algorithm is short for its selected setting."""


class Settings(Section):
    """The keys of a sweep file that are checked one by one."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: Annotated[
        str, AfterValidator(shorthands.name), Field(json_schema_extra={"pattern": f"^{NAME}$"})
    ]
    """The sweep's identity in its home."""
    description: str = ""
    """Shown beside the name."""
    method: Annotated[
        Method,
        BeforeValidator(shorthands.method),
        WithJsonSchema({"enum": [*METHODS, *METHOD_ALIASES]}),
    ] = "grid"
    """How points of the space are chosen."""
    metric: Metric = Metric()
    """What a trial is valued by."""
    metrics: Annotated[
        tuple[Metric, ...],
        Field(strict=False, json_schema_extra={"minItems": 2, "maxItems": MOST_GOALS}),
    ] = ()
    """Several goals, instead of `metric`; selection and tables go by the first."""
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...],
        BeforeValidator(shorthands.seeds),
        WithJsonSchema(shorthands.SEEDS_SCHEMA),
    ] = (0,)
    """Runs per trial: a list of seeds, or how many."""
    confirm_seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...],
        BeforeValidator(shorthands.seeds),
        WithJsonSchema(shorthands.SEEDS_SCHEMA),
    ] = ()
    """More runs of what was chosen, on which it is judged: seeds none of `seeds`, or how many."""
    after: Annotated[tuple[After, ...], Field(strict=False)] = ()
    """Soups of finished runs, made when every trial has ended."""
    race_seeds: RaceSeeds | None = None
    """Spares trials that are clearly worse the rest of their seeds."""
    run_cap: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """How many trials there are; left out, a whole grid, else 20."""
    time_budget: Duration | None = None
    """Of the sweep, over all its executions; then no run is started any more."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0
    """Of the search: with it the same points are proposed again."""
    tasks: str | None = None
    """The parameter whose values are tasks: every setting runs on each, and settings are chosen
    for each apart."""
    try_first: Annotated[tuple[Mapping[str, Any], ...], Field(strict=False)] = ()
    """Points that are tried before the method proposes any; what they leave out is proposed."""
    early_terminate: EarlyTerminate | None = None
    """Stops trials that are not worth going on with."""
    selection: Annotated[
        Selection,
        BeforeValidator(shorthands.selection),
        WithJsonSchema(shorthands.SELECTION_SCHEMA),
    ] = Selection()
    """How the setting that represents the sweep is chosen."""
    report: Report = Report()
    """What the verdict calls better."""
    retries: Annotated[Retries, BeforeValidator(shorthands.retries)] = Retries()
    """How often a run that failed is tried again: a number, or one for each class of failure."""
    timeout: Duration | None = None
    """Of one run; one that takes longer has failed."""
    breaker: Annotated[int, Field(ge=0, le=100_000)] = 5
    """So many runs that fail in a row for one cause, or on one node, stop the sweep; 0: never.
    A full disk stops it at once."""
    engine: Literal["auto", "local", "ray"] = "auto"
    """Where runs execute; auto takes Ray where there is a cluster or more than one GPU."""
    parallel: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """The most runs at once."""
    resources: Resources = Resources()
    """What one run may use."""
    webhook: Annotated[str, BeforeValidator(address)] | None = None
    """Is told of the end and of failures: a URL, or env:NAME for a variable that holds one."""
    imports: Annotated[tuple[str, ...], BeforeValidator(shorthands.imports)] = Field(
        (), alias="import"
    )
    """Modules of the user's own: names, or paths of files."""
