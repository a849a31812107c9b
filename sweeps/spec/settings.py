"""The keys of a sweep file as pydantic models, and their short forms."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from carft_core.fields import Section
from sweeps.spec.durations import FORM, NUMBER, seconds
from sweeps.spec.metrics import PATTERN, Goal
from tracking.comparison.metrics import By
from tracking.comparison.spec import NAMED, TASK

WEBHOOK_VARIABLE = "CARFT_WEBHOOK"
"""The environment's variable that serves too."""
HIDDEN = "***"
_VARIABLE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*")
_ALLOWED_ADDRESS = (
    "must be an http:// or https:// address, or env:NAME for a variable that holds one"
)


def address(given: object) -> str:
    """The address as given. Raises ValueError, which shows none of it: it is a secret."""
    if not isinstance(given, str):
        raise ValueError(_ALLOWED_ADDRESS)
    if given.startswith("env:"):
        if not _VARIABLE.fullmatch(given):
            raise ValueError(f"{_ALLOWED_ADDRESS}; a variable's name has letters, digits and '_'")
        return given
    if not _is_url(given):
        raise ValueError(_ALLOWED_ADDRESS)
    return given


def masked(given: str) -> str:
    """What may be shown and kept of an address: `env:NAME` whole, of a URL only the host."""
    if given.startswith("env:"):
        return given
    parts = urlsplit(given)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}/{HIDDEN}"


def is_masked(given: str) -> bool:
    """Whether only the mask is left of an address, so that nothing can be sent there."""
    return given.endswith(f"/{HIDDEN}")


def _is_url(given: str) -> bool:
    if not given.isprintable() or any(character.isspace() for character in given):
        return False
    try:
        parts = urlsplit(given)
        # The port is read only when it is asked for.
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


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
SELECTION_RULES = ("best_val", "oracle", *NAMED)
"""Of selection, by name."""
SELECTION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"enum": [*SELECTION_RULES]},
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


def check_name(value: str) -> str:
    """A name becomes a folder and a run's name in the tracker."""
    if re.fullmatch(NAME, value):
        return value
    raise ValueError(
        "must be at most 100 letters, digits, '_', '-' and '.', beginning with a letter or digit, "
        f"got {value[:120]!r}"
    )


def expand_method(value: object) -> object:
    """W&B's names too. Raises ValueError for those that hand the search to another program."""
    if value in ("custom", "ax"):
        raise ValueError(
            f"{value} hands the search to a scheduler of W&B's, which is not here; "
            "name the search itself: grid, random, tpe, gp, qmc or nsga2"
        )
    return METHOD_ALIASES.get(value, value) if isinstance(value, str) else value


def expand_seeds(value: object) -> object:
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


def expand_fresh_seeds(value: object, taken: object) -> object:
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


def expand_selection(value: object) -> object:
    """A rule's name is short for a mapping with the rule alone."""
    if isinstance(value, str):
        return {"rule": value}
    if isinstance(value, Mapping) and set(value) == {"within"}:
        return {"rule": "within", **value}
    raise ValueError(f"must be {', '.join(SELECTION_RULES)}, or {{within: 0.005}}, got {value!r}")


def expand_named(value: object) -> object:
    """A name is short for a mapping with the name alone."""
    return {"name": value} if isinstance(value, str) else value


def expand_runs_of(value: object) -> object:
    """The name of an algorithm is short for the runs of its selected setting."""
    return {"algorithm": value} if isinstance(value, str) else value


def expand_retries(value: object) -> object:
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


def check_gpus(value: float) -> float:
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


def check_resource(value: str) -> str:
    """The name of a custom resource of a Ray cluster."""
    own = _OF_RAY.get(value.lower())
    if own:
        raise ValueError(f"is no custom resource; write it as resources.{own}")
    if value in _NO_RESOURCE:
        raise ValueError("cannot be asked for here; Ray's memory is not shared out between runs")
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:/-]{0,99}", value):
        raise ValueError("must be at most 100 letters, digits, '_', '-', '.', ':' and '/'")
    return value


def expand_imports(value: object) -> tuple[str, ...]:
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
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False), AfterValidator(check_gpus)] | None = (
        None
    )
    """A whole number, or 1/n for n runs on one GPU; left out, one where there is one."""
    custom: Mapping[
        Annotated[str, AfterValidator(check_resource)],
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
        kept = {"type", "metric", *EARLY_TERMINATION_FIELDS[self.type]} | (
            {"allow_grid"} if self.allow_grid else set()
        )
        return self.model_dump(include=kept, exclude_none=True)


EARLY_TERMINATION_FIELDS: Mapping[str, tuple[str, ...]] = {
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
        BeforeValidator(expand_named),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "object", "required": ["name"]}]}),
    ]
    """A soup by name, with its own fields."""
    of: Annotated[
        RunsOf,
        BeforeValidator(expand_runs_of),
        WithJsonSchema({"anyOf": [{"type": "string"}, RunsOf.model_json_schema()]}),
    ]
    """Which runs; the name of an algorithm is short for its selected setting."""


class Settings(Section):
    """The keys of a sweep file that are checked one by one."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    name: Annotated[
        str, AfterValidator(check_name), Field(json_schema_extra={"pattern": f"^{NAME}$"})
    ]
    """The sweep's identity in its home; left out, the file's name."""
    description: str = ""
    """Shown beside the name."""
    method: Annotated[
        Method,
        BeforeValidator(expand_method),
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
        BeforeValidator(expand_seeds),
        WithJsonSchema(SEEDS_SCHEMA),
    ] = (0,)
    """Runs per trial: a list of seeds, or how many."""
    confirm_seeds: Annotated[
        tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...],
        BeforeValidator(expand_seeds),
        WithJsonSchema(SEEDS_SCHEMA),
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
        BeforeValidator(expand_selection),
        WithJsonSchema(SELECTION_SCHEMA),
    ] = Selection()
    """How the setting that represents the sweep is chosen."""
    report: Report = Report()
    """What the verdict calls better."""
    retries: Annotated[Retries, BeforeValidator(expand_retries)] = Retries()
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
    imports: Annotated[tuple[str, ...], BeforeValidator(expand_imports)] = Field((), alias="import")
    """Modules of the user's own: names, or paths of files."""
