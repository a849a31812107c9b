"""Exported models as MLflow's logged models."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.errors import TrackingError
from tracking.location import Where, without_password
from tracking.store import mlflow_limits, mlflow_store
from tracking.store.base import DatasetInput, RunKey
from tracking.store.mlflow_client import quieted
from tracking.store.mlflow_errors import translated, uploading
from tracking.store.mlflow_store import MlflowStore

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Run
    from mlflow.models import ModelSignature


SCRIPT = Path(__file__).with_name("pyfunc_model.py")
ARTIFACT = "model"
"""Under this name the script finds the export."""
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
_QUIET = {
    # MLflow would copy the lock file of whatever project the user stands in into the model.
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def save(local: Path, folder: Path, model: LoggedModel) -> None:
    """Lay the export in `folder` out as MLflow's model at `local`, which is not there yet."""
    import pandas as pd
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    save_model(
        local,
        python_model=str(SCRIPT),  # its text: nothing is pickled
        artifacts={ARTIFACT: str(folder)},
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            model_uuid=model.model_id,
            run_id=model.source_run_id,
            model_id=model.model_id,
        ),
        signature=_signature(),
        input_example=pd.DataFrame({"image": [_example()]}),
        pip_requirements=list(_requirements(folder)),
    )


def _signature() -> ModelSignature:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Array, Object, Property

    def guesses(kind: str) -> Array:
        names = (Property(kind, DataType.string), Property("probability", DataType.double))
        return Array(Object(list(names)))

    return ModelSignature(
        inputs=Schema([ColSpec(DataType.string, "image")]),
        outputs=Schema(
            [
                ColSpec(DataType.string, "label"),
                ColSpec(DataType.double, "probability"),
                ColSpec(guesses("label"), "top"),
                ColSpec(guesses("context"), "contexts"),
            ]
        ),
        params=ParamSchema(
            [ParamSpec("top", DataType.long, 5), ParamSpec("contexts", DataType.long, 5)]
        ),
    )


def _example() -> str:
    """A small image in base64: a gradient."""
    from PIL import Image

    file = io.BytesIO()
    Image.linear_gradient("L").resize((32, 32)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def _requirements(folder: Path) -> Iterator[str]:
    """The versions here, as anybody can install them: without this machine's build of torch."""
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    names = [*REQUIREMENTS]
    if "hf_model_name" in config["model_cfg"]["text_cfg"]:
        names.append("transformers")
    for name in names:
        try:
            yield f"{name}=={version(name).partition('+')[0]}"
        except PackageNotFoundError:
            yield name


@contextmanager
def quiet() -> Iterator[None]:
    """Nothing but what MLflow itself warns of, and nothing of the folder the user stands in."""
    with quieted("mlflow", logging.WARNING, _QUIET), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' and pydantic's, of how MLflow calls them
        yield


_ILLEGAL = re.compile(r"[/:.%\"']")


@dataclass(frozen=True)
class ModelStart:
    """What is known of a model when it is kept."""

    key: RunKey
    """The run that made it."""
    name: str
    label: str
    """Which of the run's models: `unmerged`, `wise_ft@0.5`."""
    evaluation: str
    """The digest of its evaluation: no other model has it."""
    params: Mapping[str, mlflow_limits.Param] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """By the names under which the run has them; the model gets those values that it has."""
    step: int | None = None
    """Of these metrics in the run; None: the run's last."""
    dataset: DatasetInput | None = None
    """What they were measured on."""
    description: str = ""


@dataclass(frozen=True)
class KeptModel:
    """A model in MLflow."""

    model_id: str
    is_new: bool
    """False when the store had it already."""
    registered: tuple[str, str] | None = None
    """The name and the version under which it is registered."""

    @property
    def uri(self) -> str:
        """For `mlflow.pyfunc.load_model` and `mlflow models serve`."""
        return f"models:/{self.model_id}"


def keep_model(
    place: Where, home: str, start: ModelStart, folder: Path, *, register: str | None = None
) -> KeptModel:
    """Keep the export in `folder` beside its run and its sweep, unless the store has it already.

    `home` is who the home is, as its runs' tags say. With `register` it becomes a version of the
    registered model of that name, unless it is one. Raises ServiceUnreachable while the store
    cannot be used, TrackingError when it refuses, or does not have the run.
    """
    keeper = _Keeper(place, home)
    return keeper.keep(start, folder, register)


class _Keeper:
    """One experiment of a store."""

    def __init__(self, place: Where, home: str) -> None:
        MlflowStore(place.uri, place.experiment, place.artifacts, home=home).check()
        from mlflow import MlflowClient

        self._uri, self._home = place.uri, home
        self._client: MlflowClient = MlflowClient(place.uri)
        with translated(self._uri):
            found = self._client.get_experiment_by_name(place.experiment)
        if found is None:
            raise TrackingError(f"the MLflow experiment {place.experiment!r} is gone")
        self._experiment = str(found.experiment_id)

    def keep(self, start: ModelStart, folder: Path, register: str | None) -> KeptModel:
        with translated(self._uri):
            runs = [self._run(key) for key in (start.key, RunKey(start.key.sweep))]
            known = self._known(start)
        kept = known or self._created(start, runs[0], folder)
        with translated(self._uri):
            for run in runs:
                self._link(run, kept)
            if not kept.metrics:
                self._measure(runs[0], kept, start)
            told = KeptModel(str(kept.model_id), is_new=known is None)
            if register is None:
                return told
            return replace(told, registered=(register, self._version(kept, start, register)))

    def _run(self, key: RunKey) -> Run:
        query = mlflow_store.query_of(mlflow_store.identity(key, self._home))
        found = self._client.search_runs([self._experiment], query, max_results=1)
        if not found:
            raise TrackingError(
                f"MLflow at {without_password(self._uri)} has no run {key.digest[:12]} of sweep "
                f"{key.sweep!r}, to which the model belongs. What waits is delivered by: "
                f"carft-sweep sync. Another server is told the sweep by: carft-sweep run FILE"
            )
        return found[0]

    def _known(self, start: ModelStart) -> LoggedModel | None:
        """The model as it was kept before. What a crash left half uploaded is no such model."""
        query = mlflow_store.query_of(self._tags(start))
        found = self._client.search_logged_models([self._experiment], query)
        whole = [model for model in found if model.status.value == "READY"]
        return min(whole, key=lambda model: model.creation_timestamp, default=None)

    def _tags(self, start: ModelStart) -> dict[str, str]:
        """By which the model is found again."""
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
                        "carft.digest": start.key.digest,
                        "carft.label": start.label,
                        "mlflow.note.content": start.description,
                    }
                ),
            )
        try:
            with tempfile.TemporaryDirectory() as scratch, quiet():
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
        """Among the run's outputs: MLflow shows the model on its page."""
        from mlflow.entities import LoggedModelOutput

        outputs = run.outputs.model_outputs if run.outputs else []
        if model.model_id not in {output.model_id for output in outputs}:
            self._client.log_outputs(run.info.run_id, [LoggedModelOutput(model.model_id, step=0)])

    def _measure(self, run: Run, model: LoggedModel, start: ModelStart) -> None:
        """The run's own values once more, as the model's: equal ones are kept once."""
        from mlflow.entities import Metric

        dataset = {}
        if start.dataset is not None:
            (short,) = mlflow_limits.datasets([start.dataset])
            dataset = {"dataset_name": short.name, "dataset_digest": short.digest}
        found = []
        for name, value in start.metrics.items():
            point = self._point(run, name, value, start.step)
            if point is not None:
                found.append(
                    Metric(
                        point.key,
                        point.value,
                        point.timestamp,
                        point.step,
                        model_id=model.model_id,
                        run_id=run.info.run_id,
                        **dataset,
                    )
                )
        if found:
            self._client.log_batch(run.info.run_id, metrics=found)

    def _point(self, run: Run, name: str, value: float, step: int | None) -> Metric | None:
        """Where the run has this value."""
        history = self._client.get_metric_history(run.info.run_id, mlflow_limits.name(name))
        fitting = [
            point for point in history if point.value == value and step in (None, point.step)
        ]
        return max(fitting, key=lambda point: (point.step, point.timestamp), default=None)

    def _version(self, model: LoggedModel, start: ModelStart, name: str) -> str:
        from mlflow.exceptions import MlflowException

        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        versions: Sequence[Any] = self._client.search_model_versions(f"name = '{name}'")
        for known in versions:
            if known.source == model.artifact_location:
                return str(known.version)
        made = self._client.create_model_version(
            name,
            # Not models:/ID: a database's registry would look for that at the global address.
            source=model.artifact_location,
            run_id=model.source_run_id,
            model_id=model.model_id,
            description=start.description,
            tags={"carft.digest": start.key.digest, "carft.label": start.label},
        )
        return str(made.version)
