"""Which model of a sweep is meant: the selected one, or the one that somebody names."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from carft_core.errors import RequestError
from sweeps.records import OWN
from tracking.compare import Arm, Comparison, RunRecord
from tracking.selection import VAL

SHOWN = 10
"""Names in a message."""
DIGITS = 12
"""Of a digest, as tables show it."""


@dataclass(frozen=True)
class Chosen:
    """One model of one run."""

    arm: Arm
    """Its setting."""
    run: RunRecord
    label: str
    """`unmerged`, or a merged model of the run."""
    why: str = ""
    """Why this seed, where nobody named it."""

    @property
    def setting(self) -> str:
        """`car_ft kl_weight=1`, `car_ft kl_weight=1 + wise_ft@0.5`."""
        return self.arm.label if self.label == OWN else self.arm.merged(self.label).label

    @property
    def metrics(self) -> dict[str, float]:
        """Of this model."""
        return dict(self.run.values(_merge(self.label)))


def choose_model(
    found: Comparison,
    *,
    run: str | None = None,
    setting: str | None = None,
    seed: int | None = None,
    merge: str | None = None,
) -> Chosen:
    """The model of the run whose digest begins with `run`; else of a setting and a seed.

    Left out, the setting is the selected one with its merge, and the seed the one whose
    `id/val/top1` is the median of the done runs, of two in the middle the lower: the best seed
    would promise what another training does not keep. Of a sweep over tasks `run` must be given.
    Raises RequestError for what is not there, with the nearest name, and for a run that is not
    done.
    """
    if found.tasks and run is None:
        raise RequestError(_one_of_each_task(found))
    arm, merged = _named_run(found, run) if run else _named_setting(found, setting)
    label = merge or merged or OWN
    if run is not None:
        if seed is not None:
            raise RequestError("--run names one run already; leave --seed out")
        chosen, why = next(one for one in arm.runs if one.digest.startswith(run)), ""
    elif seed is not None:
        chosen, why = _of_seed(arm, seed), ""
    else:
        chosen, why = _median(found, arm, label)
    if chosen.state != "done":
        raise RequestError(
            f"run {chosen.digest[:DIGITS]} of {arm.label} is {chosen.state}; only one that is "
            "done has a model"
        )
    known = [OWN, *chosen.merges]
    if label not in known:
        raise RequestError(
            f"run {chosen.digest[:DIGITS]} of {arm.label} has no model {label!r}"
            f"{_near(label, known)} It has: {', '.join(known)}."
        )
    return Chosen(arm, chosen, label, why)


def part_of(found: Comparison, chosen: Chosen) -> Comparison:
    """The comparison that a model belongs to: of several tasks that of its own."""
    parts = found.tasks.values()
    return next((part for part in parts if chosen.run in part.runs()), found)


def _one_of_each_task(found: Comparison) -> str:
    each = [
        f"{task}: {model.setting} (--run {model.run.digest[:DIGITS]})"
        for task, part in found.tasks.items()
        if part.selected is not None
        for model in [choose_model(part)]
    ]
    known = f" Chosen over all seeds: {'; '.join(each)}." if each else ""
    return (
        f"{found.sweep} chooses a setting for each task, so it has no model as a whole; name a run "
        f"with --run (carft-sweep export {found.sweep} --run DIGEST).{known}"
    )


def _named_run(found: Comparison, digest: str) -> tuple[Arm, None]:
    arms = {run.digest: arm for arm in _arms(found) for run in arm.runs}
    hits = sorted(known for known in arms if known.startswith(digest))
    if len(hits) == 1:
        return arms[hits[0]], None
    if hits:
        raise RequestError(
            f"{len(hits)} runs of {found.sweep} begin with {digest!r}: {_some(hits)}; give more "
            "digits"
        )
    raise RequestError(
        f"no run of {found.sweep} begins with {digest!r}"
        f"{_near(digest, {known[: len(digest)] for known in arms})} "
        f"`carft-sweep show {found.sweep}` lists them."
    )


def _named_setting(found: Comparison, setting: str | None) -> tuple[Arm, str | None]:
    """The unmerged arm, and the merge that its label names."""
    own = {_runs(arm): arm for arm in _arms(found)}
    if setting is None:
        seen = next((row.arm for row in found.rows if row.selected), None)
        if seen is None:
            raise RequestError(
                f"{found.sweep} has selected nothing yet, for no trial is complete; name a model "
                "with --setting or --run"
            )
        return own[_runs(seen)], seen.merge
    by_label = {row.arm.label: row.arm for row in found.rows}
    if setting not in by_label:
        plain = [arm.label for arm in own.values()]
        raise RequestError(
            f"{found.sweep} has no setting {setting!r}{_near(setting, by_label)} "
            f"Known: {_some(plain)}."
        )
    return own[_runs(by_label[setting])], by_label[setting].merge


def _of_seed(arm: Arm, seed: int) -> RunRecord:
    for run in arm.runs:
        if run.seed == seed:
            return run
    if not arm.has_seeds:
        raise RequestError(f"no seed changes {arm.label}; leave --seed out")
    seeds = ", ".join(str(run.seed) for run in arm.runs)
    raise RequestError(f"{arm.label} has no run with seed {seed}. Its seeds: {seeds}.")


def _median(found: Comparison, arm: Arm, label: str) -> tuple[RunRecord, str]:
    if not arm.done:
        raise RequestError(f"no run of {arm.label} in {found.sweep} is done")
    merge = _merge(label)

    def rank(run: RunRecord) -> tuple[float, int]:
        value = run.value(VAL, merge)
        return (-math.inf if value is None else value, run.seed or 0)

    runs = sorted(arm.done, key=rank)
    why = f"the median of {len(runs)} by {VAL}" if len(runs) > 1 else ""
    return runs[(len(runs) - 1) // 2], why


def _arms(found: Comparison) -> list[Arm]:
    """The unmerged ones, of every task."""
    if found.tasks:
        return [arm for part in found.tasks.values() for arm in _arms(part)]
    return [row.arm for row in found.rows if row.arm.merge is None]


def _runs(arm: Arm) -> tuple[str, ...]:
    """By what an arm is told, unmerged or not."""
    return tuple(run.digest for run in arm.runs)


def _merge(label: str) -> str | None:
    return None if label == OWN else label


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name[:60] for name in names[:SHOWN]) + more
