"""What an exported model says of a file is what its run said, from the export's folder alone."""

from __future__ import annotations

import io
import math
import os
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.export import predictor as module
from carft_sweep.carft_core.export.export import export
from carft_sweep.carft_core.export.predictor import Picture, Prediction, Predictor, read_image
from carft_sweep.carft_core.files import read_json, write_json
from carft_sweep.carft_core.runs.folder import RunFolder, load_weights, save_weights
from carft_sweep.carft_core.training.loop import train
from carft_sweep.carft_core.training.setup import open_setup
from tests.carft_core.trained import Config, weights

CLASSES = ("anchor", "bell", "cat")


@pytest.fixture(scope="module")
def exported(toy_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export `model` of a run in `run`."""
    folder = tmp_path_factory.mktemp("exported")
    config = toy_config()
    train(config, 0, workdir=folder / "run")
    export(folder / "run", config, folder / "model")
    return folder


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor.load(exported / "model", "cpu")


@pytest.fixture(scope="module")
def image(toy_root: Path) -> Path:
    return next((toy_root / "test").rglob("*.png"))


@pytest.mark.parametrize("form", [Path, Path.read_bytes, Image.open])
def test_it_says_of_every_image_what_the_run_said(
    exported: Path, predictor: Predictor, toy_root: Path, form: Callable[[Path], Picture]
) -> None:
    rows = pq.read_table(RunFolder(exported / "run").predictions("unmerged")).to_pylist()
    tested: list[dict[str, Any]] = [row for row in rows if row["split"] == "id/test"]
    assert len(tested) == 12
    predictions = predictor.predict([form(toy_root / row["id"]) for row in tested])
    for row, prediction in zip(tested, predictions, strict=True):
        assert [CLASSES.index(guess.name) for guess in prediction.classes] == row["top5"]
        assert prediction.classes[0].probability == pytest.approx(row["confidence"], abs=1e-5)
        assert sum(guess.probability for guess in prediction.classes) == pytest.approx(1)


def test_contexts_are_the_softmax_over_the_templates(
    exported: Path, predictor: Predictor, toy_config: Config, toy_root: Path
) -> None:
    setup = open_setup(toy_config())
    teacher, test = setup.teacher, setup.data.id_test
    classifier = teacher.new_classifier()
    classifier.load_state_dict(weights(exported / "run"))
    views = test.views([0], transform=teacher.transform, seed=None, epoch=0)
    with torch.no_grad():
        features = classifier.eval().features(teacher.transform.normalise(views))
        expected = teacher.context_log_probs(features).exp()[0]
    (prediction,) = predictor.predict([toy_root / test.ids[0]], contexts=2)
    for guess in prediction.contexts:
        place = teacher.contexts.templates.index(guess.name)
        assert guess.probability == pytest.approx(float(expected[place]), abs=1e-5)
    two = expected.sort(descending=True).values[:2].tolist()
    assert [guess.probability for guess in prediction.contexts] == pytest.approx(two, abs=1e-5)


def test_so_many_are_told_as_are_asked_for_and_there(predictor: Predictor, image: Path) -> None:
    (prediction,) = predictor.predict([image], top=99, contexts=0)
    assert {guess.name for guess in prediction.classes} == set(CLASSES)
    assert prediction.contexts == ()
    assert predictor.predict([]) == []
    names = [each.classes[0].name for each in predictor.predict([image] * 70, top=1)]
    assert names == [prediction.classes[0].name] * 70


def test_it_needs_nothing_that_it_was_trained_on_and_no_tokenizer(
    exported: Path,
    image: Path,
    tmp_path: Path,
    predictor: Predictor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda *_, **__: pytest.fail("opened"))
    shutil.copytree(exported / "model", tmp_path / "elsewhere")
    moved = Predictor.load(tmp_path / "elsewhere")
    assert moved.predict([image])[0] == predictor.predict([image])[0]


def test_what_is_no_export_is_told(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"holds no exported model: there is no carft\.json"):
        Predictor.load(tmp_path)
    for name in ("classes.json", "head.safetensors", "contexts.safetensors"):
        folder = tmp_path / name
        shutil.copytree(exported / "model", folder)
        (folder / name).unlink()
        with pytest.raises(RequestError, match=f"is not whole: there is no {name}"):
            Predictor.load(folder)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("classes.json", {"classes": []}),
        ("classes.json", {"classes": "abc"}),
        ("classes.json", {"contexts": [1]}),
        ("head.safetensors", {"weight": torch.zeros(2, 3)}),
        ("head.safetensors", {"weight": None}),
        ("contexts.safetensors", {"w_ctx": torch.tensor([[math.nan]])}),
        ("model: unknown interpolation", {"preprocess_cfg": {"interpolation": "shortest"}}),
    ],
)
def test_an_export_that_is_damaged_is_refused_by_name(
    exported: Path, tmp_path: Path, name: str, change: dict[str, Any]
) -> None:
    shutil.copytree(exported / "model", tmp_path / "model")
    file = tmp_path / "model" / (name if "." in name else "open_clip_config.json")
    if file.suffix == ".json":
        write_json(file, {**read_json(file), **change})
    else:
        tensors = {**load_weights(file), **change}
        save_weights(file, {key: value for key, value in tensors.items() if value is not None})
    with pytest.raises(RequestError, match=name):
        Predictor.load(tmp_path / "model")


def test_an_export_whose_files_do_not_fit_together_is_named(exported: Path, tmp_path: Path) -> None:
    shutil.copytree(exported / "model", tmp_path / "model")
    file = tmp_path / "model" / "open_clip_model.safetensors"
    tensors = load_weights(file)
    save_weights(file, {name: torch.full_like(value, 1e38) for name, value in tensors.items()})
    with pytest.raises(RequestError, match=r"model: the model gives NaN"):
        Predictor.load(tmp_path / "model")
    file = tmp_path / "model" / "contexts.safetensors"
    save_weights(file, {**load_weights(file), "logit_scale": torch.zeros(2)})
    with pytest.raises(RequestError, match=r"model: its files do not fit together"):
        Predictor.load(tmp_path / "model")


def test_one_image_is_held_at_a_time(
    predictor: Predictor, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[weakref.ref[Image.Image]] = []

    def read(picture: Picture) -> Image.Image:
        assert [image for image in held if image() is not None] == []
        image = read_image(picture)
        held.append(weakref.ref(image))
        return image

    monkeypatch.setattr(module, "read_image", read)
    assert len(predictor.predict([image] * 5)) == len(held) == 5


def test_a_reason_stands_for_an_image_that_is_no_image(predictor: Predictor, image: Path) -> None:
    pictures: list[Picture] = [b"%!PS-Adobe-3.0 EPSF-3.0", *[image] * 64, b"", image]
    outcomes = list(predictor.attempt(pictures, top=1))
    assert [isinstance(outcome, RequestError) for outcome in outcomes] == [
        True,
        *[False] * 64,
        True,
        False,
    ]
    (alone,) = predictor.predict([image], top=1)
    for outcome in (outcomes[1], outcomes[-1]):
        assert isinstance(outcome, Prediction)
        assert outcome.classes[0].name == alone.classes[0].name


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no image of a known format"):
        read_image(b"hello")
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    with pytest.raises(RequestError, match="cannot be read"):
        read_image(file.getvalue()[:1500])
    with pytest.raises(RequestError, match=r"none\.png cannot be read as an image"):
        read_image(tmp_path / "none.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(RequestError, match=r"pipe\.png .*not a regular file"):
        read_image(tmp_path / "pipe.png")
