"""The selected model of a sweep, as a folder or in MLflow."""

from __future__ import annotations

import logging
import math
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import digest_of, read_json, user_cache, write_json
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.generations import Invocation
from carft_sweep.sweeps.ledger.ledger import Ledger, find_ledger
from carft_sweep.sweeps.ledger.runs import RunStore, measured
from carft_sweep.sweeps.ledger.status import OUTCOME
from carft_sweep.sweeps.results.records import comparison
from carft_sweep.sweeps.results.sent_log import SentLog, place_of
from carft_sweep.tracking.comparison.caveats import join_few
from carft_sweep.tracking.comparison.compare import Comparison
from carft_sweep.tracking.comparison.runs import UNMERGED, Arm, RunRecord
from carft_sweep.tracking.comparison.spec import REFERENCE, VAL
from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError, unknown_name
from carft_sweep.tracking.location import home_id
from carft_sweep.tracking.program import program
from carft_sweep.tracking.report.html import Export
from carft_sweep.tracking.store.base import RunKey

if TYPE_CHECKING:
    from carft_sweep.carft_core.config.trial import TrialConfig
    from carft_sweep.carft_core.export.export import MeasuredRow
    from carft_sweep.sweeps.spec.spec import SweepSpec
    from carft_sweep.sweeps.spec.user_code import Vet
    from carft_sweep.tracking.store.mlflow_models import KeptModel


logger = logging.getLogger(__name__)

DIGITS = 12
"""Characters of a digest that tables and messages show."""


@dataclass(frozen=True)
class SelectedModel:
    """One model of one run."""

    arm: Arm
    """The unmerged arm of the run."""
    run: RunRecord
    label: str
    """`unmerged`, or a merged model of the run."""
    why: str = ""
    """Why this seed, where nobody named it."""

    @property
    def setting(self) -> str:
        """The setting with its merge: `car_ft kl_weight=1 + wise_ft@0.5`."""
        return self.arm.label if self.label == UNMERGED else self.arm.merged(self.label).label

    @property
    def metrics(self) -> dict[str, float]:
        """The metrics of the selected model."""
        return dict(self.run.metrics_of(None if self.label == UNMERGED else self.label))

    def __str__(self) -> str:
        """Return `car_ft kl_weight=1, seed 2 (the median of 5 by id/val/top1)`."""
        seed = "" if self.run.seed is None else f", seed {self.run.seed}"
        why = f" ({self.why})" if self.why else ""
        return f"{self.setting}{seed}{why}"


def select_model(
    comparison: Comparison,
    *,
    run: str | None = None,
    setting: str | None = None,
    seed: int | None = None,
    merge: str | None = None,
) -> SelectedModel:
    """Return the model of the run whose digest begins with `run`, else of a setting and a seed.

    By default the setting is the selected one with its merge, and the seed the one whose
    `id/val/top1` is the median of the done runs (of two in the middle the lower): the best seed's
    lead would not be repeated by another training. Of a sweep over tasks `run` is required. Raises
    RequestError for an unknown name, with the nearest name, and for a run that is not done.
    """
    if comparison.tasks and run is None:
        raise RequestError(_one_of_each_task(comparison))
    why = ""
    if run is not None:
        if seed is not None:
            raise RequestError("--run names one run already; leave --seed out")
        arm, record = _named_run(comparison, run)
        label = merge or UNMERGED
    else:
        arm, merged = _named_setting(comparison, setting)
        label = merge or merged or UNMERGED
        if seed is not None:
            record = _of_seed(arm, seed)
        else:
            record, why = _median(comparison, arm, label)
    if record.state != "done":
        raise RequestError(
            f"run {record.digest[:DIGITS]} of {arm.label} is {record.state}; only one that is "
            "done has a model"
        )
    labels = [UNMERGED, *record.merges]
    if label not in labels:
        kind = f"model of run {record.digest[:DIGITS]} of {arm.label}"
        raise RequestError(unknown_name(kind, label, labels))
    model = SelectedModel(arm, record, label, why)
    logger.info("exporting run %s: %s", record.digest[:DIGITS], model)
    return model


def export_commands(comparison: Comparison, sweep: str, *, named: bool) -> Iterator[Export]:
    """Yield the `carft-sweep export` command of the selected model, or one for each task. With
    `named`, and always for tasks, the command has `--run` (and `--merge` unless unmerged),
    because `export` alone may take another run. Without a finished run there is no command."""
    parts = [*comparison.tasks.values()] or [comparison]
    for part in parts:
        with suppress(RequestError):
            model = select_model(part)
            words = ["carft-sweep", "export", sweep]
            if named or comparison.tasks:
                words += ["--run", model.run.digest[:DIGITS]]
                words += [] if model.label == UNMERGED else ["--merge", model.label]
            yield Export(str(model), shlex.join(words))
    if not (named or comparison.tasks):
        yield from baseline_command(comparison, sweep)


def baseline_command(comparison: Comparison, sweep: str) -> Iterator[Export]:
    """Yield the command that exports the reference if the verdict is against the selected model."""
    better = comparison.better_baseline
    if better is not None:
        model = select_model(comparison, setting=better.label)
        words = ["carft-sweep", "export", sweep, "--setting", better.label]
        yield Export(str(model), shlex.join(words), is_baseline=True)


def part_of(comparison: Comparison, model: SelectedModel) -> Comparison:
    """Return the comparison of the model's task, or `comparison` itself without tasks."""
    parts = comparison.tasks.values()
    return next((part for part in parts if model.run in part.runs()), comparison)


def _one_of_each_task(comparison: Comparison) -> str:
    each = [
        f"{task}: {model.setting} (--run {model.run.digest[:DIGITS]})"
        for task, part in comparison.tasks.items()
        if part.selected is not None
        for model in [select_model(part)]
    ]
    known = f" Selected over all seeds: {'; '.join(each)}." if each else ""
    return (
        f"{comparison.sweep} selects a setting for each task, so it has no model as a whole; name "
        f"a run with --run ({program()} export {comparison.sweep} --run DIGEST).{known}"
    )


def _named_run(comparison: Comparison, digest: str) -> tuple[Arm, RunRecord]:
    runs = {run.digest: (arm, run) for arm in _arms(comparison) for run in arm.runs}
    hits = sorted(known for known in runs if known.startswith(digest))
    if len(hits) == 1:
        return runs[hits[0]]
    if hits:
        raise RequestError(
            f"{len(hits)} runs of {comparison.sweep} begin with {digest!r}: {join_few(hits)}; give "
            "more digits"
        )
    beginnings = sorted({known[: len(digest)] for known in runs})
    raise RequestError(unknown_name(f"run of {comparison.sweep}", digest, beginnings))


def _named_setting(comparison: Comparison, setting: str | None) -> tuple[Arm, str | None]:
    """Return the unmerged arm, and the merge or None, of the row with the label `setting`; by
    default of the selected row."""
    unmerged = {arm.key: arm for arm in _arms(comparison)}
    if setting is None:
        arm = next((row.arm for row in comparison.rows if row.selected), None)
        if arm is None:
            raise RequestError(
                f"{comparison.sweep} has selected nothing yet, for no trial is complete; name a "
                "model with --setting or --run"
            )
        return unmerged[arm.setting_key], arm.merge
    # What a person types is a label, and no two rows have the same.
    by_label = {row.arm.label: row.arm for row in comparison.rows}
    if setting not in by_label:
        raise RequestError(unknown_name(f"setting of {comparison.sweep}", setting, by_label))
    arm = by_label[setting]
    return unmerged[arm.setting_key], arm.merge


def _of_seed(arm: Arm, seed: int) -> RunRecord:
    for run in arm.runs:
        if run.seed == seed:
            return run
    if not arm.has_seeds:
        raise RequestError(f"no seed changes {arm.label}; leave --seed out")
    seeds = ", ".join(str(run.seed) for run in arm.runs)
    raise RequestError(f"{arm.label} has no run with seed {seed}. Its seeds: {seeds}.")


def _median(comparison: Comparison, arm: Arm, label: str) -> tuple[RunRecord, str]:
    if not arm.done:
        raise RequestError(f"no run of {arm.label} in {comparison.sweep} is done")
    merge = None if label == UNMERGED else label

    def rank(run: RunRecord) -> tuple[float, int]:
        value = run.value(VAL, merge)
        return (-math.inf if value is None else value, run.seed or 0)

    runs = sorted(arm.done, key=rank)
    why = f"the median of {len(runs)} by {VAL}" if len(runs) > 1 else ""
    return runs[(len(runs) - 1) // 2], why


def _arms(comparison: Comparison) -> list[Arm]:
    """Return the unmerged arms of every task."""
    if comparison.tasks:
        return [arm for part in comparison.tasks.values() for arm in _arms(part)]
    return [row.arm for row in comparison.rows if row.arm.merge is None]


@dataclass(frozen=True)
class Exporter:
    """Exports models of one sweep."""

    home: Home
    spec: SweepSpec
    sweep: Ledger
    comparison: Comparison

    def config(self, model: SelectedModel) -> TrialConfig:
        """Return the run's trial config. Raises RequestError if the file lacks the setting now."""
        return self._config_of_setting(model).for_seed(model.run.seed or 0)

    def _config_of_setting(self, model: SelectedModel) -> TrialConfig:
        from carft_sweep.carft_core.config.trial import trial_config
        from carft_sweep.carft_core.runs.folder import RunFolder

        digest = model.run.digest
        for trial in self.sweep.trials():
            if digest in trial.runs.values():
                return self.spec.config_for(trial.params)
        for setting in self.sweep.beside_trials():
            if digest not in setting.runs.values():
                continue
            if "of" in setting.params:  # a soup that `after` asked for
                folder = RunFolder(self.folder(model))
                return trial_config(folder.claimed()["config"])
            for point in self.spec.baseline_configs():
                if point.is_at(setting.algorithm, setting.params):
                    return point.config
            config = self.spec.config_for(setting.params)  # a trial's that is confirmed
            if config.algorithm.name == setting.algorithm:
                return config
        raise RequestError(
            f"{self.spec.source_path} has no {model.arm.label} any more; put it back, or run the "
            "sweep anew"
        )

    def has_weights(self, model: SelectedModel) -> bool:
        """Return whether the weights that the run trained are on the disk."""
        from carft_sweep.carft_core.runs.folder import RunFolder

        config = self.config(model)
        file = RunFolder(self.folder(model)).weights(config.keep.result)
        return file.exists() or not config.algorithm.trains

    def write(self, model: SelectedModel, out: Path, *, force: bool = False) -> None:
        """Export the model to the folder `out`. Raises RequestError as the core's `export` does."""
        from carft_sweep.carft_core.export.export import export

        if not self.has_weights(model):
            has_weights = self.config(model).keep.weights
            why = "gone from its folder" if has_weights else "not kept (trial.keep.weights: false)"
            sets = [*self.spec.overrides, *([] if has_weights else ["trial.keep.weights=true"])]
            words = [word for text in sets for word in ("--set", text)]
            words += [word for module in self.spec.imports for word in ("--import", module)]
            again = self.home.command("run", str(self.spec.source_path), *words, "--fresh")
            raise RequestError(
                f"the weights of run {model.run.digest[:DIGITS]} are {why}; train the sweep again "
                f"with them: {again}"
            )
        folder, config, rows = self.folder(model), self.config(model), [*self.rows(model)]
        export(folder, config, out, label=model.label, rows=rows, force=force)

    def keep(self, model: SelectedModel, folder: Path) -> KeptModel:
        """Store the export in `folder` in MLflow; return the stored model. Raises as `ModelStore`
        does."""
        from carft_sweep.tracking.store.mlflow_models import ModelStart, ModelStore

        seed = {} if model.run.seed is None else {"seed": model.run.seed}
        start = ModelStart(
            key=RunKey(self.sweep.name, model.run.digest),
            name=self.sweep.name,
            label=model.label,
            evaluation=_measured(self.home, model)["digest"],
            params={"algorithm": model.run.algorithm, **model.run.params, **seed},
            description=f"{model}. {self.comparison.verdict}".rstrip(),
        )
        store = ModelStore(place_of(self.home, self.sweep), home_id(self.home.path))
        return store.keep(start, folder)

    def folder(self, model: SelectedModel) -> Path:
        """Return the folder of the model's run."""
        return RunStore(self.home.runs).results(model.run.digest)

    def rows(self, model: SelectedModel) -> Iterator[MeasuredRow]:
        """Yield the rows of the model's card beside its own measurements: the setting over its
        seeds, zero-shot, the reference."""
        from carft_sweep.carft_core.export.export import MeasuredRow

        for row in part_of(self.comparison, model).rows:
            arm = row.arm
            if arm.is_setting_of(model.arm) and (arm.merge or UNMERGED) == model.label:
                shown = len(arm.done) > 1
            else:
                shown = arm.is_zero_shot or (arm.algorithm == REFERENCE and row.chosen)
            if shown and arm.done:
                means = {name: row.metric(name).mean for name in row.names}
                known = {name: value for name, value in means.items() if value is not None}
                yield MeasuredRow(arm.label, known, len(arm.done))


@contextmanager
def exporter(home: Home, name: str, vet: Vet | None = None) -> Iterator[Exporter]:
    """Yield an exporter of a sweep by name, in the working folder that the sweep was run in.
    Modules that the home names are imported as far as `vet` permits, by default `vet_of` the home.
    Raises RequestError for an unknown sweep, or one whose file was not kept."""
    from carft_sweep.sweeps.spec.user_code import vet_of

    home = home.absolute()
    sweep = find_ledger(home, name)
    invocation = Invocation.last(sweep)
    with invocation.working_directory():
        spec, _ = invocation.load(home.sweep(name), vet or vet_of(home))
        yield Exporter(home, spec, sweep, comparison(sweep, RunStore(home.runs)))


def selected_in_cache(home: Home, name: str) -> Path:
    """Return the folder of an export of the selected model in the user's cache, made if missing.
    Each home has exports of its own, since other users may have written another home's metadata."""
    from carft_sweep.carft_core.export.export import read_facts
    from carft_sweep.carft_core.models.weights import file_digest
    from carft_sweep.carft_core.runs.folder import RunFolder

    model = select_model(comparison(find_ledger(home, name), RunStore(home.runs)))
    evaluation: str = _measured(home, model)["digest"]
    run = RunFolder(RunStore(home.runs).folder(model.run.digest))
    members = run.claimed()["config"]["algorithm"].get("members", ())
    folders = [run.path, *(run.member(digest).path for digest in members)]
    files = [file for folder in folders for file in sorted(folder.glob("weights/*.safetensors"))]
    weights = [file_digest(file) for file in files if file.is_file()]
    folder = user_cache() / "exports" / digest_of([str(home.path.resolve()), evaluation, weights])
    if (read_facts(folder) or {}).get("evaluation") != evaluation:
        with exporter(home, name) as models:
            models.write(model, folder, force=True)
    return folder


@dataclass(frozen=True)
class _SentModel:
    evaluation: str
    model_id: str


def _sent_model(file: Path) -> Mapping[str, str]:
    """Return the record of the model that MLflow was sent; empty if unknown."""
    try:
        return read_json(file, _SentModel) or {}
    except RequestError:
        return {}


def log_selected(home: Home, spec: SweepSpec, comparison: Comparison) -> str | None:
    """Send the selected model of a finished sweep to MLflow; return a note, or None where no model
    is selected, its weights were deleted, or MLflow has the model.

    Call after the tracker was flushed: the model belongs to runs that MLflow must have. Never
    raises: the note describes any error.
    """
    if comparison.selected is None:
        return None
    try:
        model = select_model(comparison)
        models = Exporter(home, spec, find_ledger(home, comparison.sweep), comparison)
        if not models.has_weights(model):
            return None
        evaluation = _measured(home, model)["digest"]
        sent = SentLog(home.sweep(comparison.sweep), place_of(home, models.sweep)).model
        if _sent_model(sent).get("evaluation") == evaluation:
            return None
        with tempfile.TemporaryDirectory(prefix="carft-export-") as scratch:
            folder = Path(scratch) / comparison.sweep
            models.write(model, folder)
            logged = models.keep(model, folder)
        write_json(sent, {"evaluation": evaluation, "model_id": logged.model_id})
        return f"the selected model is in MLflow as {logged.uri}: {model}."
    except Exception as error:  # MLflow's artifact stores raise anything, and the sweep is done
        text = " ".join(str(error).split()).removesuffix(".")
        return (
            f"the selected model is not in MLflow: {text or type(error).__name__}. To try "
            f"again: {home.command('export', comparison.sweep, '--mlflow')}"
        )


def log_missing_model(home: Home, name: str) -> str | None:
    """Send the selected model of a finished sweep to an MLflow that lacks it; return a note, or
    None. No module of the user is imported: for a sweep with such modules the note is the command
    to use."""
    from carft_sweep.sweeps.spec.user_code import FAMILY_SUFFIXES

    refused, ledger = [], find_ledger(home, name)

    def refuse(item: str) -> None:
        if not item.endswith(FAMILY_SUFFIXES):
            refused.append(item)
            raise RequestError(f"{item} is not imported")

    if ledger.recall(OUTCOME, {}).get("state") != "done":
        return None
    try:
        if _has_model(home, ledger):
            return None
        with exporter(home, name, refuse) as models:
            if not models.spec.report.model:
                return None
            return log_selected(models.home, models.spec, models.comparison)
    except (RequestError, ServiceUnreachable, TrackingError) as error:
        reason = str(error)
        if refused:
            reason = (
                f"sync imports no modules, and the sweep was run with {', '.join(refused)}; with "
                f"them: {home.command('export', name, '--mlflow')}"
            )
        return f"the selected model is not in MLflow: {reason}"


def _has_model(home: Home, sweep: Ledger) -> bool:
    """Return whether MLflow has the model that was sent; if not, remove the record of sending."""
    from carft_sweep.tracking.store.mlflow_models import has_model

    place = place_of(home, sweep)
    file = SentLog(home.sweep(sweep.name), place).model
    model_id = _sent_model(file).get("model_id")
    if model_id is not None and has_model(place, model_id):
        return True
    file.unlink(missing_ok=True)
    return False


def _measured(home: Home, model: SelectedModel) -> Mapping[str, Any]:
    evaluation = measured(RunStore(home.runs).results(model.run.digest), model.label)
    if evaluation is None:
        raise RequestError(
            f"run {model.run.digest[:DIGITS]} has not measured {model.label} to its end"
        )
    return evaluation
