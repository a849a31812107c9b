"""A model in MLflow: kept once, linked, and nothing half done stays."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient
from mlflow.models import Model

from carft_sweep.tracking.errors import ServiceUnreachable, TrackingError
from carft_sweep.tracking.location import TrackingLocation
from carft_sweep.tracking.store.base import RunKey, RunStart
from carft_sweep.tracking.store.mlflow_models import ModelStart, ModelStore, has_model
from carft_sweep.tracking.store.mlflow_store import MlflowStore
from tests.tracking.conftest import NewDatabase
from tests.tracking.made_up import known

pytestmark = pytest.mark.xdist_group("ui")
NOW = 1_790_000_000_000
KEY = RunKey("small.sweep", "d" * 64)
START = ModelStart(
    key=KEY,
    name="small.sweep",
    label="wise_ft@0.5",
    evaluation="e" * 64,
    params={"algorithm.kl_weight": 0.3, "seed": 1},
    description="car_ft, the median of 3.",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What MLflow looks at of an export, which is little."""
    made = tmp_path / "small-model"
    made.mkdir()
    (made / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"text_cfg": {}}}))
    (made / "head.safetensors").write_bytes(b"weights")
    return made


@pytest.fixture(params=["sqlite", "server"])
def place(
    request: pytest.FixtureRequest, new_database: NewDatabase, tmp_path: Path
) -> TrackingLocation:
    """A store with the sweep and its run."""
    if request.param == "server":
        uri, root = request.getfixturevalue("server").address, None
    else:
        uri, root = new_database(), tmp_path / "mlartifacts"
    where = TrackingLocation(uri, f"test-{uuid.uuid4().hex}", root, "home")
    store = MlflowStore(uri, where.experiment, root, home="mine")
    store.start_run(RunStart(RunKey(KEY.sweep), KEY.sweep, NOW))
    store.start_run(RunStart(KEY, "car_ft seed 1", NOW, parent=RunKey(KEY.sweep)))
    return where


def client(place: TrackingLocation) -> MlflowClient:
    return MlflowClient(place.uri)


def models(place: TrackingLocation) -> list[str]:
    experiment = known(client(place).get_experiment_by_name(place.experiment))
    logged = client(place).search_logged_models([experiment.experiment_id])
    return [model.model_id for model in logged]


def test_a_model_is_kept_once_linked_once_and_can_be_registered(
    place: TrackingLocation, folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "uv.lock").write_text("version = 1")
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'secret'")
    monkeypatch.chdir(tmp_path)
    before = dict(os.environ)
    first = ModelStore(place, "mine").keep(START, folder)
    again = ModelStore(place, "mine").keep(START, folder)
    assert dict(os.environ) == before
    assert (first.is_new, again.is_new) == (True, False)
    assert models(place) == [first.model_id]
    model = client(place).get_logged_model(first.model_id)
    assert (model.name, model.model_type) == ("small_sweep", "image-classifier")
    assert model.params == {"label": "wise_ft@0.5", "algorithm.kl_weight": "0.3", "seed": "1"}
    assert model.tags["carft.evaluation"] == START.evaluation
    run = client(place).get_run(str(model.source_run_id))
    for source in (run, client(place).get_run(run.data.tags["mlflow.parentRunId"])):
        outputs = known(source.outputs).model_outputs
        assert [output.model_id for output in outputs] == [model.model_id]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place.uri)
    name = f"model-{uuid.uuid4().hex}"
    assert int(mlflow.register_model(first.uri, name).version) == 1  # as MLflow's page does
    signature = known(Model.load(f"models:/{name}/1").signature)
    assert signature.inputs.input_names() == ["image"]
    if place.artifacts is not None:
        names = {file.name for file in Path(model.artifact_location).rglob("*")}
        assert "MLmodel" in names
        assert not names & {"uv.lock", "pyproject.toml"}


def test_a_model_that_is_gone_or_torn_is_kept_anew(place: TrackingLocation, folder: Path) -> None:
    losses = [lambda model_id: client(place).delete_logged_model(model_id)]
    if place.artifacts is not None:  # nobody here reaches the files of the server
        losses.append(lambda _: shutil.rmtree(known(place.artifacts)))
    model = ModelStore(place, "mine").keep(START, folder)
    for lose in losses:
        assert has_model(place, model.model_id)
        lose(model.model_id)
        assert not has_model(place, model.model_id)
        model = ModelStore(place, "mine").keep(START, folder)
        assert model.is_new
    assert has_model(place, model.model_id)


def test_a_run_that_is_not_there_is_told_and_an_upload_that_fails_leaves_nothing(
    place: TrackingLocation, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    lost = replace(START, key=RunKey(KEY.sweep, "a" * 64))
    with pytest.raises(TrackingError, match=r"has no run aaaaaaaaaaaa .*carft-sweep sync"):
        ModelStore(place, "mine").keep(lost, folder)
    with pytest.raises(TrackingError, match="has no run"):
        ModelStore(place, "another's").keep(START, folder)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_model_artifacts", full)
        with pytest.raises(ServiceUnreachable, match="no space left"):
            ModelStore(place, "mine").keep(START, folder)
    assert models(place) == []
    assert ModelStore(place, "mine").keep(START, folder).is_new
