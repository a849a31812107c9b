"""The specification of a comparison: selection rule, endpoint, reference and seeds."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from carft_sweep.tracking.comparison.metrics import BENCHMARK, ID, KINDS, OOD, TOP1
from carft_sweep.tracking.errors import TrackingError, unknown_name

TASK = "{task}"
"""Placeholder in a metric's name for the name of a task."""
SELECTION_RULES = ("best_val", "oracle")
"""Names of selection rules."""
VAL = "id/val/top1"
HONEST = ("id/val/", "train/", "ood/val/")
"""Beginnings of metrics that use no test split and no shift; `ood/val` is a validation set that a
benchmark made out of distribution."""
REFERENCE = "fine_tune"
SEEDS_FOR_CLAIM = 5
"""Number of common seeds that a claim needs."""


def looks_at_tests(metric: str) -> bool:
    """Return whether a metric is measured on test data, so that selecting by it is an oracle."""
    return not metric.startswith(HONEST)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class _Goal(_Frozen):
    metric: str = VAL
    goal: Literal["maximize", "minimize"] = "maximize"

    def better(self, value: float) -> float:
        """Return a value of the metric, negated if less is better, so that larger is better."""
        return value if self.goal == "maximize" else -value


class Constraint(_Goal):
    """A condition of selection: `metric` is as good as algorithm `of`'s best, less `margin`."""

    of: str
    margin: float

    def __str__(self) -> str:
        """Return what a setting must keep, for sentences."""
        minus = f" minus {self.margin:g}" if self.margin else ""
        return f"{self.metric} as good as {self.of}'s{minus}"


class SelectionRule(_Goal):
    """How the setting of an algorithm is selected. Raises ValueError for a metric of a test split
    or a shift unless `oracle`, and a margin below 0."""

    merge: str | None = None
    """The merged model whose metric counts; None: the unmerged one."""
    within: float | None = None
    """Margin, in the metric's unit: of settings within it the most regularised is selected."""
    oracle: bool = False
    strength: Mapping[str, Literal[1, -1]] = Field(default_factory=dict)
    """Regularisation fields by importance: +1 where larger is stronger, -1 where smaller."""
    constraint: Constraint | None = None
    bound: float | None = None
    """The constraint's least value, larger being better; None: no setting of `of` has one."""

    @model_validator(mode="after")
    def _check(self) -> SelectionRule:
        if looks_at_tests(self.metric) and not self.oracle:
            raise ValueError(
                f"{self.metric} is measured on test data; selecting on it needs `selection: oracle`"
            )
        if self.within is not None and not self.within >= 0:
            raise ValueError(f"selection within {self.within}: the margin must be at least 0")
        return self

    def on(self, task: str) -> SelectionRule:
        """Return the rule for one of several tasks, with the task's name in place of `{task}`."""
        return self.model_copy(update={"metric": self.metric.replace(TASK, task)})

    @property
    def name(self) -> str:
        """The rule's name: `best_val`, `within 0.005`, or either after the word oracle."""
        if self.within is None:
            return "oracle" if self.oracle else "best_val"
        return f"{'oracle, ' if self.oracle else ''}within {self.within:g}"


class Endpoint(_Frozen):
    """The metrics that are tested, and the margins; accuracies are fractions."""

    id_margin: float = 0.005
    """ID counts as kept when the lower bound of its difference lies above minus `id_margin`."""
    ood_margin: float = 0.005
    """There is no gain when the upper bound of the endpoint's difference lies below it."""
    by: str = TOP1
    """The kind of accuracy (`tracking.comparison.metrics.KINDS`) that methods are ranked by."""
    by_task: Mapping[str, str] = Field(default_factory=dict)
    """The kind of accuracy of each task, where tasks are ranked by different kinds."""
    has_shifts: bool = Field(default=True, exclude=True)
    """Whether shifts were measured; without them ID itself is tested."""
    has_test: bool = Field(default=True, exclude=True)
    """Whether there is an ID test; else `id/val` is ID, as where all domains but one train."""

    @model_validator(mode="after")
    def _check(self) -> Endpoint:
        for kind in (self.by, *self.by_task.values()):
            if kind not in (*KINDS, BENCHMARK):
                raise ValueError(unknown_name("accuracy", kind, KINDS))
        return self

    @property
    def val(self) -> str:
        """The metric of validation accuracy: `id/val/top1`, or of another kind."""
        return f"id/val/{self.by}"

    @property
    def test(self) -> str:
        """The metric of ID test accuracy: `id/test/top1`, or of another kind."""
        return f"id/test/{self.by}"

    @property
    def ood(self) -> str:
        """The metric of mean accuracy over shifts: `ood/mean/top1`, or of another kind."""
        return f"ood/mean/{self.by}"

    @property
    def id_metric(self) -> str:
        """The metric of accuracy in distribution."""
        return self.test if self.has_test else self.val

    @property
    def metric(self) -> str:
        """The metric that claims are tested on: of OOD, or of ID where there are no shifts."""
        return self.ood if self.has_shifts else self.test

    @property
    def margin(self) -> float:
        """The margin of the tested metric."""
        return self.ood_margin if self.has_shifts else self.id_margin

    def suited(self, names: Collection[str]) -> Endpoint:
        """Return a copy for the metrics `names` that were measured, which says whether there are
        shifts and an ID test. Data that have top-1 and lack only the kind `by` of accuracy still
        have shifts and test: they are not judged by another metric."""
        has_shifts = bool({self.ood, OOD} & {*names}) or not {self.test, ID} & {*names}
        has_test = bool({self.test, ID} & {*names}) or self.val not in names
        return self.model_copy(update={"has_shifts": has_shifts, "has_test": has_test})

    def on(self, task: str) -> Endpoint:
        """Return the endpoint of one of several tasks."""
        return self.model_copy(update={"by": self.by_task.get(task, self.by), "by_task": {}})

    def over(self, tasks: Collection[str]) -> Endpoint:
        """Return the endpoint of a mean over tasks: of the kind that all share, or each its own."""
        kinds = {self.on(task).by for task in tasks}
        if len(kinds) == 1:
            return self.model_copy(update={"by": kinds.pop(), "by_task": {}})
        return self.model_copy(update={"by": BENCHMARK})


class ComparisonSpec(_Frozen):
    """Everything that decides what a comparison says of the same runs; JSON in MLflow."""

    rule: SelectionRule = SelectionRule()
    endpoint: Endpoint = Endpoint()
    reference: str = REFERENCE
    """The algorithm that the others are tested against."""
    seeds: tuple[int, ...] | None = None
    """Seeds of a complete setting; None: all that occur."""
    confirm_seeds: tuple[int, ...] | None = None
    """Seeds on which a selected setting is run again; None: those that occur."""
    tasks: str | None = None
    """The parameter whose values are tasks, for each of which settings are selected apart."""


USUAL = ComparisonSpec()


def agreed(by_sweep: Mapping[str, ComparisonSpec]) -> ComparisonSpec:
    """Return the spec that all sweeps share; a setting is complete with the common seeds. Raises
    TrackingError that names the first difference and the option that overrides the value."""
    (first, spec), *others = by_sweep.items()
    if not others:
        return spec
    for name, another in others:
        for (key, value, option), (_, other, _) in zip(
            _settled(spec), _settled(another), strict=True
        ):
            if value != other:
                say = "" if option is None else f"say which with {option} (in Python: spec=), or "
                raise TrackingError(
                    f"{first} and {name} cannot be compared as one: the {key} of one is "
                    f"{_text(value)}, of the other {_text(other)}; {say}look at each by itself"
                )
    every = by_sweep.values()
    fresh = [{*spec.confirm_seeds} for spec in every if spec.confirm_seeds]
    selected_on = {seed for spec in every for seed in spec.seeds or ()}
    return spec.model_copy(
        update={
            "seeds": common_seeds([spec.seeds for spec in every]),
            # What one sweep has selected on confirms nothing in another.
            "confirm_seeds": tuple(sorted(set.intersection(*fresh) - selected_on)) if fresh else (),
        }
    )


def common_seeds(every: Sequence[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    """Return the seeds that make a setting complete in all specs; None: all present seeds."""
    required = [{*seeds} for seeds in every if seeds is not None]
    # With no seed required, a setting with a single one would stand against those with many.
    return tuple(sorted(set.intersection(*required))) or None if required else None


def _settled(spec: ComparisonSpec) -> list[tuple[str, object, str | None]]:
    """Return (name, value, option) of each value that must be equal to compare sweeps as one."""
    rule, endpoint = spec.rule, spec.endpoint
    return [
        ("metric", rule.metric, "--metric"),
        ("goal", rule.goal, "--metric"),
        ("merge", rule.merge, "--metric"),
        ("selection", rule.name, "--selection"),
        ("constraint", rule.constraint, None),
        ("id_margin", endpoint.id_margin, "--id-margin"),
        ("ood_margin", endpoint.ood_margin, "--ood-margin"),
        ("by", endpoint.by_task or endpoint.by, "--by"),
        ("tasks", spec.tasks, None),
    ]


def _text(value: object) -> str:
    return "none" if value is None else str(value)
