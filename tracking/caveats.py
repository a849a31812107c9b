"""What a reader must know before believing the table: oracle choices, ties, missing runs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from tracking.accuracy import NOUNS, TOP1
from tracking.budgets import OWN, Budget, unequal
from tracking.records import Arm, params_key
from tracking.selection import Choice, Rule
from tracking.terms import Terms
from tracking.wording import few

NOTES = "data_notes"
"""The fact that lists what people should know of the data as found, a sentence each."""
NOTES_SHOWN = 8
NAMED_DOMAINS = "contexts_name"
"""The fact that lists the domains of the family which a run's contexts speak of; empty if none."""
_STATES = {
    "failed": ("failed",),
    "pruned": ("pruned",),
    "stopped": ("stopped",),
    "unfinished": ("running", "missing"),
}


def oracle(rule: Rule) -> tuple[str, ...]:
    """The word, where settings were chosen with a look at the answer."""
    if not rule.oracle:
        return ()
    return (f"oracle: settings were chosen on {rule.metric}; their numbers are optimistic",)


def named_domains(arm: Arm) -> tuple[str, ...]:
    """The held-out domains that this arm's contexts name."""
    words: set[str] = set()
    for run in arm.runs:
        told = run.facts.get(NAMED_DOMAINS) or ()
        words.update(told.split(",") if isinstance(told, str) else map(str, _listed(told)))
    return tuple(sorted(word.strip() for word in words if word.strip()))


def contexts(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Arms that were told in words of a domain they are tested on."""
    by_words: dict[tuple[str, ...], list[str]] = {}
    for arm in arms:
        if words := named_domains(arm):
            by_words.setdefault(words, []).append(arm.label)
    return tuple(
        f"the contexts of {few(labels)} name held-out domains: {', '.join(words)}"
        for words, labels in by_words.items()
    )


def data_notes(arms: Sequence[Arm]) -> tuple[str, ...]:
    """What the runs found in the data that readers of their numbers should know."""
    told = [
        note for arm in arms for run in arm.done for note in _listed(run.facts.get(NOTES) or ())
    ]
    notes = list(dict.fromkeys(map(str, told)))
    more = len(notes) - NOTES_SHOWN
    return (*notes[:NOTES_SHOWN], *((f"and {more} more notes on the data",) if more > 0 else ()))


def unfinished(arms: Sequence[Arm]) -> tuple[str, ...]:
    """How many runs enter no mean, test or curve, and why."""
    sentences = []
    for said, states in _STATES.items():
        counts = {arm.label: sum(arm.states.get(state, 0) for state in states) for arm in arms}
        where = [f"{label}: {count}" for label, count in counts.items() if count]
        total = sum(counts.values())
        if total:
            noun = "run" if total == 1 else "runs"
            sentences.append(f"{total} {said} {noun} ({few(where)}): in no mean, test or curve")
    return tuple(sentences)


def not_measured(arms: Sequence[Arm], terms: Terms) -> tuple[str, ...]:
    """Where no finished run has what methods are ranked by; of top-1 the verdict says it."""
    done = [arm for arm in arms if arm.done]
    if terms.by == TOP1 or not done or any(arm.by_seed(terms.endpoint) for arm in done):
        return ()
    return (
        f"no run has {terms.endpoint}, so nothing can be judged by {NOUNS[terms.by]}; "
        "by top-1 accuracy it can (report.by: top1, --by top1)",
    )


def holes(arms: Sequence[Arm], terms: Terms) -> tuple[str, ...]:
    """Finished runs without a finite headline number, which leaves the arm without a mean."""
    sentences = []
    for metric in (terms.id_metric, terms.ood):
        if all(not arm.by_seed(metric) for arm in arms):
            continue
        for arm in arms:
            lacking = sum(value is None for value in arm.values(metric))
            if lacking:
                sentences.append(
                    f"{arm.label}: {metric} is missing or not finite in {lacking} of "
                    f"{len(arm.done)} runs, so it has no mean"
                )
    return tuple(sentences)


def incomplete(choices: Iterable[Choice]) -> tuple[str, ...]:
    """Settings that stand for their algorithm without all their seeds."""
    sentences = (
        f"no setting of {choice.arm.algorithm} has all its seeds; {choice.arm.label} stands for it"
        for choice in choices
        if not choice.complete
    )
    return tuple(dict.fromkeys(sentences))


def no_strength(rule: Rule, arms: Sequence[Arm]) -> tuple[str, ...]:
    """A margin asks for the strongest regularisation; here nothing that varies says how strong."""
    varied = {name for arm in arms for name in arm.params}
    if rule.within is None or varied & set(rule.strength):
        return ()
    return ("no regularisation field is varied, so within its margin the best value was chosen",)


def ties(choices: Iterable[Choice], rule: Rule) -> tuple[str, ...]:
    """Settings that are equally good by what was looked at, and which of them was taken."""
    found: dict[str, Choice] = {}
    for choice in choices:
        if choice.tied:
            known = found.setdefault(choice.arm.label, choice)
            if len(choice.tied) > len(known.tied):
                found[choice.arm.label] = choice
    by = "the first of them"
    if rule.within is not None:
        by = "the most strongly regularised within the margin, the first of equals"
    return tuple(
        f"{few([label, *(arm.label for arm in choice.tied)])} tie on {rule.metric}; "
        f"{label} was taken, {by}"
        for label, choice in found.items()
    )


def unequal_budgets(
    arms: Sequence[Arm], spent: Iterable[Budget], poor: Collection[str]
) -> tuple[str, ...]:
    """Algorithms that were tried at different numbers of settings, unless called untuned."""
    found = {name for pair in unequal(arms) if pair[0] not in poor for name in pair}
    if not found:
        return ()
    told = (
        f"{budget.algorithm} {_count(budget.settings, 'setting')} "
        f"({_count(budget.runs, 'run')}{_epochs(budget)})"
        for budget in spent
        if budget.algorithm in found
    )
    return (f"unequal tuning budgets, which favour what was tried more: {', '.join(told)}",)


def untuned(arms: Sequence[Arm]) -> frozenset[str]:
    """Baseline algorithms that had fewer points than the trials' space holds for their fields.

    The fields of a baseline are those that it varies itself and all that any algorithm has: a
    grid over `algorithm.kl_weight` alone leaves fine-tuning one point, and that is not too few.
    """
    arms = [arm for arm in arms if not arm.confirms]
    trials = [arm for arm in arms if arm.role == "trial" and arm.trains]
    poor = set()
    for algorithm in {arm.algorithm for arm in arms if arm.role == "baseline" and arm.trains}:
        ours = [arm for arm in arms if arm.algorithm == algorithm]
        fields = {name for arm in ours for name in arm.params}
        asked = {_projected(arm, fields) for arm in trials if arm.algorithm != algorithm}
        if len({_projected(arm, fields) for arm in ours}) < len(asked):
            poor.add(algorithm)
    return frozenset(poor)


def _projected(arm: Arm, fields: set[str]) -> str:
    return params_key(
        {
            name: value
            for name, value in arm.params.items()
            if name in fields or not name.startswith(OWN)
        }
    )


def _listed(told: object) -> Iterable[object]:
    return told if isinstance(told, Iterable) else (told,)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _epochs(budget: Budget) -> str:
    return "" if budget.epochs is None else f", {_count(budget.epochs, 'epoch')}"
