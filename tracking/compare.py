"""The comparison of a sweep: one row per arm, what was selected on what, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from tracking import caveats, images, wording
from tracking.curves import OOD, Curve, mean_curve
from tracking.records import Arm, RunRecord, Scalar, group
from tracking.selection import Choice, Rule, choose, choose_merges, value_of
from tracking.statistics import Interval, Summary, summary
from tracking.verdict import Finding, Terms, gain_over_zero_shot, judge, zero_shot_of

__all__ = [
    "Arm",
    "Comparison",
    "Row",
    "Rule",
    "RunRecord",
    "Scalar",
    "Selected",
    "Terms",
    "compare",
]

REFERENCE = "fine_tune"
_GROUPS = (
    "id/val/",
    "id/test/",
    "ood/",
    "ood/mean/",
    "gap/",
    "hmean/",
    "gain/",
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
    """Words that qualify the row: `untuned`, `incomplete`, `oracle`, `names domains`."""
    ci95_images: Mapping[str, Interval] = field(default_factory=dict)
    """Bootstrap over images of `id/test/top1` and `ood/mean/top1`, when asked for."""

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


@dataclass(frozen=True)
class Selected:
    """The setting that the rule takes among the trials."""

    label: str
    params: Mapping[str, Scalar]
    trial: int | None
    value: float


@dataclass(frozen=True)
class Comparison:
    """What a sweep ends with; `tracking.report` shows it."""

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
    """Mean WiSE-FT curves of the settings that stand for their algorithms."""

    @cached_property
    def metric_names(self) -> frozenset[str]:
        """Every metric of some row."""
        every = ((run, row.arm.merge) for row in self.rows for run in row.arm.done)
        return frozenset().union(*(run.values(merge) for run, merge in every))

    @cached_property
    def rivals(self) -> Mapping[tuple[str, str | None], int]:
        """How many rows each algorithm has, through each merge."""
        return Counter((row.arm.algorithm, row.arm.merge) for row in self.rows)

    @property
    def verdict(self) -> str:
        """The sentences as one paragraph."""
        return wording.joined(self.sentences)

    def as_dict(self) -> dict[str, object]:
        """What `compare --json` prints: standard JSON, accuracies as fractions."""
        return {**self.in_parts(), "rows": [row.as_dict() for row in self.rows]}

    def in_parts(self) -> dict[str, object]:
        """The same with the rows one after another, since of many they are large."""
        chosen = self.selected
        return {
            "sweep": self.sweep,
            "metric": self.rule.metric,
            "goal": self.rule.goal,
            "metric_merge": self.rule.merge,
            "selection": self.rule.name,
            "seeds": list(self.seeds),
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
            "curves": [curve.as_dict() for curve in self.curves],
        }


def compare(
    records: Iterable[RunRecord],
    *,
    sweep: str,
    rule: Rule | None = None,
    seeds: Sequence[int] | None = None,
    reference: str = REFERENCE,
    terms: Terms | None = None,
    untuned: Collection[str] | None = None,
    with_images: bool = False,
) -> Comparison:
    """Group the runs into arms, select by the rule, test against `reference`, say what it means.

    `seeds` are those that a complete setting has (default: all that occur); `untuned` names the
    baseline algorithms to mark (default: found from the points they ran at). `with_images` reads
    the kept predictions and adds bootstrap intervals. Nothing is raised for missing, failed or
    non-finite results: they are counted, and what cannot be said is not said.
    """
    rule, terms, arms = rule or Rule(), terms or Terms(), group(records)
    wanted = tuple(seeds) if seeds is not None else _seeds(arms)
    choices = _choices(arms, rule, wanted)
    merges = {arm.label: choose_merges(arm, rule) for arm in arms if arm.trains}
    trials = [arm for arm in arms if arm.role == "trial"]
    best = choose(trials, rule, wanted)
    zero_shots = [arm for arm in arms if not arm.trains]
    findings = _findings(choices, reference, terms, zero_shots, merges)
    if with_images:
        findings = tuple(_with_images(finding) for finding in findings)
    poor = caveats.untuned(arms) if untuned is None else frozenset(untuned)
    look = _Look(rule, wanted, best, choices, merges, poor, with_images)
    standing = [choice.arm for choice in choices.values() if choice.arm.merge is None]
    curves = [mean_curve(arm, zero_shot_of(arm, zero_shots)) for arm in standing]
    return Comparison(
        sweep=sweep,
        rule=rule,
        seeds=wanted,
        terms=terms,
        rows=tuple(row for arm in arms for row in _rows(arm, look)),
        selected=_selected(best),
        findings=findings,
        sentences=_sentences(best, findings, reference, terms, zero_shots),
        warnings=_warnings(arms, rule, choices.values(), poor),
        curves=tuple(curve for curve in curves if curve is not None),
    )


def metric_order(name: str) -> tuple[int, str, int, str]:
    """Sorts ID before OOD, shifts by name before their mean, top-1 before the rest."""
    kinds = ("top1", "nll", "ece", "brier")
    where, _, kind = name.rpartition("/")
    fits = [place for place, start in enumerate(_GROUPS) if name.startswith(start)]
    rank = kinds.index(kind) if kind in kinds else len(kinds)
    return (fits[-1] if fits else len(_GROUPS), where, rank, kind)


@dataclass(frozen=True)
class _Look:
    """What the rows are marked by."""

    rule: Rule
    seeds: tuple[int, ...]
    best: Choice | None
    choices: Mapping[str, Choice]
    merges: Mapping[str, Mapping[str, str]]
    untuned: frozenset[str]
    with_images: bool


def _rows(arm: Arm, look: _Look) -> Iterable[Row]:
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


def _marks(arm: Arm, look: _Look) -> tuple[str, ...]:
    marks = {
        "untuned": arm.role == "baseline" and arm.algorithm in look.untuned,
        "incomplete": not arm.is_complete(look.seeds),
        "names domains": bool(caveats.named_domains(arm)),
        "oracle": look.rule.oracle,
    }
    return tuple(mark for mark, holds in marks.items() if holds)


def _seeds(arms: Sequence[Arm]) -> tuple[int, ...]:
    return tuple(sorted({run.seed for arm in arms for run in arm.runs if run.seed is not None}))


def _choices(arms: Sequence[Arm], rule: Rule, seeds: Sequence[int]) -> dict[str, Choice]:
    """Each algorithm's choice by the same rule, baselines included; trials' algorithms first."""
    trials_first = sorted(arms, key=lambda arm: arm.role != "trial")
    of_algorithm: dict[str, list[Arm]] = {arm.algorithm: [] for arm in trials_first}
    for arm in arms:
        of_algorithm[arm.algorithm].append(arm)
    chosen = {name: choose(ours, rule, seeds) for name, ours in of_algorithm.items()}
    return {name: choice for name, choice in chosen.items() if choice is not None}


def _findings(
    choices: Mapping[str, Choice],
    reference: str,
    terms: Terms,
    zero_shots: Sequence[Arm],
    merges: Mapping[str, Mapping[str, str]],
) -> tuple[Finding, ...]:
    base = choices.get(reference)
    if base is None:
        return ()
    rivals = [
        choice.arm
        for algorithm, choice in choices.items()
        if algorithm != reference and choice.arm.trains
    ]
    return judge(rivals, base.arm, terms, zero_shots=zero_shots, chosen_merges=merges)


def _sentences(
    best: Choice | None,
    findings: Sequence[Finding],
    reference: str,
    terms: Terms,
    zero_shots: Sequence[Arm],
) -> tuple[str, ...]:
    first = wording.nothing_done() if best is None else ()
    if best is None or findings:
        tests = sum(finding.p_holm is not None for finding in findings)
        said = (s for finding in findings for s in wording.finding(finding, terms, tests))
        return (*first, *said)
    return wording.no_reference(best.arm, reference, gain_over_zero_shot(best.arm, zero_shots))


def _warnings(
    arms: Sequence[Arm], rule: Rule, choices: Iterable[Choice], poor: frozenset[str]
) -> tuple[str, ...]:
    return (
        *caveats.oracle(rule),
        *caveats.mixed_facts(arms),
        *caveats.contexts(arms),
        *(f"{name} is untuned: it ran at fewer points than the trials" for name in sorted(poor)),
        *caveats.incomplete(choices),
        *caveats.no_strength(rule, arms),
        *caveats.unfinished(arms),
        *caveats.holes(arms),
    )


def _selected(best: Choice | None) -> Selected | None:
    if best is None:
        return None
    return Selected(best.arm.label, best.arm.params, best.arm.trial, best.value)


def _image_intervals(arm: Arm) -> Mapping[str, Interval]:
    hits = images.arm_hits(arm.done, arm.merge)
    return {} if hits is None else images.intervals(hits)


def _with_images(finding: Finding) -> Finding:
    """Adds the paired bootstrap over images of the OOD difference, on the common seeds."""
    sides = []
    for arm in (finding.candidate, finding.reference):
        seeds = finding.difference.seeds if arm.trains else (None,)
        runs = [run for run in arm.done if run.seed in seeds]
        sides.append(images.arm_hits(runs, arm.merge))
    ours, theirs = sides
    apart = None if ours is None or theirs is None else images.difference(ours, theirs)
    if apart is None:
        return finding
    return replace(finding, ood_images=images.intervals(apart).get(OOD))
