"""Caveats of a comparison: what weakens its numbers, a sentence each."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from statistics import median

from carft_sweep.tracking.comparison.metrics import NOUNS, TOP1
from carft_sweep.tracking.comparison.runs import Arm, ArmKey, RunRecord
from carft_sweep.tracking.comparison.selection import Budget, Selection, meets
from carft_sweep.tracking.comparison.spec import Endpoint, SelectionRule
from carft_sweep.tracking.comparison.statistics import SEEDS_FOR_INTERVAL
from carft_sweep.tracking.errors import counted

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
"""The recorded properties that must be equal in all rows, with their names in sentences."""
_OF_DATA = frozenset({"data", "data_digest", "skipped"})
_SPLIT = "split"
"""The fact that holds the number by which a run's split was drawn."""
_OF_TRAINING = frozenset({"augmentation", "budget", "epochs", "steps"})
_OWN_CODE = "own_code"
"""The fact that holds digests of a user's own code: compared within the algorithm."""
_VERSIONS = "versions"
"""The fact that names installed packages with their versions."""
_SHOWN = 80


ArmRun = tuple[Arm, RunRecord]
"""A finished run with its arm."""


def mixed_facts(arms: Sequence[Arm]) -> Iterator[str]:
    """Yield a sentence for each property (of code, data or machine) in which finished runs differ;
    runs without that property do not count."""
    done = [(arm, run) for arm in arms for run in arm.done]
    trained = [(arm, run) for arm, run in done if run.trains]
    by_seed = _split_by_seed(done)
    for name in sorted(_COMPARED):
        runs = trained if name in _OF_TRAINING else done
        alike = by_seed if name in _OF_DATA and by_seed else [runs]
        if differing := next(filter(None, (_differing(group, name) for group in alike)), ""):
            yield f"mixed {_COMPARED[name]}, these rows are not comparable: {differing}"
    if not _differing(done, _REVISION):
        for algorithm in dict.fromkeys(run.algorithm for _, run in done):
            own = [(arm, run) for arm, run in done if run.algorithm == algorithm]
            if differing := _differing(own, _OWN_CODE):
                yield f"mixed versions of {algorithm}, these rows are not comparable: {differing}"
    versions = (run.facts.get(_VERSIONS) for _, run in done)
    installed = (packages for packages in versions if isinstance(packages, Mapping))
    for package in dict.fromkeys(name for packages in installed for name in packages):
        if differing := _differing(done, _VERSIONS, package):
            yield f"mixed versions of {package}, which may give other numbers: {differing}"


def _split_by_seed(done: Sequence[ArmRun]) -> list[list[ArmRun]]:
    """Group finished runs by seed where each run's split was drawn by the run's seed, so that data
    must differ between seeds; return an empty list elsewhere."""
    seeds = dict.fromkeys(run.seed for _, run in done)
    if len(seeds) < 2 or any(run.facts.get(_SPLIT, run) != run.seed for _, run in done):
        return []
    return [[(arm, run) for arm, run in done if run.seed == seed] for seed in seeds]


def _differing(runs: Sequence[ArmRun], *path: str) -> str:
    """Return each value of a recorded property with its runs, as `10 epochs in fine_tune; 20 epochs
    in car_ft`; empty if all agree."""
    by_value: dict[str, dict[ArmKey, str]] = {}
    for arm, run in runs:
        if (text := _text(run.facts, path)) is not None:
            by_value.setdefault(text, {})[arm.key] = arm.label
    if len(by_value) < 2:
        return ""
    # As short as tells them apart: of digests the beginning, of objects the fields that differ.
    parts = {value: _fields(value) for value in by_value}
    shared = set.intersection(*map(set, parts.values()))
    short = {v: ", ".join(p for p in own if p not in shared) or v for v, own in parts.items()}
    return join_few(
        [
            f"{short[v][:_SHOWN]} in {join_few([*labels.values()])}"
            for v, labels in by_value.items()
        ],
        "; ",
    )


def _text(facts: Mapping[str, object], path: Sequence[str]) -> str | None:
    """Return the value at the nested keys `path` of a run's facts as text; None if missing."""
    value: object = facts
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return None if value is None else str(value)


def _fields(value: str) -> list[str]:
    """Split `Transform(size=32, mean=(0.0, 0.0))` into fields; cut a digest to 12 characters."""
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


def of_selection(rule: SelectionRule, selections: Sequence[Selection]) -> Iterator[str]:
    """Yield sentences on how settings were selected: a constraint, unfinished runs and ties."""
    own = rule.constraint
    if own is not None and rule.bound is None:
        yield f"the constraint was not applied: no finished run of {own.of} has {own.metric}"
    elif own is not None and rule.bound is not None:
        yield f"settings were chosen among those with {own} ({abs(rule.bound):.4g})"
        missing = {s.arm.key: s.arm for s in selections if not meets(s.arm, rule)}
        for arm in missing.values():
            yield f"no setting of {arm.algorithm} has that; {arm.label} was chosen nevertheless"
    yield from dict.fromkeys(
        f"no setting of {s.arm.algorithm} has all its seeds; {s.arm.label} stands for it"
        for s in selections
        if not s.complete
    )
    tied: dict[str, Selection] = {}
    for item in sorted(selections, key=lambda item: -len(item.tied)):
        tied.setdefault(item.arm.label, item)
    by = "the first of them"
    if rule.within is not None:
        by = "the most strongly regularised within the margin, the first of equals"
    for label in dict.fromkeys(item.arm.label for item in selections if item.tied):
        labels = join_few([label, *(arm.label for arm in tied[label].tied)])
        yield f"{labels} tie on {rule.metric}; {label} was taken, {by}"


def oracle(rule: SelectionRule) -> Iterator[str]:
    """Yield a warning where `rule` is an oracle rule: settings were chosen on `rule.metric`, which
    may be of test data, so that their numbers are optimistic."""
    if rule.oracle:
        yield f"oracle: settings were chosen on {rule.metric}; their numbers are optimistic"


Domains = Mapping[ArmKey, tuple[str, ...]]
"""The held-out domains that the contexts of an arm name, by the key of the arm."""


def named_domains(arms: Sequence[Arm]) -> Domains:
    """Return the held-out domains that an arm's context prompts name, by the arm's key."""
    return {
        arm.key: tuple(sorted({name for run in arm.runs for name in run.listed(NAMED_DOMAINS)}))
        for arm in arms
        if arm.runs
    }


def domains_differ(domains: Domains) -> bool:
    """Return whether the arms' prompts name different held-out domains, so that rows are marked.
    Domains that all rows name are in a sentence above the table, without marks."""
    return len({*domains.values()}) > 1


def contexts(arms: Sequence[Arm], domains: Domains) -> Iterator[str]:
    """Yield a sentence for each set of held-out domains that prompts name, with the arms."""
    by_words: dict[tuple[str, ...], list[str]] = {}
    for arm in arms:
        if words := domains.get(arm.key, ()):
            by_words.setdefault(words, []).append(arm.label)
    if by_words and not domains_differ(domains):
        (words,) = by_words
        named = ", ".join(f"'{word}'" for word in words)
        yield (
            f"the prompts of all methods name test domains ({named}): OOD numbers are optimistic; "
            "a sweep over prompts.contexts measures by how much"
        )
        return
    for words, labels in by_words.items():
        yield f"the contexts of {join_few(labels)} name held-out domains: {', '.join(words)}"


FAMILY = "family"
"""The fact that names the family of the data with its version: `icon_shift v1`."""
_DIGITS = 6
"""Digits of a data digest that are shown."""


def datasets(runs: Iterable[RunRecord]) -> tuple[str, ...]:
    """Return the data of finished runs, each as `icon_shift v1 896bf7`: family, version, digest. A
    family whose data differ from seed to seed has several digests. A run that recorded no family
    has the word `data` in place of the family."""
    by_family: dict[str, dict[str, None]] = {}
    for run in runs:
        for part in run.parts.values() or (run,):
            digest = part.facts.get("data")
            if part.state == "done" and isinstance(digest, str):
                family = str(part.facts.get(FAMILY, "data"))
                by_family.setdefault(family, {})[digest] = None
    return tuple(
        f"{family} {join_few([digest[:_DIGITS] for digest in digests])}"
        for family, digests in by_family.items()
    )


def data_notes(arms: Sequence[Arm]) -> Iterator[str]:
    """Yield the notes on the data that finished runs recorded, for readers of their numbers."""
    every = (note for arm in arms for run in arm.done for note in run.listed(NOTES))
    notes = list(dict.fromkeys(every))
    yield from notes[:NOTES_SHOWN]
    if len(notes) > NOTES_SHOWN:
        yield f"and {len(notes) - NOTES_SHOWN} more notes on the data"


def unfinished(arms: Sequence[Arm]) -> Iterator[str]:
    """Yield a sentence for each state (failed, pruned, ...) whose runs are left out of every mean,
    test and curve, with their number by arm."""
    lacking = [arm for arm in arms if len(arm.done) < len(arm.runs)]
    for word, states in _STATES.items():
        counts = [(arm, sum(arm.states.get(state, 0) for state in states)) for arm in lacking]
        where = [f"{arm.label}: {count}" for arm, count in counts if count]
        if total := sum(count for _, count in counts):
            yield f"{counted(total, f'{word} run')} ({join_few(where)}): in no mean, test or curve"


def missing_values(arms: Sequence[Arm], endpoint: Endpoint) -> Iterator[str]:
    """Yield a sentence for each arm that has no mean of ID or OOD, since finished runs lack a
    finite value; if no run has the endpoint's kind of accuracy, a sentence that says so."""
    done = [arm for arm in arms if arm.done]
    # Of top-1 the verdict says that it was not measured.
    if endpoint.by != TOP1 and done and not any(arm.values(endpoint.metric) for arm in done):
        yield (
            f"no run has {endpoint.metric}, so nothing can be judged by {NOUNS[endpoint.by]}; "
            "by top-1 accuracy it can (report.by: top1, --by top1)"
        )
    for metric in (endpoint.id_metric, endpoint.ood):
        without = [(arm, len(arm.values(metric))) for arm in done if arm.mean(metric) is None]
        if len(without) == len(done) and not any(measured for _, measured in without):
            continue
        for arm, measured in without:
            runs = len(arm.done)
            yield (
                f"{arm.label}: {metric} is missing or not finite in {runs - measured} of {runs} "
                "runs, so it has no mean"
            )


MEDIAN_DEVIATIONS, POINTS = 10, 0.05
"""A seed is named that lies off the median by more than ten median deviations and 0.05: of five
normal values one lies ten deviations off in 7 %, with 0.05 besides hardly ever."""


def outlying_seeds(arms: Iterable[Arm], endpoint: Endpoint) -> Iterator[str]:
    """Yield a sentence for each seed far off its arm's other seeds, as of a diverged run."""
    for arm in arms:
        for metric in dict.fromkeys((endpoint.ood, endpoint.id_metric)):
            values = arm.values(metric)
            if len(values) < SEEDS_FOR_INTERVAL:
                continue
            middle = median(values.values())
            least = max(
                POINTS, MEDIAN_DEVIATIONS * median(abs(value - middle) for value in values.values())
            )
            for seed, value in values.items():
                if abs(value - middle) > least:
                    yield (
                        f"seed {seed} of {arm.label} lies {100 * (value - middle):+.1f} pp off the "
                        f"median of its seeds in {metric}: a run that diverged hides differences"
                    )


def unequal_budgets(fewer: Mapping[str, set[str]], spent: Iterable[Budget]) -> Iterator[str]:
    """Yield a sentence with the numbers of settings and runs of the algorithms that were tried at
    fewer settings (the keys of `fewer`) and of those that were tried at more (its values)."""
    concerned = {*fewer}.union(*fewer.values())
    counts = [
        f"{budget.algorithm} {counted(budget.settings, 'setting')} ({counted(budget.runs, 'run')})"
        for budget in spent
        if budget.algorithm in concerned
    ]
    if counts:
        yield f"unequal tuning budgets, which favour what was tried more: {', '.join(counts)}"


def join_few(parts: Sequence[str], separator: str = ", ") -> str:
    """Join at most three texts; of more, the number of the others follows."""
    rest = len(parts) - 3
    shown = separator.join(parts[:3])
    return f"{shown}{separator}{rest} more" if rest > 0 else shown
