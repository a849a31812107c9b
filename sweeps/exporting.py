"""A model of a sweep made an export: a folder, a copy in the cache, or a model in MLflow."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from carft_core.errors import RequestError
from carft_core.files import read_json, user_cache, write_json
from sweeps.as_run import AsRun
from sweeps.chosen import DIGITS, Chosen, choose_model, part_of
from sweeps.home import Home
from sweeps.known import sweep_folder
from sweeps.mirror import beside_trials
from sweeps.named import look
from sweeps.records import OWN, comparison, measured
from sweeps.runs import Runs
from tracking.base import DatasetInput, RunKey
from tracking.compare import REFERENCE, Comparison
from tracking.records import merge_name
from tracking.where import home_id, where

if TYPE_CHECKING:
    from carft_core.config import TrialConfig
    from carft_core.export import MeasuredRow
    from sweeps.mirror import Kept
    from sweeps.spec import SweepSpec
    from tracking.mlflow_model import KeptModel


@dataclass(frozen=True)
class Exporter:
    """What makes exports of one sweep's models."""

    home: Home
    spec: SweepSpec
    sweep: Kept
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
        for known in beside_trials(self.sweep):
            if digest not in known["runs"].values():
                continue
            if "of" in known["params"]:  # a soup that `after` asked for
                folder = RunFolder(self._folder(chosen))
                return trial_config(folder.claimed()["config"])
            for point in self.spec.baseline_configs():
                if point.is_at(known["algorithm"], known["params"]):
                    return point.config
            config = self.spec.config_for(known["params"])  # a trial's that is confirmed
            if config.algorithm.name == known["algorithm"]:
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
            raise RequestError(
                f"the weights of run {chosen.run.digest[:DIGITS]} are {why}; train the sweep again "
                f"with them: carft-sweep run {self.spec.source_path}{option} --fresh"
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
        """Keep its export in `folder` in MLflow; raises as `tracking.mlflow_model.keep_model`."""
        from sweeps.family_file import place_of
        from tracking.mlflow_model import ModelStart, keep_model

        told, config = _measured(self.home, chosen), self.config(chosen).data
        merged = "" if chosen.label == OWN else f"{merge_name(chosen.label)}/"
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
            where(self.home.path), home_id(self.home.path), start, folder, register=register
        )

    def _folder(self, chosen: Chosen) -> Path:
        return Runs(self.home.runs).folder(chosen.run.digest)


@contextmanager
def exporter(home: Home, name: str) -> Iterator[Exporter]:
    """Of a sweep by its name, as it was run and where it was run: paths in its file hold there.

    Raises RequestError for a sweep that is not there, or whose file was not kept.
    """
    as_run = AsRun.read(sweep_folder(home, name))
    sweep = look(home, name)
    with as_run.in_its_folder():
        spec, _ = as_run.load(home.sweep(name))
        yield Exporter(home, spec, sweep, comparison(sweep, Runs(home.runs)))


def selected_in_cache(home: Home, name: str) -> Path:
    """An export of the selected model in the user's cache, made unless it is there."""
    from carft_core.export import read_facts

    chosen = choose_model(comparison(look(home, name), Runs(home.runs)))
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
    models = Exporter(home, spec, look(home, found.sweep), found)
    if not models.has_weights(chosen):
        return None
    evaluation = _measured(home, chosen)["digest"]
    # One for each place, as of what else it was told.
    note = home.sweep(found.sweep) / "told" / f"{where(home.path).spool.name}.model.json"
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
        if arm.is_setting_of(chosen.arm) and (arm.merge or OWN) == chosen.label:
            shown = len(arm.done) > 1
        else:
            shown = arm.is_zero_shot or (arm.algorithm == REFERENCE and row.chosen)
        if shown and arm.done:
            means = {name: row.metric(name).mean for name in row.names}
            known = {name: value for name, value in means.items() if value is not None}
            yield MeasuredRow(arm.label, known, len(arm.done))
