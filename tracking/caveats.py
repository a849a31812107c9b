"""What a reader must know before believing the table: mixed facts, oracle choices, missing runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from tracking.curves import ID, OOD
from tracking.records import Arm, RunRecord, params_key
from tracking.selection import Choice, Rule

NAMED_DOMAINS = "contexts_name"
"""The fact that lists the domains of the family which a run's contexts speak of; empty if none."""
_OWN = ("algorithm.", "prompts.contexts")
"""Fields that mean nothing to an algorithm which does not vary them."""
_COMPARED = {
    "data": "data",
    "data_digest": "data",
    "model": "backbones",
    "model_digest": "backbones",
    "transform": "image transforms",
    "budget": "training budgets",
    "epochs": "training budgets (epochs)",
    "steps": "training budgets (steps)",
    "precision": "precisions",
    "device": "kinds of device",
}
"""The facts that must be equal, in words."""
_OF_TRAINING = frozenset({"budget", "epochs", "steps"})
_STATES = {
    "failed": ("failed",),
    "pruned": ("pruned",),
    "stopped": ("stopped",),
    "unfinished": ("running", "missing"),
}


def mixed_facts(arms: Sequence[Arm]) -> tuple[str, ...]:
    """One sentence per fact in which finished runs differ."""
    found: dict[str, dict[str, dict[str, None]]] = {}  # the labels are a set that keeps its order
    for arm in arms:
        for run in arm.done:
            for name, value in _comparable(run):
                found.setdefault(name, {}).setdefault(value, {})[arm.label] = None
    return tuple(_mixed(name, found[name]) for name in sorted(found) if len(found[name]) > 1)


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
        f"the contexts of {_few(labels)} name held-out domains: {', '.join(words)}"
        for words, labels in by_words.items()
    )


def unfinished(arms: Sequence[Arm]) -> tuple[str, ...]:
    """How many runs enter no mean, test or curve, and why."""
    sentences = []
    for said, states in _STATES.items():
        counts = {arm.label: sum(arm.states.get(state, 0) for state in states) for arm in arms}
        where = [f"{label}: {count}" for label, count in counts.items() if count]
        total = sum(counts.values())
        if total:
            noun = "run" if total == 1 else "runs"
            sentences.append(f"{total} {said} {noun} ({_few(where)}): in no mean, test or curve")
    return tuple(sentences)


def holes(arms: Sequence[Arm]) -> tuple[str, ...]:
    """Finished runs without a finite headline number, which leaves the arm without a mean."""
    sentences = []
    for metric in (ID, OOD):
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
    return tuple(
        f"no setting of {choice.arm.algorithm} has all its seeds; {choice.arm.label} stands for it"
        for choice in choices
        if not choice.complete
    )


def no_strength(rule: Rule, arms: Sequence[Arm]) -> tuple[str, ...]:
    """A margin asks for the strongest regularisation; here nothing that varies says how strong."""
    varied = {name for arm in arms for name in arm.params}
    if rule.within is None or varied & set(rule.strength):
        return ()
    return ("no regularisation field is varied, so within its margin the best value was chosen",)


def untuned(arms: Sequence[Arm]) -> frozenset[str]:
    """Baseline algorithms that had fewer points than the trials' space holds for their fields.

    The fields of a baseline are those that it varies itself and all that any algorithm has: a
    grid over `algorithm.kl_weight` alone leaves fine-tuning one point, and that is not too few.
    """
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
            if name in fields or not name.startswith(_OWN)
        }
    )


def _comparable(run: RunRecord) -> Iterable[tuple[str, str]]:
    for name in _COMPARED:
        value = run.facts.get(name)
        if value is not None and not (run.seed is None and name in _OF_TRAINING):
            yield name, str(value)


def _listed(told: object) -> Iterable[object]:
    return told if isinstance(told, Iterable) else (told,)


def _mixed(name: str, labels_by_value: Mapping[str, Iterable[str]]) -> str:
    parts = [f"{value[:12]} in {_few([*labels])}" for value, labels in labels_by_value.items()]
    return f"mixed {_COMPARED[name]}, these rows are not comparable: {_few(parts, '; ')}"


def _few(parts: Sequence[str], separator: str = ", ") -> str:
    rest = len(parts) - 3
    shown = separator.join(parts[:3])
    return f"{shown}{separator}{rest} more" if rest > 0 else shown
