"""The runs of a sweep as the comparison wants them, read from the ledger and the run folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from carft_core.files import read_json
from sweeps.ledger import Ledger
from sweeps.runs import Runs
from tracking.compare import Comparison, Rule, RunRecord, Terms, compare
from tracking.records import Role, State

NO_SEED = "none"
"""How a run that no seed changes stands in a setting's runs."""
STRENGTH: Mapping[str, int] = {
    "algorithm.kl_weight": 1,
    "optim.weight_decay": 1,
    "optim.label_smoothing": 1,
    "optim.lr": -1,
    "optim.epochs": -1,
    "optim.steps": -1,
}
"""Fields that hold a run close to the zero-shot model, by importance: the sign of the effect."""


def comparison(ledger: Ledger, runs: Runs, *, with_images: bool = False) -> Comparison:
    """The comparison with which a sweep ends, as far as it has come."""
    return compare(
        records(ledger, runs),
        sweep=ledger.name,
        rule=rule(ledger.spec),
        seeds=ledger.spec["seeds"],
        terms=Terms(id_margin=ledger.spec["report"]["id_margin"]),
        with_images=with_images,
    )


def rule(spec: Mapping[str, Any]) -> Rule:
    """How a sweep chooses its setting."""
    metric, selection = spec["metric"], spec["selection"]
    within = selection["within"] if isinstance(selection, Mapping) else None
    return Rule(
        metric=metric["name"],
        goal=metric["goal"],
        merge=metric["merge"],
        within=within,
        oracle=selection == "oracle",
        strength=STRENGTH,
    )


def records(ledger: Ledger, runs: Runs) -> list[RunRecord]:
    """One record for each run of each baseline and trial, in whatever state."""
    spec, shared = ledger.spec, ledger.recall("merges", [])
    found: list[RunRecord] = []
    for baseline in ledger.recall("baselines", []):
        found += _setting(runs, "baseline", baseline, baseline["merges"])
    count = ledger.recall("trial_count")
    for trial in ledger.trials():
        if count is not None and trial.point >= count:
            continue  # the file asks for fewer now
        setting = {"algorithm": trial.algorithm, "params": trial.params, "runs": trial.runs}
        labels = trial.merges if "merges" in spec["parameters"] else shared
        found += _setting(runs, "trial", setting, labels, trial.number, trial.state == "pruned")
    return found


def measured(folder: Path, label: str) -> Mapping[str, Any] | None:
    """What was measured of one model of a run: `metrics`, `facts`, `step`, `values`, `digest`."""
    found: Mapping[str, Any] | None = read_json(folder / "evaluations" / label / "metrics.json")
    return found


def _setting(
    runs: Runs,
    role: Role,
    setting: Mapping[str, Any],
    labels: Sequence[str],
    trial: int | None = None,
    pruned: bool = False,
) -> Iterator[RunRecord]:
    for seed, digest in setting["runs"].items():
        folder = runs.folder(digest)
        own = measured(folder, "unmerged")
        state: State = "pruned" if pruned else state_of(runs, digest, done=own is not None)
        merges = {label: measured(folder, label) for label in labels}
        yield RunRecord(
            algorithm=setting["algorithm"],
            params=_scalars(setting["params"]),
            seed=None if seed == NO_SEED else int(seed),
            digest=digest,
            state=state,
            role=role,
            trial=trial,
            metrics=own["metrics"] if own else {},
            merges={label: found["metrics"] for label, found in merges.items() if found},
            folder=folder,
            facts=own["facts"] if own else {},
        )


def state_of(runs: Runs, digest: str, *, done: bool) -> State:
    """The state of a run as a reader sees it: one whose worker is gone is stopped."""
    known = runs.read(digest)
    if known is None:
        return "done" if done else "missing"
    if known.state == "running":
        return "running" if known.is_live else "stopped"
    return known.state


def _scalars(params: Mapping[str, Any]) -> dict[str, str | int | float | bool | None]:
    """Lists and mappings among the varied values as text."""
    return {
        name: value if isinstance(value, (str, int, float, bool)) or value is None else str(value)
        for name, value in params.items()
    }
