"""Exported models as MLflow's logged models."""

from __future__ import annotations

import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from carft_sweep.tracking.errors import TrackingError
from carft_sweep.tracking.location import TrackingLocation, without_password
from carft_sweep.tracking.program import program
from carft_sweep.tracking.store import mlflow_limits, mlflow_store
from carft_sweep.tracking.store.base import RunKey
from carft_sweep.tracking.store.mlflow_client import (
    connect,
    find_experiment,
    quieted,
    refuse_if_moved,
)
from carft_sweep.tracking.store.mlflow_errors import translated, uploading
from carft_sweep.tracking.store.mlflow_pages import DESCRIPTION, without_remote_content

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.models import ModelSignature


logger = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("pyfunc_model.py")
MODEL_ARTIFACT = "model"
"""The name under which the script finds the export."""
REQUIREMENTS = (
    "mlflow",
    "numpy",
    "open_clip_torch",
    "pandas",
    "pillow",
    "safetensors",
    "timm",
    "torch",
    "torchvision",
)
"""What the script and open_clip import."""
# MLflow would copy the lock file of the project in the current folder into the model.
_QUIET = {"MLFLOW_UV_AUTO_DETECT": "false", "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false"}


def save(local: Path, folder: Path, model: LoggedModel) -> None:
    """Write the export in `folder` to the new folder `local` as MLflow's logged model `model`."""
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    save_model(
        local,
        python_model=str(SCRIPT),  # its text: nothing is pickled
        artifacts={MODEL_ARTIFACT: str(folder)},
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            model_uuid=model.model_id,
            run_id=model.source_run_id,
            model_id=model.model_id,
        ),
        signature=_signature(),
        pip_requirements=list(_requirements(folder)),
    )


def _signature() -> ModelSignature:
    import pandas as pd
    from mlflow.models import infer_signature

    answer = {
        "label": "cat",
        "probability": 1.0,
        "top": [{"label": "cat", "probability": 1.0}],
        "contexts": [{"context": "a photo of a {}.", "probability": 1.0}],
    }
    rows = pd.DataFrame({"image": ["an image file in base64"]}), pd.DataFrame([answer])
    return infer_signature(*rows, {"top": 5, "contexts": 5})


def _requirements(folder: Path) -> Iterator[str]:
    """Yield the script's requirements at the installed versions, without local parts (`+cpu`)."""
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    names = [*REQUIREMENTS]
    if "hf_model_name" in config["model_cfg"]["text_cfg"]:
        names.append("transformers")
    for name in names:
        try:
            yield f"{name}=={version(name).partition('+')[0]}"
        except PackageNotFoundError:
            yield name


_ILLEGAL = re.compile(r"[/:.%\"']")


@dataclass(frozen=True)
class ModelStart:
    """An export to be stored in MLflow, with what is known of it."""

    key: RunKey
    """The run that made the model."""
    name: str
    label: str
    """Which of the run's models: `unmerged`, `wise_ft@0.5`."""
    evaluation: str
    """Digest of the model's evaluation, which no other model has."""
    params: Mapping[str, mlflow_limits.Param] = field(default_factory=dict)
    description: str = ""


@dataclass(frozen=True)
class KeptModel:
    """A model in MLflow."""

    model_id: str
    is_new: bool
    """False when the store had it already."""

    @property
    def uri(self) -> str:
        """The address `models:/ID` for `mlflow.pyfunc.load_model` and `mlflow models serve`."""
        return f"models:/{self.model_id}"


def has_model(place: TrackingLocation, model_id: str) -> bool:
    """Return whether MLflow has a model, with its files. Raises as `ModelStore` does."""
    from mlflow.exceptions import MlflowException

    refuse_if_moved(place)
    client = connect(place.uri)
    with translated(place.uri), uploading(place.uri):
        try:
            return _is_whole(client, client.get_logged_model(model_id))
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False


def _is_whole(client: MlflowClient, model: LoggedModel) -> bool:
    """Return whether a stored model is complete: a crash may have left half of its files, or
    somebody may have deleted some."""
    ready = model.status.value == "READY"
    return ready and bool(client.list_logged_model_artifacts(model.model_id))


class ModelStore:
    """The models of one experiment of an MLflow store. `home` is the home's id, as the tags of its
    runs have it. The constructor and `keep` raise ServiceUnreachable where the store cannot be used
    now, and TrackingError where it rejects the model or does not have the run."""

    def __init__(self, place: TrackingLocation, home: str) -> None:
        refuse_if_moved(place)
        self._uri, self._home = place.uri, home
        self._client = connect(place.uri)
        with translated(self._uri):
            experiment = find_experiment(self._client, self._uri, place.experiment)
        if experiment is None:
            raise TrackingError(
                f"MLflow at {without_password(self._uri)} has no experiment {place.experiment!r}"
            )
        self._experiment = experiment

    def keep(self, start: ModelStart, folder: Path) -> KeptModel:
        """Store the export in `folder` with its run and sweep, unless done; return the model."""
        with translated(self._uri):
            runs = [self._run(key) for key in (start.key, RunKey(start.key.sweep))]
            before = self._kept_before(start)
        if before is not None:
            logger.info("MLflow has %s as %s already", start.label, before.model_id)
        kept = before or self._created(start, runs[0], folder)
        with translated(self._uri):
            for run in runs:
                self._link(run, kept)
        return KeptModel(str(kept.model_id), before is None)

    def _run(self, key: RunKey) -> Run:
        query = mlflow_store.query_of(mlflow_store.identity(key, self._home))
        runs = self._client.search_runs([self._experiment], query, max_results=1)
        if not runs:
            raise TrackingError(
                f"MLflow at {without_password(self._uri)} has no run {key.digest[:12]} of sweep "
                f"{key.sweep!r}, to which the model belongs. What waits is delivered by: "
                f"{program()} sync. Another server gets the sweep by: {program()} run FILE"
            )
        return runs[0]

    def _kept_before(self, start: ModelStart) -> LoggedModel | None:
        """Return the model of the same export that was stored before; None without one."""
        query = mlflow_store.query_of(self._tags(start))
        models = self._client.search_logged_models([self._experiment], query)
        whole = [model for model in models if _is_whole(self._client, model)]
        return min(whole, key=lambda model: model.creation_timestamp, default=None)

    def _tags(self, start: ModelStart) -> dict[str, str]:
        """Return the tags by which MLflow finds the stored model again."""
        own = {"carft.kind": "model", "carft.evaluation": start.evaluation}
        return {**mlflow_store.identity(start.key, self._home), **own}

    def _created(self, start: ModelStart, run: Run, folder: Path) -> LoggedModel:
        with translated(self._uri):
            model = self._client.create_logged_model(
                self._experiment,
                name=_ILLEGAL.sub("_", start.name),
                source_run_id=run.info.run_id,
                model_type="image-classifier",
                params=mlflow_limits.params({"label": start.label, **start.params}),
                tags=mlflow_limits.tags(
                    {
                        **self._tags(start),
                        "carft.label": start.label,
                        DESCRIPTION: without_remote_content(start.description),
                    }
                ),
            )
        try:
            with (
                tempfile.TemporaryDirectory() as scratch,
                quieted("mlflow", logging.WARNING, _QUIET),
                warnings.catch_warnings(),
            ):
                warnings.simplefilter("ignore")  # pandas' and pydantic's, of how MLflow calls them
                local = Path(scratch) / "model"
                save(local, folder, model)
                with translated(self._uri), uploading(self._uri):
                    self._client.log_model_artifacts(model.model_id, str(local))
        except BaseException:
            with suppress(Exception):  # the store may be what failed
                self._client.delete_logged_model(model.model_id)
            raise
        with translated(self._uri):
            return self._client.finalize_logged_model(model.model_id, "READY")

    def _link(self, run: Run, model: LoggedModel) -> None:
        """Add the model to the run's outputs, which MLflow shows on its page."""
        from mlflow.entities import LoggedModelOutput

        outputs = run.outputs.model_outputs if run.outputs else []
        if model.model_id not in {output.model_id for output in outputs}:
            self._client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])
