"""The comparison: arms grouped, selected, tested, and put into rows."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from tracking.comparison import caveats, predictions, verdict_text
from tracking.comparison.caveats import mixed_facts
from tracking.comparison.domainbed import Protocol
from tracking.comparison.metrics import NOUNS, TOP1
from tracking.comparison.runs import Arm, RunRecord, Scalar, group, params_key
from tracking.comparison.selection import (
    Budget,
    Choice,
    budgets,
    choose,
    choose_each,
    choose_merges,
    confirmation,
    value_of,
)
from tracking.comparison.spec import Rule, Terms
from tracking.comparison.statistics import Interval, Summary, summary
from tracking.comparison.verdict import Finding, curves_of, gain_over_zero_shot, judge
from tracking.comparison.wise_ft import Curve

if TYPE_CHECKING:
    import pandas as pd
    from altair import TopLevelMixin


_GROUPS = (
    "id/val/",
    "id/test/",
    "id/test_",
    "ood/",
    "ood/mean/",
    "gap/",
    "hmean/",
    "gain/",
    "retention/",
    "retention/mean/",
    "retention/gain/",
    "context/",
    "train/",
)


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
    """Bootstrap over images of the top-1 of every split and of `ood/mean/top1`, if asked for."""

    @property
    def n(self) -> int:
        """How many finished runs the means are over."""
        return len(self.arm.done)

    @property
    def metrics(self) -> Mapping[str, Summary]:
        """Every metric that some finished run has, in the order of `metric_order`."""
        return {name: self.metric(name) for name in sorted(self.names, key=metric_order)}

    @property
    def names(self) -> set[str]:
        """Of those metrics, in no order."""
        return set().union(*(run.values(self.arm.merge) for run in self.arm.done))

    def metric(self, name: str) -> Summary:
        """One metric over the finished runs; without a mean where one of them lacks it."""
        return summary(self.arm.values(name))

    def as_dict(self) -> dict[str, object]:
        """Plain data for standard JSON."""
        return {
            "label": self.arm.label,
            "algorithm": self.arm.algorithm,
            "merge": self.arm.merge,
            "params": dict(self.arm.params),
            "n": self.n,
            "metrics": {name: found.as_dict() for name, found in self.metrics.items()},
            "role": self.arm.role,
            "trial": self.arm.trial,
            "runs": dict(self.arm.states),
            "value": self.value,
            "selected": self.selected,
            "chosen": self.chosen,
            "marks": list(self.marks),
            "ci95_images": {name: list(ends) for name, ends in self.ci95_images.items()},
        }


def metric_order(name: str) -> tuple[int, str, int, str]:
    """Sorts ID before OOD, shifts by name before their mean, top-1 before the rest."""
    kinds = ("top1", "nll", "ece", "brier")
    where, _, kind = name.rpartition("/")
    fits = [place for place, start in enumerate(_GROUPS) if name.startswith(start)]
    rank = kinds.index(kind) if kind in kinds else len(kinds)
    return (fits[-1] if fits else len(_GROUPS), where, rank, kind)


@dataclass(frozen=True)
class Look:
    """What the rows are marked by."""

    rule: Rule
    seeds: tuple[int, ...]
    """Of a whole setting."""
    fresh: tuple[int, ...]
    """Of one that is confirmed."""
    best: Choice | None
    choices: Mapping[str, Choice]
    merges: Mapping[str, Mapping[str, str]]
    untuned: frozenset[str]
    with_images: bool


def rows_of(arm: Arm, look: Look) -> Iterator[Row]:
    """The arm's row, then one for each of its merged models."""
    standing = look.choices.get(arm.algorithm)
    labels = look.merges.get(arm.label, {}).values()
    marks = _marks(arm, look)
    for seen in (arm, *(arm.merged(label) for label in arm.merge_labels)):
        stands = standing is not None and standing.arm.label == seen.label
        chosen = stands if seen.merge is None else stands or seen.merge in labels
        shown = bool(seen.done) and (seen.merge is None or chosen)
        yield Row(
            arm=seen,
            value=value_of(seen, look.rule.metric),
            selected=look.best is not None and look.best.arm.label == seen.label,
            chosen=chosen,
            marks=marks,
            ci95_images=_image_intervals(seen) if look.with_images and shown else {},
        )


def _marks(arm: Arm, look: Look) -> tuple[str, ...]:
    marks = {
        "untuned": arm.role == "baseline" and arm.algorithm in look.untuned,
        "incomplete": not arm.is_complete(look.fresh if arm.confirms else look.seeds),
        "confirmed": arm.confirms,
        "names domains": bool(caveats.named_domains(arm)),
        "oracle": look.rule.oracle,
    }
    return tuple(mark for mark, holds in marks.items() if holds)


def _image_intervals(arm: Arm) -> Mapping[str, Interval]:
    hits = predictions.arm_hits(arm.done, arm.merge)
    return {} if hits is None else predictions.intervals(hits)


__all__ = [
    "Arm",
    "Budget",
    "Comparison",
    "Row",
    "Rule",
    "RunRecord",
    "Scalar",
    "Selected",
    "Terms",
    "compare",
    "metric_order",
]

REFERENCE = "fine_tune"
_REPR_VERDICT = 240
"""Characters of the verdict in a repr; the first sentence has fewer."""


@dataclass(frozen=True)
class Selected:
    """The setting that the rule takes among the trials."""

    label: str
    params: Mapping[str, Scalar]
    trial: int | None
    value: float


@dataclass(frozen=True)
class Comparison:
    """What a sweep ends with; `tracking.report.terminal` shows it."""

    sweep: str
    rule: Rule
    seeds: tuple[int, ...]
    terms: Terms
    rows: tuple[Row, ...]
    selected: Selected | None
    findings: tuple[Finding, ...]
    sentences: tuple[str, ...]
    warnings: tuple[str, ...]
    curves: tuple[Curve, ...]
    """Mean WiSE-FT curves of the settings that stand for their algorithms in the verdict."""
    budgets: tuple[Budget, ...] = ()
    """What each algorithm that trains was given before its setting was chosen."""
    fresh_seeds: tuple[int, ...] = ()
    """What the verdict is judged on, where chosen settings are confirmed; else `seeds`."""
    tasks: Mapping[str, Comparison] = field(default_factory=dict)
    """That of each task, where there are several; then the rows are means over them."""
    protocol: Protocol | None = None
    """The table of the tasks."""

    @cached_property
    def metric_names(self) -> frozenset[str]:
        """Every metric of some row."""
        every = ((run, row.arm.merge) for row in self.rows for run in row.arm.done)
        return frozenset().union(*(run.values(merge) for run, merge in every))

    @cached_property
    def rivals(self) -> Mapping[tuple[str, str | None], int]:
        """How many settings each algorithm was chosen among, through each merge."""
        tuned = (row.arm for row in self.rows if not row.arm.confirms)
        return Counter((arm.algorithm, arm.merge) for arm in tuned)

    def runs(self) -> list[RunRecord]:
        """Every run, whatever became of it; of several tasks those of all."""
        found = [run for part in self.tasks.values() for run in part.runs()]
        rows = () if self.tasks else self.rows
        return found + [run for row in rows if row.arm.merge is None for run in row.arm.runs]

    @property
    def verdict(self) -> str:
        """The sentences as one paragraph."""
        return verdict_text.joined(self.sentences)

    def __repr__(self) -> str:
        """At most two lines: that of a dataclass would print every run."""
        rows = f"{len(self.rows)} row{'' if len(self.rows) == 1 else 's'}"
        verdict = textwrap.shorten(self.verdict, _REPR_VERDICT, placeholder=" ...")
        return f"<Comparison of {self.sweep!r}, {rows}\n {verdict}>"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        from tracking.report import html

        return html.html(self)

    def rows_frame(self, *, intervals: bool = False) -> pd.DataFrame:
        """One line per row of the table, as `tracking.report.formats.rows_frame`."""
        from tracking.report import formats

        return formats.rows_frame(self, intervals=intervals)

    def runs_frame(self) -> pd.DataFrame:
        """One line per run and evaluated model, as `tracking.report.formats.runs_frame`."""
        from tracking.report import formats

        return formats.runs_frame(self)

    def chart(self, name: str = "id_ood", *, width: int = 720) -> TopLevelMixin:
        """A chart of the report as Altair's own, so many pixels wide.

        Raises TrackingError for a name that no chart has, and where there is nothing to show.
        """
        from tracking.report import html

        return html.chart(self, name, width=width)

    def as_dict(self) -> dict[str, object]:
        """What `compare --json` prints: standard JSON, accuracies as fractions."""
        return {**self.in_parts(), "rows": [row.as_dict() for row in self.rows]}

    def in_parts(self) -> dict[str, object]:
        """The same with the rows one after another, since of many they are large."""
        chosen = self.selected
        tasks = {} if self.protocol is None else {"tasks": self._tasks(self.protocol)}
        return {
            "sweep": self.sweep,
            "metric": self.rule.metric,
            "goal": self.rule.goal,
            "metric_merge": self.rule.merge,
            "selection": self.rule.name,
            "by": self.terms.by,
            "seeds": list(self.seeds),
            "fresh_seeds": list(self.fresh_seeds),
            "verdict": self.verdict,
            "warnings": list(self.warnings),
            "rows": (row.as_dict() for row in self.rows),
            "selected": None
            if chosen is None
            else {
                "label": chosen.label,
                "params": dict(chosen.params),
                "trial": chosen.trial,
                "value": chosen.value,
            },
            "tests": [finding.as_dict() for finding in self.findings],
            "budgets": [budget.as_dict() for budget in self.budgets],
            "curves": [curve.as_dict() for curve in self.curves],
            **tasks,
        }

    def _tasks(self, table: Protocol) -> dict[str, object]:
        each = {task: found.as_dict() for task, found in self.tasks.items()}
        return {**table.as_dict(), "comparisons": each}


def compare(
    records: Iterable[RunRecord],
    *,
    sweep: str,
    rule: Rule | None = None,
    seeds: Sequence[int] | None = None,
    reference: str = REFERENCE,
    terms: Terms | None = None,
    untuned: Collection[str] | None = None,
    confirm_seeds: Sequence[int] | None = None,
    with_images: bool = False,
) -> Comparison:
    """Group the runs into arms, select by the rule, test against `reference`, say what it means.

    `seeds` are those that a complete setting has (default: all that occur); `untuned` names the
    baseline algorithms to mark (default: found from the points they ran at). Where every chosen
    setting has its runs on `confirm_seeds` (default: all that occur there), these alone are judged.
    `with_images` reads the kept predictions and adds bootstrap intervals. Nothing is raised for
    missing, failed or non-finite results: they are counted, and what cannot be said is not said.
    """
    rule, arms = rule or Rule(), group(records)
    terms = (terms or Terms()).suited(_measured(arms))
    wanted = tuple(seeds) if seeds is not None else _seeds(arms)
    choices, merges = choose_each(arms, rule, wanted), _merges(arms, rule)
    best = choose([arm for arm in arms if arm.role == "trial"], rule, wanted)
    fresh = confirmation(arms, choices, confirm_seeds)
    judged = fresh.judged(choices)
    zero_shots = [arm for arm in arms if arm.is_zero_shot]
    findings = _findings(judged, reference, terms, zero_shots, merges)
    if with_images:
        findings = tuple(_with_images(finding) for finding in findings)
    poor = caveats.untuned(arms) if untuned is None else frozenset(untuned)
    look = Look(rule, wanted, fresh.seeds, best, choices, merges, poor, with_images)
    standing = [arm for arm in judged.values() if arm.merge is None]
    spent = budgets(arms)
    rows = tuple(row for arm in arms for row in rows_of(arm, look))
    return Comparison(
        sweep=sweep,
        rule=rule,
        seeds=wanted,
        terms=terms,
        rows=rows,
        selected=_selected(best),
        findings=findings,
        sentences=(
            *_sentences(best, judged, findings, reference, terms, zero_shots),
            *(said for finding in findings for said in verdict_text.over_images(finding)),
            *verdict_text.confirmed(fresh, wanted),
        ),
        warnings=(
            *_warnings(arms, rule, (*choices.values(), best), spent, poor),
            *caveats.not_measured(arms, terms),
            *caveats.holes(arms, terms),
            *(_no_images(rows, terms) if with_images else ()),
        ),
        curves=curves_of(standing, zero_shots, terms),
        budgets=spent,
        fresh_seeds=fresh.seeds if fresh.is_complete else (),
    )


def _measured(arms: Sequence[Arm]) -> set[str]:
    """The metrics of finished runs."""
    return {name for arm in arms for run in arm.done for name in run.metrics}


def _seeds(arms: Sequence[Arm]) -> tuple[int, ...]:
    """Of the runs that are chosen among."""
    runs = (run for arm in arms if not arm.confirms for run in arm.runs)
    return tuple(sorted({run.seed for run in runs if run.seed is not None}))


def _merges(arms: Sequence[Arm], rule: Rule) -> dict[str, Mapping[str, str]]:
    """The label chosen for each merge, by arm; what confirms a setting takes the setting's."""
    tuned = [arm for arm in arms if not arm.is_zero_shot and not arm.confirms]
    chosen = {arm.label: choose_merges(arm, rule) for arm in tuned}
    fresh = [arm for arm in arms if arm.confirms]
    return chosen | {
        arm.label: chosen[its.label] for arm in fresh for its in tuned if arm.is_setting_of(its)
    }


def _findings(
    judged: Mapping[str, Arm],
    reference: str,
    terms: Terms,
    zero_shots: Sequence[Arm],
    merges: Mapping[str, Mapping[str, str]],
) -> tuple[Finding, ...]:
    base = judged.get(reference)
    if base is None:
        return ()
    rivals = [arm for name, arm in judged.items() if name != reference and arm.trains]
    return judge(rivals, base, terms, zero_shots=zero_shots, chosen_merges=merges)


def _sentences(
    best: Choice | None,
    judged: Mapping[str, Arm],
    findings: Sequence[Finding],
    reference: str,
    terms: Terms,
    zero_shots: Sequence[Arm],
) -> tuple[str, ...]:
    first = verdict_text.nothing_done() if best is None else ()
    if best is None or findings:
        tests = sum(finding.p_holm is not None for finding in findings)
        said = (s for finding in findings for s in verdict_text.finding(finding, terms, tests))
        return (*first, *said)
    arm = judged[best.arm.algorithm]
    gain = gain_over_zero_shot(arm, zero_shots, terms.ood)
    return verdict_text.no_reference(arm, reference, gain, terms)


def _warnings(
    arms: Sequence[Arm],
    rule: Rule,
    choices: Sequence[Choice | None],
    spent: Sequence[Budget],
    poor: frozenset[str],
) -> tuple[str, ...]:
    """`choices` are those of each algorithm, and that of the whole sweep."""
    made = [choice for choice in choices if choice is not None]
    return (
        *caveats.oracle(rule),
        *mixed_facts(arms),
        *caveats.data_notes(arms),
        *caveats.contexts(arms),
        *(f"{name} is untuned: it ran at fewer points than the trials" for name in sorted(poor)),
        *caveats.unequal_budgets(arms, spent, poor),
        *caveats.incomplete(made),
        *caveats.ties(made, rule),
        *caveats.no_strength(rule, arms),
        *caveats.unfinished(arms),
    )


def _no_images(rows: Sequence[Row], terms: Terms) -> tuple[str, ...]:
    """Settings for which no interval over images could be made, or why none is shown."""
    if terms.by != TOP1:
        return (f"intervals over images are of top-1 accuracy, and this is by {NOUNS[terms.by]}",)
    done = (row for row in rows if row.arm.merge is None and row.n)
    lacking = [row.arm.label for row in done if not row.ci95_images]
    if not lacking:
        return ()
    return (
        f"no interval over images for {verdict_text.few(lacking)}: a run keeps no predictions "
        "(trial.keep.predictions), or they are of other images than those of its other seeds",
    )


def _selected(best: Choice | None) -> Selected | None:
    if best is None:
        return None
    return Selected(best.arm.label, best.arm.params, best.arm.trial, best.value)


def _with_images(finding: Finding) -> Finding:
    """Adds the paired bootstrap over images of the differences, on the common seeds."""
    sides = []
    for arm in (finding.candidate, finding.reference):
        seeds = finding.difference.seeds if arm.has_seeds else (None,)
        runs = [run for run in arm.done if run.seed in seeds]
        sides.append(predictions.arm_hits(runs, arm.merge))
    ours, theirs = sides
    apart = None if ours is None or theirs is None else predictions.difference(ours, theirs)
    if apart is None:
        return finding
    return replace(finding, ci95_images=predictions.intervals(apart))


Key = tuple[str, str, bool]


def setting_key(row: Row) -> Key:
    """Equal for the unmerged row of a setting and all its merged rows."""
    return (row.arm.algorithm, params_key(row.arm.params), row.arm.confirms)


def shown_settings(comparison: Comparison) -> tuple[Row, ...]:
    """Every unmerged row with a finished run, but for those that confirm another one."""
    return tuple(
        row for row in comparison.rows if row.arm.merge is None and row.n and not row.arm.confirms
    )


def shown_reference(comparison: Comparison) -> Row | None:
    """What the candidates were judged against; without candidates the chosen fine-tuning."""
    finished = [row for row in comparison.rows if row.n]
    for finding in comparison.findings:
        label = finding.reference.label
        return next((row for row in finished if row.arm.label == label), None)
    rule = comparison.rule
    rivals = [
        row
        for row in finished
        if row.arm.algorithm == REFERENCE and row.arm.merge == rule.merge and row.chosen
    ]
    return max(rivals, key=lambda row: rule.better(row.value or 0.0), default=None)


def shown_rows(comparison: Comparison) -> tuple[Row, ...]:
    """The settings that stand for their algorithms and the selected one, in the table's order.

    Of each the unmerged row and those that stand for its merges. Where a choice was confirmed on
    fresh seeds and judged by them, these runs are shown and not those of the choice.
    """
    keys = _standing(comparison)
    return tuple(
        row
        for row in comparison.rows
        if row.n
        and setting_key(row) in keys
        and (row.arm.merge is None or row.chosen or row.selected)
    )


def _standing(comparison: Comparison) -> set[Key]:
    judged = {
        arm.label
        for finding in comparison.findings
        for arm in (finding.candidate, finding.reference)
    }
    found = {
        setting_key(row)
        for row in comparison.rows
        if row.selected
        or row.arm.label in judged
        or (row.arm.merge is None and row.chosen)
        or not row.arm.trains
    }
    return found - {(algorithm, params, False) for algorithm, params, fresh in found if fresh}
