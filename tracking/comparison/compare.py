"""The comparison: runs grouped into settings, selected, tested, and described."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from tracking.comparison import caveats, verdict_text
from tracking.comparison.domainbed import DomainBedTable
from tracking.comparison.metrics import NOUNS, TOP1, metric_order
from tracking.comparison.predictions import intervals, read_predictions
from tracking.comparison.runs import Arm, RunRecord, group
from tracking.comparison.selection import (
    Budget,
    Selection,
    budgets,
    confirm,
    less_tried,
    select,
    select_each,
    select_merges,
)
from tracking.comparison.spec import USUAL, ComparisonSpec, Endpoint, SelectionRule
from tracking.comparison.statistics import Estimate, Interval, estimate
from tracking.comparison.verdict import (
    Pair,
    Verdict,
    gain_over_zero_shot,
    judge,
    zero_shot_of,
)
from tracking.comparison.wise_ft import Curve, mean_curve, seed_curves

_REPR_VERDICT = 240
"""Characters of the verdict in a repr; the first sentence has fewer."""


@dataclass(frozen=True)
class Row:
    """One line of the table: an arm, unmerged or through one merged model."""

    arm: Arm
    value: float | None
    """What the selection rule saw of this row."""
    selected: bool = False
    """The one setting that the sweep ends with."""
    chosen: bool = False
    """Unmerged: it stands for its algorithm. Merged: its label stands for the merge in its arm."""
    marks: tuple[str, ...] = ()
    """Words that qualify the row: `untuned`, `incomplete`, `confirmed`, `oracle`, `names domains`.
    """
    ci95_images: Mapping[str, Interval] = field(default_factory=dict)
    """Bootstrap over images of the top-1 of every split and of `ood/mean/top1`, if requested."""

    @property
    def setting(self) -> str:
        """The label of its arm, unmerged: trials of several sweeps share their numbers."""
        return self.arm.label.removesuffix(f" + {self.arm.merge}")

    @property
    def n(self) -> int:
        """How many finished runs the means are over."""
        return len(self.arm.done)

    @property
    def metrics(self) -> Mapping[str, Estimate]:
        """Every metric that some finished run has, in the order of `metric_order`."""
        return {name: self.metric(name) for name in sorted(self.names, key=metric_order)}

    @property
    def names(self) -> set[str]:
        """The names of these metrics, in no order."""
        return set().union(*(run.metrics_of(self.arm.merge) for run in self.arm.done))

    def metric(self, name: str) -> Estimate:
        """Estimate one metric over the finished runs; no mean where one of them lacks it."""
        return estimate([run.value(name, self.arm.merge) for run in self.arm.done])


@dataclass(frozen=True)
class Comparison:
    """What a sweep ends with; the functions of `tracking.report` render it."""

    sweep: str
    spec: ComparisonSpec
    """With the seeds that occur, and the endpoint that fits what was measured."""
    rows: tuple[Row, ...]
    selected: Selection | None
    """The setting that the rule takes among the trials."""
    verdicts: tuple[Verdict, ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    curves: tuple[Curve, ...]
    """Mean WiSE-FT curves of the settings that stand for their algorithms in the verdict."""
    budgets: tuple[Budget, ...] = ()
    """What each algorithm that trains was given before its setting was selected."""
    fresh_seeds: tuple[int, ...] = ()
    """What the verdict is judged on, where selected settings are confirmed; else `seeds`."""
    tasks: Mapping[str, Comparison] = field(default_factory=dict)
    """That of each task, where there are several; then the rows are means over them."""
    task_table: DomainBedTable | None = None

    @property
    def rule(self) -> SelectionRule:
        """How settings were selected."""
        return self.spec.rule

    @property
    def endpoint(self) -> Endpoint:
        """What was tested."""
        return self.spec.endpoint

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those of a complete setting."""
        return self.spec.seeds or ()

    @cached_property
    def metric_names(self) -> frozenset[str]:
        """Every metric of some row."""
        every = ((run, row.arm.merge) for row in self.rows for run in row.arm.done)
        return frozenset().union(*(run.metrics_of(merge) for run, merge in every))

    @cached_property
    def rivals(self) -> Mapping[tuple[str, str | None], int]:
        """How many settings each algorithm was selected among, through each merge."""
        tuned = (row.arm for row in self.rows if not row.arm.confirms)
        return Counter((arm.algorithm, arm.merge) for arm in tuned)

    def runs(self) -> list[RunRecord]:
        """List every run in any state; of several tasks those of all."""
        of_tasks = [run for part in self.tasks.values() for run in part.runs()]
        rows = () if self.tasks else self.rows
        return of_tasks + [run for row in rows if row.arm.merge is None for run in row.arm.runs]

    def pair(self, candidate: Arm, reference: Arm) -> Pair:
        """Return the tested pair of two arms: that of the verdict where there is one."""
        labels = (candidate.label, reference.label)
        if labels not in self._pairs:
            self._pairs[labels] = Pair(candidate, reference, self.endpoint)
        return self._pairs[labels]

    @cached_property
    def _pairs(self) -> dict[tuple[str, str], Pair]:
        every = [pair for it in self.verdicts for pair in (it.pair, *it.merged.values())]
        return {(pair.candidate.label, pair.reference.label): pair for pair in every}

    @property
    def verdict(self) -> str:
        """The sentences as one paragraph."""
        return " ".join(self.sentences)

    def __repr__(self) -> str:
        """Write at most two lines: that of a dataclass would print every run."""
        rows = f"{len(self.rows)} row{'' if len(self.rows) == 1 else 's'}"
        verdict = textwrap.shorten(self.verdict, _REPR_VERDICT, placeholder=" ...")
        return f"<Comparison of {self.sweep!r}, {rows}\n {verdict}>"


def compare(
    runs: Iterable[RunRecord],
    spec: ComparisonSpec = USUAL,
    *,
    sweep: str = "",
    with_images: bool = False,
) -> Comparison:
    """Group runs into settings, select one per algorithm, and test it against the reference.

    Missing, failed and non-finite runs are counted, never raised. Where every selected setting has
    its runs on fresh seeds, these alone are tested.

    Args:
        runs: Runs in any state; the same (setting, seed) twice counts once.
        spec: Selection rule, endpoint, reference, and the seeds of a complete setting.
        sweep: The name in titles.
        with_images: Read the kept predictions and add bootstrap intervals over images.

    Returns:
        The table, the paired tests (Holm-adjusted), and the verdict as sentences.
    """
    arms = group(runs)
    measured = {name for arm in arms for run in arm.done for name in run.metrics}
    seeds = spec.seeds
    if seeds is None:
        every = (run.seed for arm in arms if not arm.confirms for run in arm.runs)
        seeds = tuple(sorted({seed for seed in every if seed is not None}))
    spec = spec.model_copy(update={"endpoint": spec.endpoint.suited(measured), "seeds": seeds})
    rule, endpoint = spec.rule, spec.endpoint
    selections, merges = select_each(arms, rule, seeds), select_merges(arms, rule)
    best = select([arm for arm in arms if arm.role == "trial"], rule, seeds)
    confirmation = confirm(arms, selections, spec.confirm_seeds)
    tested = confirmation.arms
    zero_shots = [arm for arm in arms if arm.is_zero_shot]
    reference = tested.get(spec.reference)
    spent = budgets(arms)
    verdicts: tuple[Verdict, ...] = ()
    if reference is not None:
        candidates = [arm for arm in tested.values() if arm is not reference and arm.trains]
        verdicts = judge(
            candidates,
            reference,
            endpoint,
            seeds=confirmation.seeds if confirmation.is_complete else seeds,
            tried={} if confirmation.is_complete else {it.algorithm: it.settings for it in spent},
            zero_shots=zero_shots,
            merges=merges,
        )
    if with_images:
        verdicts = tuple(map(_with_images, verdicts))
    fewer = less_tried(arms)
    rows = []
    for arm in arms:
        standing = selections.get(arm.algorithm)
        marks = {
            "untuned": arm.role == "baseline" and arm.algorithm in fewer,
            "incomplete": not arm.is_complete(confirmation.seeds if arm.confirms else seeds),
            "confirmed": arm.confirms,
            "names domains": bool(caveats.named_domains(arm)),
            "oracle": rule.oracle,
        }
        for model in (arm, *(arm.merged(label) for label in arm.merge_labels)):
            chosen = standing is not None and standing.arm.label == model.label
            chosen |= model.merge in merges.get(arm.label, {}).values()
            row = Row(
                arm=model,
                value=model.mean(rule.metric),
                selected=best is not None and best.arm.label == model.label,
                chosen=chosen,
                marks=tuple(mark for mark, holds in marks.items() if holds),
            )
            if with_images and model.done and (model.merge is None or chosen):
                predictions = read_predictions(model.done, model.merge)
                row = replace(row, ci95_images=intervals(predictions) if predictions else {})
            rows.append(row)
    judged = [*selections.values(), *([best] if best else [])]
    curves = []
    for arm in tested.values():
        if arm.merge is None:
            zero_shot = zero_shot_of(arm, zero_shots)
            by_seed = seed_curves(arm, zero_shot, endpoint.id_metric, endpoint.ood)
            if len(by_seed) == len(arm.done):
                curves.append(mean_curve([*by_seed.values()]))
    return Comparison(
        sweep=sweep,
        spec=spec,
        rows=tuple(rows),
        selected=best,
        verdicts=verdicts,
        sentences=(
            *_sentences(best, tested, verdicts, spec, zero_shots),
            *(text for verdict in verdicts for text in verdict_text.over_images(verdict)),
            *verdict_text.confirmed(confirmation, seeds),
        ),
        warnings=(
            *caveats.oracle(rule),
            *caveats.mixed_facts(arms),
            *caveats.data_notes(arms),
            *caveats.contexts(arms),
            *caveats.unequal_budgets(fewer, spent),
            *caveats.of_selection(rule, arms, judged),
            *caveats.unfinished(arms),
            *caveats.missing_values(arms, endpoint),
            *(_without_images(rows, endpoint) if with_images else ()),
        ),
        curves=tuple(curve for curve in curves if curve is not None),
        budgets=spent,
        fresh_seeds=confirmation.seeds if confirmation.is_complete else (),
    )


def _sentences(
    best: Selection | None,
    tested: Mapping[str, Arm],
    verdicts: Sequence[Verdict],
    spec: ComparisonSpec,
    zero_shots: Sequence[Arm],
) -> Iterator[str]:
    if best is None:
        yield verdict_text.NO_VALUE
    for verdict in verdicts:
        yield from verdict_text.sentences(verdict)
    if best is not None and not verdicts:
        arm = tested[best.arm.algorithm]
        gain = gain_over_zero_shot(arm, zero_shots, spec.endpoint.ood)
        yield from verdict_text.no_reference(arm, spec.reference, gain, spec.endpoint)


def _with_images(verdict: Verdict) -> Verdict:
    """Add the paired bootstrap over images of the differences, on the common seeds."""
    sides = []
    for arm in (verdict.pair.candidate, verdict.pair.reference):
        seeds = verdict.pair.seeds if arm.has_seeds else (None,)
        runs = [run for run in arm.done if run.seed in seeds]
        sides.append(read_predictions(runs, arm.merge))
    candidate, reference = sides
    if candidate is None or reference is None:
        return verdict
    return replace(verdict, ci95_images=intervals(candidate, minus=reference))


def _without_images(rows: Sequence[Row], endpoint: Endpoint) -> Iterator[str]:
    """Name the settings without an interval over images, or say why none is shown."""
    done = (row for row in rows if row.arm.merge is None and row.n)
    lacking = [row.arm.label for row in done if not row.ci95_images]
    if endpoint.by != TOP1:
        yield (f"intervals over images are of top-1 accuracy, and this is by {NOUNS[endpoint.by]}")
    elif lacking:
        yield (
            f"no interval over images for {caveats.few(lacking)}: a run keeps no predictions "
            "(trial.keep.predictions), or they are of other images than those of its other seeds"
        )


def shown_rows(comparison: Comparison) -> tuple[Row, ...]:
    """List the settings that stand for their algorithms and the selected one, as in the table.

    Of each the unmerged row and those that stand for its merges. Where a choice was confirmed on
    fresh seeds and judged by them, these runs are shown and not those of the choice.
    """
    tested = {
        arm.label
        for verdict in comparison.verdicts
        for arm in (verdict.pair.candidate, verdict.pair.reference)
    }
    standing = {
        row.setting: row.arm
        for row in comparison.rows
        if row.selected
        or row.arm.label in tested
        or (row.arm.merge is None and row.chosen)
        or not row.arm.trains
    }
    fresh = [arm for arm in standing.values() if arm.confirms]
    settings = {
        label
        for label, arm in standing.items()
        if arm.confirms or not any(other.is_setting_of(arm) for other in fresh)
    }
    return tuple(
        row
        for row in comparison.rows
        if row.n
        and row.setting in settings
        and (row.arm.merge is None or row.chosen or row.selected)
    )
