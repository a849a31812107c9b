"""The run folders of a sweep as records, their comparison, and the Pareto front of its trials."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from carft_sweep.carft_core.files import read_json
from carft_sweep.carft_core.runs.result import Claim
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import Ledger, Setting, damage_named, find_ledger
from carft_sweep.sweeps.ledger.runs import NO_SEED, RunState, RunStore, measured, undamaged
from carft_sweep.sweeps.ledger.status import goals, source_of
from carft_sweep.sweeps.spec.metrics import natural_goal
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.input_file import read_published
from carft_sweep.tracking.comparison.metrics import TOP1
from carft_sweep.tracking.comparison.pooling import SweepRuns, compare_sweeps
from carft_sweep.tracking.comparison.runs import (
    MERGE_MARKS,
    UNMERGED,
    RunRecord,
    State,
    fields,
    scalar,
)
from carft_sweep.tracking.comparison.spec import ComparisonSpec, Constraint, Endpoint, SelectionRule
from carft_sweep.tracking.errors import counted

ASKED = "asked"
"""The fact that holds the fields of the config which decide what was measured of which weights."""


def front(values: Mapping[int, Sequence[float]], maximized: Sequence[bool]) -> set[int]:
    """Return the trials (by number) on the Pareto front, including equal trials. A trial beats
    another when it is as good by every goal and better by one. `maximized` has True for each goal
    of which more is better."""
    import numpy as np

    if not values:
        return set()
    points = np.array([*values.values()]) * np.where(maximized, 1.0, -1.0)
    beaten = (((points >= own).all(axis=1) & (points > own).any(axis=1)).any() for own in points)
    return {number for number, is_beaten in zip(values, beaten, strict=True) if not is_beaten}


STRENGTH: Mapping[str, Literal[1, -1]] = {
    "algorithm.kl_weight": 1,
    "optim.weight_decay": 1,
    "optim.label_smoothing": 1,
    "optim.lr": -1,
    "optim.epochs": -1,
    "optim.steps": -1,
}
"""Fields that hold a run close to the zero-shot model, most important first: 1 if larger values do,
else -1."""


def comparison(sweep: Ledger, runs: RunStore) -> Comparison:
    """Return the comparison of the runs of a sweep, in whatever state these are."""
    return compare_sweeps([load_part(sweep, runs)])


def comparison_spec(spec: Mapping[str, Any]) -> ComparisonSpec:
    """Return how a sweep selects (by its first goal) and tests, from its plain data."""
    metric, selection, report = goals(spec)[0], spec["selection"], spec["report"]
    by = report.get("by_family") or report.get("by") or TOP1
    return ComparisonSpec(
        rule=SelectionRule(
            metric=metric["name"],
            goal=metric["goal"],
            merge=metric["merge"],
            within=selection["within"] if isinstance(selection, Mapping) else None,
            oracle=selection == "oracle",
            strength=STRENGTH,
            constraint=None
            if (own := spec.get("constraint")) is None
            else Constraint(
                metric=own["name"],
                goal=natural_goal(own["name"]),
                of=own["of"],
                margin=own["margin"],
            ),
        ),
        endpoint=Endpoint(
            id_margin=report["id_margin"],
            ood_margin=report["ood_margin"],
            **({"by_task": by} if isinstance(by, Mapping) else {"by": by}),
        ),
        seeds=spec["seeds"],
        confirm_seeds=spec.get("confirm_seeds") or (),
        tasks=spec.get("tasks"),
    )


def records(ledger: Ledger, runs: RunStore) -> list[RunRecord]:
    """Return one record for each run of each setting, in whatever state."""
    return [*_records(runs, ledger.settings())]


def _records(runs: RunStore, settings: Iterable[Setting]) -> Iterator[RunRecord]:
    for position, item in enumerate(settings):
        yield from _records_of_setting(runs, item, position)


def _records_of_setting(runs: RunStore, item: Setting, position: int) -> Iterator[RunRecord]:
    trial = item.trial
    params = {name: scalar(value) for name, value in item.params.items()}
    for seed, digest in item.runs.items():
        folder = runs.results(digest)
        own = undamaged(measured, folder, UNMERGED)
        if trial is not None and trial.state == "pruned":
            state: State = "pruned"
        elif own and (folder.name != digest or (trial is not None and trial.state == "complete")):
            state = "done"  # also while somebody works on it again
        else:
            state = state_of(undamaged(runs.read, digest), done=own is not None)
        merges = {label: undamaged(measured, folder, label) for label in item.merges}
        yield RunRecord(
            algorithm=item.algorithm,
            params=params,
            seed=None if seed == NO_SEED else int(seed),
            digest=digest,
            state=state,
            role=item.role,
            trial=None if trial is None else trial.number,
            position=position,
            metrics=own["metrics"] if own else {},
            merges={label: found["metrics"] for label, found in merges.items() if found},
            folder=folder,
            facts=_facts(own, merges) if own else {},
            untrained=item.untrained,
        )


def _facts(
    own: Mapping[str, Any], merges: Mapping[str, Mapping[str, Any] | None]
) -> Mapping[str, Any]:
    """Return the facts of a run's evaluation `own`, with notes of its `merges`."""
    facts: Mapping[str, Any] = own["facts"]
    marks = {label: data["facts"].get("merge_mark") for label, data in merges.items() if data}
    texts = [f"{label}: {mark}" for label, mark in marks.items() if mark]
    return {**facts, MERGE_MARKS: texts} if texts else facts


def _measured_otherwise(
    sweep: Ledger, settings: Sequence[Setting], runs: Sequence[RunRecord]
) -> Iterator[str]:
    """Yield a sentence for each field of the sweep that its runs were measured without: a folder
    keeps one evaluation of each model, by the sweep that measured last."""
    results = {run: item.result for item in settings for run in item.runs.values()}
    trial = sweep.spec.get("trial", {})
    of_sweep = {
        "data.shifts": trial.get("data", {}).get("shifts"),
        "eval.retention": trial.get("eval", {}).get("retention", ()),
    }
    counts = Counter[tuple[str, str, str]]()
    for run in runs:
        wishes = of_sweep | ({"keep.result": results[run.digest]} if run.trains else {})
        measured_with = run.facts.get(ASKED)
        if isinstance(measured_with, Mapping):
            texts = ((name, _text(wishes[name]), _text(measured_with[name])) for name in wishes)
            counts.update(text for text in texts if text[1] != text[2])
    for (field, wish, value), count in counts.items():
        yield (
            f"{sweep.name} asks for {field}: {wish}, and another sweep has measured "
            f"{counted(count, 'run')} of it anew with {value}; run {sweep.name} again, and they "
            "are measured as it asks"
        )


def _text(value: str | Sequence[str] | None) -> str:
    """Return the value of a field in a sentence; None is its default, all that there is."""
    if value is None or isinstance(value, str):
        return value or "all"
    return ", ".join(sorted(value)) or "none"


def state_of(state: RunState | None, *, done: bool) -> State:
    """Return a run's state for readers: running without a live claimant is stopped. Without a
    `state` it is done or missing, by `done`: whether the run is measured."""
    if state is None:
        return "done" if done else "missing"
    if state.state == "running":
        return "running" if state.is_live else "stopped"
    return state.state


CONFIG = "config.json"


def load_parts(home: Home, names: Sequence[str]) -> list[SweepRuns]:
    """Return the runs of sweeps of a home, and of published ones, which are folders: names with a
    slash. For several sweeps every run's config is read, for a single sweep the configs of
    zero-shot models. Raises RequestError for an unknown name, with the nearest one."""
    runs = RunStore(home.runs)
    return [
        read_published(Path(name).expanduser())
        if "/" in name
        else load_part(find_ledger(home, name), runs, with_fields=len(names) > 1)
        for name in dict.fromkeys(names)
    ]


def load_part(sweep: Ledger, runs: RunStore, *, with_fields: bool = False) -> SweepRuns:
    """Return a sweep's runs as one input of a comparison, with the config fields of its zero-shot
    runs, or of every run (`with_fields`)."""
    with damage_named(sweep.file):
        spec = comparison_spec(sweep.spec)
    settings = [*sweep.settings()]
    loaded = [*_records(runs, settings)]
    wanted = (record for record in loaded if with_fields or record.is_zero_shot)
    digests = dict.fromkeys(record.digest for record in wanted)
    files = {digest: runs.folder(digest) / CONFIG for digest in digests}
    claimed = {digest: undamaged(read_json, file, Claim) for digest, file in files.items()}
    return SweepRuns(
        sweep=sweep.name,
        records=loaded,
        spec=spec,
        fields={digest: fields(claim) for digest, claim in claimed.items() if claim is not None},
        warnings=(*_taken_over(sweep), *_measured_otherwise(sweep, settings, loaded)),
    )


def _taken_over(sweep: Ledger) -> Iterator[str]:
    """Yield a sentence on trials whose points are the best of another sweep."""
    trials = sweep.trials()
    numbers = [trial.number for trial in trials if source_of(sweep.spec, trial)]
    if numbers:
        yield (
            f"{counted(len(numbers), 'trial')} ({min(numbers)} to {max(numbers)}) tried first what "
            f"was best in {sweep.spec['try_first_from']}: its choice is in them"
        )
