"""The comparison: runs grouped into settings, selected, tested, and described."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from carft_sweep.tracking.comparison import caveats, sentences
from carft_sweep.tracking.comparison.curves import CurvePair, CurveVerdict, judge_curves
from carft_sweep.tracking.comparison.effects import Effect, measure_effects
from carft_sweep.tracking.comparison.hits import HitsReader, KeptHits, read_hits
from carft_sweep.tracking.comparison.metrics import metric_order
from carft_sweep.tracking.comparison.runs import Arm, ArmKey, RunRecord, group
from carft_sweep.tracking.comparison.selection import (
    Budget,
    Selection,
    bounded,
    budgets,
    confirm,
    less_tried,
    select,
    select_each,
    select_merges,
)
from carft_sweep.tracking.comparison.sentences import Answer
from carft_sweep.tracking.comparison.spec import USUAL, ComparisonSpec, Endpoint, SelectionRule
from carft_sweep.tracking.comparison.statistics import Estimate
from carft_sweep.tracking.comparison.verdict import (
    Pair,
    Verdict,
    find_strongest,
    judge,
    measured_models,
    zero_shot_of,
)
from carft_sweep.tracking.comparison.wise_ft_curve import (
    PAPER_ALPHA,
    Curve,
    mean_curve,
    seed_curves,
    seed_points,
    wise_alpha,
)
from carft_sweep.tracking.errors import counted

_REPR_VERDICT = 240
"""Most characters of the verdict in a repr; the first sentence has fewer."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: an arm, unmerged or through one merged model."""

    arm: Arm
    value: float | None
    """Mean of the metric that settings are selected by; None without one."""
    selected: bool = False
    """Whether it is the one setting that the sweep ends with."""
    chosen: bool = False
    """Whether an unmerged row represents its algorithm. Of a merged row: whether it represents its
    merge, chosen by validation, or is WiSE-FT at alpha 0.5, which nobody chooses."""
    marks: tuple[str, ...] = ()
    """Words that qualify the row: `untuned`, `incomplete`, `confirmed`, `oracle`, `names domains`,
    and of a merge what it says of itself, such as `transductive`."""

    @property
    def setting(self) -> ArmKey:
        """The key of the unmerged arm: rows of one setting share it."""
        return self.arm.setting_key

    @property
    def n(self) -> int:
        """Number of finished runs, over which the means are taken."""
        return len(self.arm.done)

    @property
    def metrics(self) -> Mapping[str, Estimate]:
        """Estimate of each metric that some finished run has, in `metric_order`."""
        return {name: self.metric(name) for name in sorted(self.names, key=metric_order)}

    @property
    def names(self) -> set[str]:
        """The names of the metrics of the row, unordered."""
        return set().union(*(run.metrics_of(self.arm.merge) for run in self.arm.done))

    def metric(self, name: str) -> Estimate:
        """Return a metric's Estimate over finished runs, without a mean if a run lacks it."""
        return self.arm.estimate(name)


@dataclass(frozen=True)
class Comparison:
    """The result of comparing the arms of a sweep; `tracking.report` renders it."""

    sweep: str
    spec: ComparisonSpec
    """As given; seeds that it does not name are those that occur, the endpoint fits what was
    measured."""
    rows: tuple[Row, ...]
    selected: Selection | None
    """The setting that the selection rule takes among the trials."""
    verdicts: tuple[Verdict, ...]
    answer: Answer
    statistics: tuple[str, ...]
    """Sentences with the numbers, intervals and p behind the answer."""
    warnings: tuple[str, ...]
    curves: tuple[Curve, ...]
    """Mean WiSE-FT curves of the settings that represent their algorithms in the verdict."""
    curve_verdicts: tuple[CurveVerdict, ...] = ()
    """Each candidate's curve against that of the reference."""
    kept: KeptHits = field(default_factory=KeptHits, compare=False, repr=False)
    """Reader of the predictions from which the errors over images are computed."""
    budgets: tuple[Budget, ...] = ()
    """Settings and runs of each algorithm that trains, before its setting was selected."""
    fresh_seeds: tuple[int, ...] = ()
    """Seeds of the confirming runs that the verdict is judged on; if empty, it is on `seeds`."""
    tasks: Mapping[str, Comparison] = field(default_factory=dict)
    """The comparison of each of several tasks; `rows` are then means over the tasks."""

    @property
    def selected_verdict(self) -> Verdict | None:
        """The verdict on the selected setting; None where it was not tested."""
        selected, verdict = self.selected, self.answer.verdict
        if selected is None or verdict is None:
            return None
        return verdict if verdict.pair.candidate.key[:3] == selected.arm.key[:3] else None

    @property
    def better_baseline(self) -> Arm | None:
        """The reference if the verdict calls it better than the selected setting, else None."""
        verdict = self.selected_verdict
        is_against = verdict is not None and verdict.outcome in ("less_robust", "worse")
        return verdict.pair.reference if verdict is not None and is_against else None

    @property
    def rule(self) -> SelectionRule:
        """The rule by which settings were selected."""
        return self.spec.rule

    @property
    def endpoint(self) -> Endpoint:
        """The endpoint that was tested."""
        return self.spec.endpoint

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds that a setting must have to be complete."""
        return self.spec.seeds or ()

    @cached_property
    def metric_names(self) -> frozenset[str]:
        """The name of every metric that a finished run of at least one row has."""
        return frozenset().union(*(row.names for row in self.rows))

    @cached_property
    def rivals(self) -> Mapping[tuple[str, str | None], int]:
        """Number of settings that each (algorithm, merge) was selected among."""
        tuned = (row.arm for row in self.rows if not row.arm.confirms)
        return Counter((arm.algorithm, arm.merge) for arm in tuned)

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """The measured data, each as `icon_shift v1 896bf7`; a data family may have several."""
        return caveats.datasets(self.runs())

    def runs(self) -> list[RunRecord]:
        """Return every run in any state; with several tasks the runs of all tasks."""
        of_tasks = [run for part in self.tasks.values() for run in part.runs()]
        rows = () if self.tasks else self.rows
        return of_tasks + [run for row in rows if row.arm.merge is None for run in row.arm.runs]

    def pair(self, candidate: Arm, reference: Arm) -> Pair:
        """Return the pair of two arms for a paired test: that of their verdict if one exists."""
        pairs = (verdict.pair for verdict in self.verdicts)
        same = (p for p in pairs if (p.candidate, p.reference) == (candidate, reference))
        return next(same, None) or Pair(candidate, reference, self.endpoint, self.kept)

    @property
    def verdict(self) -> str:
        """The sentences of the answer and its statistics as one paragraph."""
        return " ".join((*self.answer.lines, *self.statistics))

    def __repr__(self) -> str:
        """Return at most two lines, since the text of a dataclass would print every run."""
        rows = counted(len(self.rows), "row")
        verdict = textwrap.shorten(self.verdict, _REPR_VERDICT, placeholder=" ...")
        return f"<Comparison of {self.sweep!r}, {rows}\n {verdict}>"


def compare(
    runs: Iterable[RunRecord],
    spec: ComparisonSpec = USUAL,
    *,
    sweep: str = "",
    tried: Mapping[str, int] | None = None,
    hits: HitsReader = read_hits,
) -> Comparison:
    """Group runs into settings, select one per algorithm, and test it against the reference; return
    the comparison.

    Missing, failed and non-finite runs are counted, never raised. Where every selected setting has
    its runs on fresh seeds, these alone are tested.

    Args:
        runs: Runs in any state; the same (setting, seed) twice counts once.
        spec: Selection rule, endpoint, reference, and the seeds of a complete setting.
        sweep: The name of the sweep, for titles.
        tried: Number of settings that an algorithm was selected among; None: as many as in `runs`.
        hits: Reads which images a model of a run has right, by default from the run's folder.

    Returns:
        The table, the paired tests (Holm-adjusted), the answer and its statistics as sentences.
    """
    arms, kept = group(runs), KeptHits(hits)
    measured = {name for arm in arms for run in arm.done for name in run.metrics}
    seeds = spec.seeds
    if seeds is None:
        every = (run.seed for arm in arms if not arm.confirms for run in arm.runs)
        seeds = tuple(sorted({seed for seed in every if seed is not None}))
    spec = spec.model_copy(update={"endpoint": spec.endpoint.suited(measured), "seeds": seeds})
    rule, endpoint = bounded(spec.rule, arms), spec.endpoint
    selections, merges = select_each(arms, rule, seeds), select_merges(arms, rule)
    best = select([arm for arm in arms if arm.role == "trial"], rule, seeds)
    confirmation = confirm(arms, selections, spec.confirm_seeds)
    tested, fresh = {**confirmation.arms}, confirmation.fresh_seeds
    judged_on = fresh or seeds
    zero_shots = [arm for arm in arms if arm.is_zero_shot]
    for arm in zero_shots:  # chosen or not, as without validation it cannot be
        if arm.algorithm == spec.reference and arm.done:
            tested.setdefault(arm.algorithm, arm)
    reference = tested.get(spec.reference)
    spent = budgets(arms)
    if tried is None:
        tried = {budget.algorithm: budget.settings for budget in spent}
    unmerged = {arm.key: arm for arm in arms}
    curves = {
        key: seed_curves(arm, zero_shot_of(arm, zero_shots), endpoint.id_metric, endpoint.ood)
        for key in dict.fromkeys(arm.setting_key for arm in tested.values())
        for arm in [unmerged[key]]
    }
    verdicts: tuple[Verdict, ...] = ()
    curve_verdicts: tuple[CurveVerdict, ...] = ()
    if reference is not None:
        candidates = [arm for arm in tested.values() if arm is not reference and arm.trains]
        tries = {} if fresh else tried
        verdicts = judge(candidates, reference, endpoint, kept, seeds=judged_on, tried=tries)
        base = unmerged[reference.setting_key]
        if curves[base.key] and endpoint.has_shifts:
            pairs = [
                _curve_pair(unmerged[arm.setting_key], base, curves, zero_shots, endpoint, kept)
                for arm in candidates
            ]
            curve_verdicts = judge_curves(pairs, judged_on, tries)
    fewer = less_tried(arms)
    domains = caveats.named_domains(arms)
    marks_domains = caveats.domains_differ(domains)
    rows = []
    for arm in arms:
        standing = selections.get(arm.algorithm)
        marks = {
            "untuned": arm.role == "baseline" and arm.algorithm in fewer,
            "incomplete": not arm.is_complete(confirmation.seeds if arm.confirms else seeds),
            "confirmed": arm.confirms,
            "names domains": marks_domains and bool(domains.get(arm.key)),
            "oracle": rule.oracle,
        }
        words = tuple(mark for mark, holds in marks.items() if holds)
        chosen_labels = merges.get(arm.key, {}).values()
        # At alpha 1 WiSE-FT is the unmerged model, which has a row.
        labels = [name for name in arm.merge_labels if wise_alpha(name) != 1 or name == rule.merge]
        for model in (arm, *map(arm.merged, labels)):
            chosen = standing is not None and standing.arm.key == model.key
            chosen |= model.merge in chosen_labels
            chosen |= model.merge is not None and wise_alpha(model.merge) == PAPER_ALPHA
            rows.append(
                Row(
                    arm=model,
                    value=model.mean(rule.metric),
                    selected=best is not None and best.arm.key == model.key,
                    chosen=chosen,
                    marks=words + model.merge_marks,
                )
            )
    judged = [*selections.values(), *([best] if best else [])]
    models = [arm for arm in arms if arm.confirms == bool(fresh) or not arm.trains]
    answer, statistics = _answer(
        arms, spec, best, tested, verdicts, curve_verdicts, models, judged_on, kept
    )
    return Comparison(
        sweep=sweep,
        spec=spec,
        rows=tuple(rows),
        selected=best,
        verdicts=verdicts,
        answer=answer,
        statistics=(*statistics, *sentences.confirmed(confirmation, seeds)),
        warnings=(
            *caveats.oracle(rule),
            *caveats.mixed_facts(arms),
            *caveats.data_notes(arms),
            *caveats.contexts(arms, domains),
            *caveats.unequal_budgets(fewer, spent),
            *caveats.of_selection(rule, judged),
            *caveats.unfinished(arms),
            *caveats.outlying_seeds(tested.values(), endpoint),
            *kept.unreadable,
            *caveats.missing_values(arms, endpoint),
        ),
        curves=tuple(_mean_curves(tested.values(), curves)),
        curve_verdicts=curve_verdicts,
        kept=kept,
        budgets=spent,
        fresh_seeds=fresh,
    )


def _curve_pair(
    candidate: Arm,
    reference: Arm,
    curves: Mapping[ArmKey, Mapping[int | None, Curve]],
    zero_shots: Sequence[Arm],
    endpoint: Endpoint,
    kept: KeptHits,
) -> CurvePair:
    """Return the curves of two unmerged arms, paired by seed. A candidate without WiSE-FT models of
    its own is compared as a single point."""
    own = curves[candidate.key] or seed_points(candidate, endpoint.id_metric, endpoint.ood)
    other = curves[reference.key]
    both = {seed: (own[seed], other[seed]) for seed in own if seed in other}
    starts = zero_shot_of(candidate, zero_shots), zero_shot_of(reference, zero_shots)
    return CurvePair(candidate, reference, endpoint, both, starts, kept)


def _mean_curves(
    arms: Iterable[Arm], curves: Mapping[ArmKey, Mapping[int | None, Curve]]
) -> Iterator[Curve]:
    """Yield the curve of each arm, averaged over seeds, if every finished run has a curve."""
    for arm in arms:
        by_seed = {} if arm.merge is not None else curves[arm.key]
        curve = mean_curve([*by_seed.values()]) if len(by_seed) == len(arm.done) else None
        if curve is not None:
            yield curve


def _answer(
    arms: Sequence[Arm],
    spec: ComparisonSpec,
    best: Selection | None,
    tested: Mapping[str, Arm],
    verdicts: Sequence[Verdict],
    curve_verdicts: Sequence[CurveVerdict],
    models: Sequence[Arm],
    seeds: Sequence[int],
    kept: KeptHits,
) -> tuple[Answer, tuple[str, ...]]:
    """Return the answer (which setting to use, how sure its advantage is) and its statistics, a
    sentence each. The strongest model is one of `models`; verdicts were judged on `seeds`."""
    endpoint, rule, reference = spec.endpoint, spec.rule, tested.get(spec.reference)
    selected = None if best is None else tested[best.arm.algorithm]
    strongest = find_strongest(measured_models(models), reference, endpoint, kept, seeds)
    verdict = _verdict_of_selected(verdicts, best, rule)
    curve = None if verdict is None else _curve_of(verdict, curve_verdicts)
    effects, unmeasured = list[Effect](), list[str]()
    if best is not None:
        merge = best.arm.merge
        varied = arms if merge is None else [arm.merged(merge) for arm in arms]
        effects, unmeasured = measure_effects(varied, best.arm, endpoint, spec.seeds or (), kept)
    lines, statistics = list[str](), list[str]()
    # What a sweep is for comes first: pages and tags show the first line alone.
    values = [arm.mean(rule.metric) for arm in tested.values()]
    if best is None and (not verdicts or any(value is not None for value in values)):
        lines.append(sentences.NO_VALUE)
    if curve is not None:
        lines.append(sentences.curve_claim(curve))
    if verdict is not None:
        lines.append(sentences.claim(verdict))
    elif selected is not None:
        lines.append(sentences.no_reference(selected, spec.reference))
    if strongest is not None:
        # Of several tasks nothing is selected as a whole.
        of_sweep = None if spec.tasks else selected
        lines.append(sentences.strongest_line(strongest, of_sweep, reference, endpoint))
    lines += [sentences.effect_line(effect, endpoint, rule) for effect in effects]
    if verdict is not None and not endpoint.has_shifts:
        statistics.append(sentences.NO_SHIFTS)
    if curve is not None:
        statistics += sentences.curve_details(curve)
    if verdict is not None:
        statistics += sentences.claim_details(verdict)
    for other in verdicts:
        if other is not verdict:
            of_curve = _curve_of(other, curve_verdicts)
            if of_curve is not None:
                statistics.append(sentences.curve_claim(of_curve))
                statistics += sentences.curve_details(of_curve)
            statistics.append(sentences.claim(other))
            statistics += sentences.claim_details(other)
    statistics += sentences.not_compared(unmeasured)
    answer = Answer(tuple(lines), curve, strongest, verdict, tuple(effects))
    return answer, tuple(statistics)


def _verdict_of_selected(
    verdicts: Sequence[Verdict], best: Selection | None, rule: SelectionRule
) -> Verdict | None:
    """Return the verdict on the algorithm of `best`. Where that is the reference, return the
    verdict on the candidate with the best mean of `rule.metric`. None without verdicts."""
    for verdict in verdicts:
        if best is not None and verdict.pair.candidate.algorithm == best.arm.algorithm:
            return verdict

    def value(verdict: Verdict) -> float:
        mean = verdict.pair.candidate.mean(rule.metric)
        return -math.inf if mean is None else rule.better(mean)

    return max(verdicts, key=value, default=None)


def _curve_of(verdict: Verdict, curve_verdicts: Sequence[CurveVerdict]) -> CurveVerdict | None:
    """Return the curve verdict with the same candidate as `verdict`; None without one."""
    candidate = verdict.pair.candidate
    return next((v for v in curve_verdicts if v.pair.candidate.is_setting_of(candidate)), None)


def shown_rows(comparison: Comparison) -> tuple[Row, ...]:
    """Return the settings that represent their algorithms and the selected setting, in table order.
    Each setting has a row of its unmerged model and of its selected merged models. A setting that
    was confirmed on fresh seeds is represented by the runs on these seeds."""
    tested = {
        arm.key
        for verdict in comparison.verdicts
        for arm in (verdict.pair.candidate, verdict.pair.reference)
    }
    standing = {
        row.setting: row.arm
        for row in comparison.rows
        if row.selected
        or row.arm.key in tested
        or (row.arm.merge is None and row.chosen)
        or not row.arm.trains
    }
    fresh = [arm for arm in standing.values() if arm.confirms]
    settings = {
        key
        for key, arm in standing.items()
        if arm.confirms or not any(other.is_setting_of(arm) for other in fresh)
    }
    return tuple(
        row
        for row in comparison.rows
        if row.n
        and row.setting in settings
        and (row.arm.merge is None or row.chosen or row.selected)
    )
