"""What to know before believing a comparison."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from tracking.comparison.metrics import NOUNS, TOP1
from tracking.comparison.runs import Arm, RunRecord, params_key
from tracking.comparison.selection import OWN, Budget, Choice, unequal
from tracking.comparison.spec import Rule, Terms
from tracking.comparison.verdict_text import few

_REVISION = "revision"
"""The fact that holds the revisions of the code that trains and measures."""
_COMPARED = {
    "data": "data",
    "data_digest": "data",
    "model": "backbones",
    "model_digest": "backbones",
    "transform": "image transforms",
    "augmentation": "training transforms",
    "budget": "training budgets",
    "epochs": "training budgets (epochs)",
    "steps": "training budgets (steps)",
    "skipped": "images skipped as unreadable",
    "retention": "tasks of retention",
    "precision": "precisions",
    "device": "kinds of device",
    _REVISION: "versions of the code",
}
"""The facts that must be equal, in words."""
_OF_DATA = frozenset({"data", "data_digest", "skipped"})
_SPLIT = "split"
"""The fact that holds the number by which a run's split was drawn."""
_OF_TRAINING = frozenset({"augmentation", "budget", "epochs", "steps"})
_OWN_CODE = "own_code"
"""The fact that holds digests of a user's own code: compared within the algorithm."""
_VERSIONS = "versions"
"""The fact that names installed packages with their versions."""
_SHOWN = 80


def mixed_facts(arms: Sequence[Arm]) -> tuple[str, ...]:
    """One sentence per fact in which finished runs differ; a run that lacks it says nothing."""
    done = [(arm.label, run) for arm in arms for run in arm.done]
    trained = [(label, run) for label, run in done if run.trains]
    by_seed = _split_by_seed(done)
    found = []
    for name in sorted(_COMPARED):
        runs = trained if name in _OF_TRAINING else done
        alike = by_seed if name in _OF_DATA and by_seed else [runs]
        told = next(filter(None, (_differing(_told(some, name)) for some in alike)), "")
        if told:
            found.append(f"mixed {_COMPARED[name]}, these rows are not comparable: {told}")
    return (*found, *_mixed_code(done), *_mixed_versions(done))


def _split_by_seed(done: Sequence[tuple[str, RunRecord]]) -> list[list[tuple[str, RunRecord]]]:
    """The runs of each seed, where every split is that of its run's seed: then data differ from
    seed to seed, as they should. Else nothing."""
    seeds = dict.fromkeys(run.seed for _, run in done)
    if len(seeds) < 2 or any(run.facts.get(_SPLIT, run) != run.seed for _, run in done):
        return []
    return [[(label, run) for label, run in done if run.seed == seed] for seed in seeds]


def _mixed_code(done: Sequence[tuple[str, RunRecord]]) -> Iterator[str]:
    """Versions of an algorithm's own code, where the code that all share is the same."""
    if _differing(_told(done, _REVISION)):
        return
    for algorithm in dict.fromkeys(run.algorithm for _, run in done):
        ours = [(label, run) for label, run in done if run.algorithm == algorithm]
        told = _differing(_told(ours, _OWN_CODE))
        if told:
            yield f"mixed versions of {algorithm}, these rows are not comparable: {told}"


def _mixed_versions(done: Sequence[tuple[str, RunRecord]]) -> Iterator[str]:
    known = [(label, run.facts.get(_VERSIONS)) for label, run in done]
    installed = [(label, told) for label, told in known if isinstance(told, Mapping)]
    for package in dict.fromkeys(name for _, told in installed for name in told):
        told = _differing((label, versions.get(package)) for label, versions in installed)
        if told:
            yield f"mixed versions of {package}, which may give other numbers: {told}"


def _told(runs: Iterable[tuple[str, RunRecord]], name: str) -> Iterator[tuple[str, object]]:
    return ((label, run.facts.get(name)) for label, run in runs)


def _differing(told: Iterable[tuple[str, object]]) -> str:
    """`10 epochs in fine_tune; 20 epochs in car_ft` of labels and values; empty if all agree."""
    found: dict[str, dict[str, None]] = {}  # the labels are a set that keeps its order
    for label, value in told:
        if value is not None:
            found.setdefault(str(value), {})[label] = None
    if len(found) < 2:
        return ""
    shown = _shortest([*found])
    return few([f"{s} in {few([*found[value]])}" for value, s in shown.items()], "; ")


def _shortest(values: Sequence[str]) -> dict[str, str]:
    """As short as tells them apart: of digests the beginning, of objects what differs."""
    parts = {value: _parts(value) for value in values}
    shared = set.intersection(*({*some} for some in parts.values()))
    shown = {v: ", ".join(p for p in some if p not in shared) or v for v, some in parts.items()}
    return {value: text[:_SHOWN] for value, text in shown.items()}


def _parts(value: str) -> list[str]:
    """The fields of `Transform(size=32, mean=(0.0, 0.0, 0.0))`, a digest's beginning, or itself."""
    if re.fullmatch(r"[0-9a-f]{32,}", value):
        return [value[:12]]
    fields = re.fullmatch(r"\w+\((.*)\)", value, re.DOTALL)
    return [value] if fields is None else re.split(r", (?=\w+=)", fields[1])


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
