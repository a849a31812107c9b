"""The selected model of a sweep, as a folder or in MLflow."""

from __future__ import annotations

import difflib
import math
import shlex
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carft_core.errors import RequestError
from carft_core.files import read_json, user_cache, write_json
from sweeps.home import Home
from sweeps.ledger.generations import Invocation
from sweeps.ledger.runs import Runs
from sweeps.ledger.trials import Ledger, find_ledger
from sweeps.results.records import comparison, measured
from tracking.comparison.compare import Comparison
from tracking.comparison.runs import UNMERGED, Arm, RunRecord, merge_name
from tracking.comparison.spec import REFERENCE, VAL
from tracking.location import home_id, resolve_location
from tracking.store.base import DatasetInput, RunKey

if TYPE_CHECKING:
    from carft_core.config import TrialConfig
    from carft_core.export import MeasuredRow
    from sweeps.spec.spec import SweepSpec
    from tracking.store.mlflow_models import KeptModel


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
        return self.arm.label if self.label == UNMERGED else self.arm.merged(self.label).label

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
    label = merge or merged or UNMERGED
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
    known = [UNMERGED, *chosen.merges]
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
    return None if label == UNMERGED else label


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]!r}?" if near else "."


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(name[:60] for name in names[:SHOWN]) + more


@dataclass(frozen=True)
class Exporter:
    """What makes exports of one sweep's models."""

    home: Home
    spec: SweepSpec
    sweep: Ledger
    found: Comparison

    def config(self, chosen: Chosen) -> TrialConfig:
        """The trial config of the run. Raises RequestError when the sweep file lost it."""
        return self._of_setting(chosen).for_seed(chosen.run.seed or 0)

    def _of_setting(self, chosen: Chosen) -> TrialConfig:
        from carft_core.config import trial_config
        from carft_core.run import RunFolder

        digest = chosen.run.digest
        for trial in self.sweep.trials():
            if digest in trial.runs.values():
                return self.spec.config_for(trial.params)
        for known in self.sweep.beside_trials():
            if digest not in known.runs.values():
                continue
            if "of" in known.params:  # a soup that `after` asked for
                folder = RunFolder(self._folder(chosen))
                return trial_config(folder.claimed()["config"])
            for point in self.spec.baseline_configs():
                if point.is_at(known.algorithm, known.params):
                    return point.config
            config = self.spec.config_for(known.params)  # a trial's that is confirmed
            if config.algorithm.name == known.algorithm:
                return config
        raise RequestError(
            f"{self.spec.source_path} has no {chosen.arm.label} any more; put it back, or run the "
            "sweep anew"
        )

    def has_weights(self, chosen: Chosen) -> bool:
        """Whether what the run trained is on the disk."""
        from carft_core.run import RunFolder

        config = self.config(chosen)
        file = RunFolder(self._folder(chosen)).weights(config.keep.result)
        return file.exists() or not config.algorithm.trains

    def write(self, chosen: Chosen, out: Path, *, force: bool = False) -> None:
        """Export the model to the folder `out`. Raises RequestError as `carft_core.export`."""
        from carft_core.export import export

        if not self.has_weights(chosen):
            kept = self.config(chosen).keep.weights
            why = "gone from its folder" if kept else "not kept (trial.keep.weights: false)"
            option = "" if kept else " --set trial.keep.weights=true"
            file = shlex.quote(str(self.spec.source_path))
            raise RequestError(
                f"the weights of run {chosen.run.digest[:DIGITS]} are {why}; train the sweep again "
                f"with them: carft-sweep run {file}{option} --fresh"
            )
        export(
            self._folder(chosen),
            self.config(chosen),
            out,
            label=chosen.label,
            rows=list(_rows(part_of(self.found, chosen), chosen)),
            force=force,
        )

    def keep(self, chosen: Chosen, folder: Path, *, register: str | None = None) -> KeptModel:
        """Keep its export in `folder` in MLflow; raises as `keep_model` does."""
        from sweeps.spec.user_code import place_of
        from tracking.store.mlflow_models import ModelStart, keep_model

        told, config = _measured(self.home, chosen), self.config(chosen).data
        merged = "" if chosen.label == UNMERGED else f"{merge_name(chosen.label)}/"
        seed = {} if chosen.run.seed is None else {"seed": chosen.run.seed}
        start = ModelStart(
            key=RunKey(self.sweep.name, chosen.run.digest),
            name=self.sweep.name,
            label=chosen.label,
            evaluation=told["digest"],
            params={"algorithm": chosen.run.algorithm, **chosen.run.params, **seed},
            metrics={
                f"{merged}{name}": value
                for name, value in told["metrics"].items()
                if name.endswith("/top1")
            },
            step=told["step"] if merged else None,
            dataset=DatasetInput(config.family, told["facts"]["data"], place_of(config), "test"),
            description=" ".join(part for part in (_named(chosen), self.found.verdict) if part),
        )
        return keep_model(
            resolve_location(self.home.path),
            home_id(self.home.path),
            start,
            folder,
            register=register,
        )

    def _folder(self, chosen: Chosen) -> Path:
        return Runs(self.home.runs).folder(chosen.run.digest)


@contextmanager
def exporter(home: Home, name: str) -> Iterator[Exporter]:
    """Of a sweep by its name, as it was run and where it was run: paths in its file hold there.

    Raises RequestError for a sweep that is not there, or whose file was not kept.
    """
    invocation = Invocation.read(home, name)
    sweep = find_ledger(home, name)
    with invocation.working_directory():
        spec, _ = invocation.load(home.sweep(name))
        yield Exporter(home, spec, sweep, comparison(sweep, Runs(home.runs)))


def selected_in_cache(home: Home, name: str) -> Path:
    """An export of the selected model in the user's cache, made unless it is there."""
    from carft_core.export import read_facts

    chosen = choose_model(comparison(find_ledger(home, name), Runs(home.runs)))
    evaluation: str = _measured(home, chosen)["digest"]
    folder = user_cache() / "exports" / evaluation[:16]
    if (read_facts(folder) or {}).get("evaluation") != evaluation:
        with exporter(home, name) as models:
            models.write(chosen, folder, force=True)
    return folder


def log_selected(home: Home, spec: SweepSpec, found: Comparison) -> str | None:
    """Keep the selected model of a sweep that has ended in MLflow, and say so; None: nothing new.

    To be called once the tracker was flushed: the model belongs to runs that MLflow must have.
    Without kept weights there is nothing to keep. Never raises: what went wrong is said.
    """
    try:
        return _log_selected(home, spec, found)
    except Exception as error:  # MLflow's artifact stores raise anything, and the sweep is done
        text = " ".join(str(error).split())
        return (
            f"the selected model is not in MLflow: {text or type(error).__name__}. Once that is "
            f"mended: carft-sweep export {found.sweep} --mlflow"
        )


def _log_selected(home: Home, spec: SweepSpec, found: Comparison) -> str | None:
    if found.selected is None:
        return None
    chosen = choose_model(found)
    models = Exporter(home, spec, find_ledger(home, found.sweep), found)
    if not models.has_weights(chosen):
        return None
    evaluation = _measured(home, chosen)["digest"]
    # One for each place, as of what else it was told.
    note = home.sweep(found.sweep) / "sent" / f"{resolve_location(home.path).key}.model.json"
    if (read_json(note) or {}).get("evaluation") == evaluation:
        return None
    with tempfile.TemporaryDirectory(prefix="carft-export-") as scratch:
        folder = Path(scratch) / found.sweep
        models.write(chosen, folder)
        kept = models.keep(chosen, folder)
    write_json(note, {"evaluation": evaluation, "model_id": kept.model_id})
    return f"the selected model is in MLflow as {kept.uri}: {_named(chosen)}"


def _named(chosen: Chosen) -> str:
    """`car_ft kl_weight=1, seed 2 (the median of 5 by id/val/top1).`"""
    seed = "" if chosen.run.seed is None else f", seed {chosen.run.seed}"
    why = f" ({chosen.why})" if chosen.why else ""
    return f"{chosen.setting}{seed}{why}."


def _measured(home: Home, chosen: Chosen) -> Mapping[str, Any]:
    told = measured(Runs(home.runs).folder(chosen.run.digest), chosen.label)
    if told is None:
        raise RequestError(
            f"run {chosen.run.digest[:DIGITS]} has not measured {chosen.label} to its end"
        )
    return told


def _rows(found: Comparison, chosen: Chosen) -> Iterator[MeasuredRow]:
    """For the card: the setting over its seeds and on fresh ones, zero-shot, the reference."""
    from carft_core.export import MeasuredRow

    for row in found.rows:
        arm = row.arm
        if arm.is_setting_of(chosen.arm) and (arm.merge or UNMERGED) == chosen.label:
            shown = len(arm.done) > 1
        else:
            shown = arm.is_zero_shot or (arm.algorithm == REFERENCE and row.chosen)
        if shown and arm.done:
            means = {name: row.metric(name).mean for name in row.names}
            known = {name: value for name, value in means.items() if value is not None}
            yield MeasuredRow(arm.label, known, len(arm.done))
