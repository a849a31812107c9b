"""An exported model is kept in MLflow, and served in a fresh process without carft-sweep."""

from __future__ import annotations

import base64
import io
import json
import os
import pickletools
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.pyfunc.model import PythonModelContext
from PIL import Image
from safetensors.torch import load_file, save_file

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.export.predictor import Predictor
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.sweeps.cli import main
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.ledger import find_ledger
from carft_sweep.sweeps.ledger.runs import RunStore
from carft_sweep.sweeps.results.export import exporter, log_selected, select_model
from carft_sweep.sweeps.results.records import comparison
from carft_sweep.sweeps.spec.spec import load_spec
from carft_sweep.tracking.location import EXPERIMENT
from carft_sweep.tracking.store import pyfunc_model as served_model
from tests.e2e.conftest import make_tiny, printed_by
from tests.image_files import claimed_png, noise_folder
from tests.services.processes import ended

CLASSES = {"anchor": [200, 60, 60], "bell": [60, 200, 60], "cat": [60, 60, 200]}
SPLITS = {"train": 6, "test": 4, "shifts/dark": 3}
ALONE = """
import importlib.abc, sys

class WithoutUs(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "carft_sweep":
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, WithoutUs())
"""
BY_MLFLOW = """
import json
import mlflow, pandas as pd

model = mlflow.pyfunc.load_model(sys.argv[1])
images = pd.DataFrame({"image": json.load(open("images.json"))})
answers = model.predict(images, params={"top": 3})
answers.to_json("answers.json", orient="records", double_precision=15)
"""
CONTEXT = PythonModelContext({}, {})
Command = Callable[..., Mapping[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of coloured noise, and a shift."""
    root = tmp_path_factory.mktemp("images")
    noise_folder(root, SPLITS, CLASSES)
    return root


@pytest.fixture(scope="module")
def home(
    root: Path, tiny_clip_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Home]:
    """A home with the sweep `small`, kept in its own MLflow."""
    folder = tmp_path_factory.mktemp("sweep")
    methods = {"seeds": [0, 1], "baselines": ["zero_shot", "fine_tune"], "report": {"page": False}}
    optim = {"lr": 1e-3, "epochs": None, "steps": 1, "batch_size": 8}
    make_tiny(folder, tiny_clip_files, root)("small", [0.3], optim=optim, **methods)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
            patch.delenv(name, raising=False)
        patch.setenv("CARFT_HOME", str(folder / "home"))
        patch.chdir(folder)
        assert main(["run", "small.yaml", "--in-process", "--quiet"]) == 0
        yield Home(folder / "home")


@pytest.fixture
def command(home: Home, capsys: pytest.CaptureFixture[str]) -> Command:
    """`command("export", "small")`: the exit code, what was printed, and it as JSON if it is."""
    del home

    def run(*words: object) -> dict[str, Any]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return {"code": code, "out": out, "err": err, **(json.loads(out) if out[:1] == "{" else {})}

    return run


@pytest.fixture(scope="module")
def exported(home: Home) -> dict[str, Any]:
    words = ("--out", home.path.parent / "kept", "--mlflow", "--json")
    answer: dict[str, Any] = json.loads(printed_by("export", "small", *words))
    return answer


def uri(home: Home) -> str:
    return f"sqlite:///{home.path / 'mlflow.db'}"


def logged_models(home: Home) -> list[Any]:
    client = MlflowClient(uri(home))
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    return list(client.search_logged_models([experiment.experiment_id]))


def test_in_a_fresh_process_without_us_mlflow_gives_the_stored_predictions(
    home: Home, exported: dict[str, Any], root: Path, tmp_path: Path
) -> None:
    file = RunFolder(home.runs / exported["digest"]).predictions("unmerged")
    rows = [row for row in pq.read_table(file).to_pylist() if row["split"] != "id/val"]
    assert len(rows) == 3 * (SPLITS["test"] + SPLITS["shifts/dark"])
    texts = [base64_of((root / row["id"]).read_bytes()) for row in rows]
    (tmp_path / "images.json").write_text(json.dumps(texts))
    words = ("-c", ALONE + BY_MLFLOW, f"models:/{exported['model_id']}")
    known = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_TRACKING_URI": uri(home)}
    done = ended(sys.executable, *words, environ=os.environ | known, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    answers = json.loads((tmp_path / "answers.json").read_text())
    for row, answer in zip(rows, answers, strict=True):
        assert [[*CLASSES].index(guess["label"]) for guess in answer["top"]] == row["top5"]
        assert answer["label"] == [*CLASSES][row["prediction"]]
        assert answer["probability"] == pytest.approx(row["confidence"], abs=1e-5)


def test_the_kept_model_says_of_what_it_is_and_nothing_in_it_is_pickled(
    home: Home, exported: dict[str, Any]
) -> None:
    model = MlflowClient(uri(home)).get_logged_model(exported["model_id"])
    params = {"label": "unmerged", "algorithm": "car_ft", "algorithm.kl_weight": "0.3"}
    assert model.params == {**params, "seed": str(exported["seed"])}
    files = [file for file in Path(model.artifact_location).rglob("*") if file.is_file()]
    assert {file.name for file in files} >= {"MLmodel", "pyfunc_model.py", "head.safetensors"}
    for file in files:
        assert file.suffix not in {".pkl", ".pickle", ".pt", ".pth", ".bin"}, file
        content = file.read_bytes()
        assert content[:2] != b"PK", file
        assert not is_pickle(content), file
    requirements = next(file for file in files if file.name == "requirements.txt").read_text()
    assert f"torch=={torch.__version__.partition('+')[0]}\n" in requirements
    assert not [word for word in ("+", "carft") if word in requirements]


def is_pickle(content: bytes) -> bool:
    try:
        *_, last = pickletools.genops(content)
    except ValueError:
        return False
    return last[0].name == "STOP" and last[2] == len(content) - 1


def test_at_the_end_of_a_sweep_the_selected_model_is_kept_once_and_nothing_is_fatal(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec(home.path.parent / "small.yaml")
    results = comparison(find_ledger(home, "small"), RunStore(home.runs))
    (note,) = home.sweep("small").glob("sent/*.model.json")
    note.unlink()  # as if MLflow's answer had been lost
    assert "is in MLflow as models:/" in str(log_selected(home, spec, results))
    models = logged_models(home)
    assert len({model.tags["carft.evaluation"] for model in models}) == len(models)

    with mock.patch("carft_sweep.sweeps.results.export.Exporter.write") as written:
        assert log_selected(home, spec, results) is None
    written.assert_not_called()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    message = log_selected(home, spec, results) or ""
    assert message.startswith("the selected model is not in MLflow: ")
    assert message.endswith("carft-sweep export small --mlflow")


# The commands


def test_export_takes_the_selected_setting_and_the_median_seed(
    home: Home, command: Command, tmp_path: Path
) -> None:
    out = tmp_path / "model"
    done = command("export", "small", "--out", out)
    assert done["code"] == 0, done["err"]
    assert f"{out}: car_ft kl_weight=0.3, seed " in done["out"]
    assert "(the median of 2 by id/val/top1)" in done["out"]
    assert f'create_model_and_transforms("local-dir:{out}")' in done["out"]
    results = comparison(find_ledger(home, "small"), RunStore(home.runs))
    arm = next(row.arm for row in results.rows if row.selected)
    values = sorted(run.metrics["id/val/top1"] for run in arm.done)
    facts = json.loads((out / "carft.json").read_text())
    assert facts["metrics"]["id/val/top1"] == values[0]  # of two in the middle the lower


def test_export_takes_what_is_named(command: Command, tmp_path: Path) -> None:
    def export(name: str, words: str) -> Mapping[str, Any]:
        return command("export", "small", *words.split(), "--out", tmp_path / name, "--json")

    named = export("one", "--setting fine_tune --seed 1 --merge wise_ft@0.5")
    assert (named["setting"], named["seed"]) == ("fine_tune + wise_ft@0.5", 1)
    again = export("two", f"--run {named['digest'][:9]}")
    assert (again["digest"], again["label"]) == (named["digest"], "unmerged")
    words = ("export", "small", "--setting", "fine_tune + wise_ft@0.5", "--out", tmp_path / "three")
    assert command(*words, "--json")["label"] == "wise_ft@0.5"


def test_export_and_predict_tell_what_is_wrong(
    exported: dict[str, Any], command: Command, tmp_path: Path
) -> None:
    model = exported["folder"]
    for words, message in {
        "export smal": "no sweep 'smal' in .*; did you mean 'small'",
        "export small --setting fine_tun": "small 'fine_tun'; did you mean 'fine_tune'",
        "export small --seed 7": "has no run with seed 7. Its seeds: 0, 1",
        "export small --setting zero_shot --seed 0": "no seed changes zero_shot",
        "export small --seed one": "must be a whole number, got 'one'",
        "predict smal a.png": "smal is no folder that `carft-sweep export` made; .* sweep 'smal'",
        "predict smal b.png": "did you mean 'small'",
        f"predict {tmp_path} a.png": "holds no exported model: there is no carft.json",
        f"predict {model} {tmp_path}": "there is no image in",
        f"predict {model} a.png --device gpu": "--device must be auto, cpu, cuda",
        f"predict {model} a.png --top 0": "must be a whole number from 1 on",
    }.items():
        out = ("--out", tmp_path / "model") if words.startswith("export") else ()
        done = command(*words.split(), *out)
        assert done["code"] == 2
        assert re.search(message, done["err"]), done["err"]
        assert not (tmp_path / "model").exists()


@pytest.mark.usefixtures("home")
def test_predict_takes_an_export_or_a_sweep_and_files_or_folders(
    command: Command, root: Path, tmp_path: Path, cache: Path
) -> None:
    command("export", "small", "--out", tmp_path / "model")
    file = root / "test" / "cat" / "0.png"
    by_folder = command("predict", tmp_path / "model", root / "test", "--json")
    assert by_folder["code"] == 0
    assert len(by_folder["predictions"]) == 12
    by_sweep = command("predict", "small", file, "--top", 2, "--contexts", 0, "--json")
    (prediction,) = by_sweep["predictions"]
    same = next(item for item in by_folder["predictions"] if item["image"] == str(file))
    for guess, other in zip(prediction["classes"], same["classes"], strict=False):
        assert guess["class"] == other["class"]
        assert guess["probability"] == pytest.approx(other["probability"], abs=1e-5)
    assert (len(prediction["classes"]), prediction["contexts"]) == (2, [])
    (copy,) = (cache / "exports").iterdir()
    before = (copy / "carft.json").stat().st_mtime_ns
    text = command("predict", "small", file)["out"]
    assert (copy / "carft.json").stat().st_mtime_ns == before, "it was exported again"
    first, lines = prediction["classes"][0], text.splitlines()
    assert lines[0] == str(file)
    assert first["class"] in lines[1]
    assert f"{100 * first['probability']:.1f} %" in lines[1]
    assert "  seen as" in lines
    assert "…" in text
    assert "{}" not in text


@pytest.mark.usefixtures("cache")
def test_predict_answers_with_the_model_of_its_own_home_as_it_is(
    home: Home, exported: dict[str, Any], command: Command, root: Path, tmp_path: Path
) -> None:
    """Equal digests do not make equal weights: a home is copied, damaged, or made anew."""

    def guesses(model: object, *options: object) -> list[str]:
        file = root / "test" / "cat" / "0.png"
        (item,) = command("predict", model, file, "--top", 3, "--json", *options)["predictions"]
        return [guess["class"] for guess in item["classes"]]

    def roll_heads() -> None:
        for file in copy.glob("runs/*/weights/*.safetensors"):
            state = load_file(file)
            save_file({**state, "head.weight": state["head.weight"].roll(1, 0)}, file)

    copy = shutil.copytree(home.path, tmp_path / "copy")
    roll_heads()
    rolled = guesses("small", "--home", copy)
    assert guesses("small") == guesses(exported["folder"]) != rolled
    roll_heads()
    assert guesses("small", "--home", copy) != rolled


def test_predict_has_a_line_for_each_image_and_names_what_it_cannot_read(
    exported: dict[str, Any], command: Command, root: Path, tmp_path: Path
) -> None:
    images = sorted((root / "test").rglob("*.png"))
    predictions = command("predict", exported["folder"], root / "test", "--json")["predictions"]
    best = {item["image"]: item["classes"][0]["class"] for item in predictions}
    lines = command("predict", exported["folder"], root / "test")["out"].splitlines()
    for image, line in zip(images, lines, strict=True):
        assert line.startswith(f"{image} ")
        assert line.endswith(best[str(image)])
    detailed = command("predict", exported["folder"], root / "test", "--top", 2)["out"]
    assert detailed.splitlines().count("  seen as") == len(images)
    (tmp_path / "bad.png").write_text("no image")
    files = (tmp_path / "bad.png", images[0], tmp_path / "none.png")
    mixed = command("predict", exported["folder"], *files)
    assert mixed["code"] == 0
    for words in ("2 of 3 could not be read:", "bad.png cannot be read", "none.png cannot be read"):
        assert words in mixed["out"]
    assert command("predict", exported["folder"], tmp_path / "bad.png")["code"] == 1


def test_without_its_weights_it_is_told_how_to_get_them(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with exporter(home, "small") as models:
        chosen = select_model(models.comparison)
        known = models.config(chosen)
        monkeypatch.setattr(type(models), "has_weights", lambda *_: False)
        for keeps_weights, message in {
            True: r"are gone from its folder; .* carft-sweep run \S+ --fresh",
            False: r"are not kept \(trial.keep.weights: false\); .*=true --fresh",
        }.items():
            keep = known.keep.model_copy(update={"weights": keeps_weights})
            config = known.model_copy(update={"keep": keep})
            monkeypatch.setattr(type(models), "config", lambda *_, config=config: config)
            with pytest.raises(RequestError, match=message):
                models.write(chosen, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What is served


def test_sync_sends_the_selected_model_of_a_copied_home_and_one_that_a_server_missed(
    home: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (note,) = home.sweep("small").glob("sent/*.model.json")
    copy = Home(tmp_path / "copy")
    shutil.copytree(home.path, copy.path)
    capsys.readouterr()
    monkeypatch.chdir(tmp_path)  # not where the sweep was run
    assert main(["sync", "--home", "copy"]) == 0
    assert "the selected model is in MLflow as models:/" in capsys.readouterr().out
    (model,) = logged_models(copy)
    assert Path(str(model.artifact_location)).is_relative_to(copy.path / "mlartifacts")
    (again,) = copy.sweep("small").glob("sent/*.model.json")
    evaluations = [json.loads(file.read_text())["evaluation"] for file in (note, again)]
    assert evaluations[0] == evaluations[1]
    assert main(["sync", "--home", "copy"]) == 0
    assert "model" not in capsys.readouterr().out
    again.unlink()  # as at the end of a sweep whose server is away
    assert main(["sync", "--home", "copy"]) == 0
    assert "small: the selected model is in MLflow as models:/" in capsys.readouterr().out
    assert again.exists()


@pytest.fixture(scope="module")
def served(exported: dict[str, Any]) -> served_model.ServedModel:
    model = served_model.ServedModel()
    model.load_context(PythonModelContext({"model": exported["folder"]}, {}))
    return model


def strange_images() -> dict[str, bytes]:
    """Of every kind that is read in a way of its own."""
    rng = np.random.default_rng(1)
    colours = Image.fromarray(rng.integers(0, 256, (48, 33, 3), dtype=np.uint8))
    sixteen = Image.fromarray(rng.integers(0, 65536, (40, 40), dtype=np.uint16))
    clear = colours.copy()
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    turned = Image.Exif()
    turned[0x0112] = 6
    made: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "rgb.png": (colours, {}),
        "grey.png": (colours.convert("L"), {}),
        "cmyk.jpeg": (colours.convert("CMYK"), {}),
        "turned.jpeg": (colours, {"exif": turned}),
        "alpha.png": (clear, {}),
        "grey_alpha.png": (clear.convert("LA"), {}),
        "palette.gif": (colours.convert("P"), {"transparency": 3}),
        "sixteen.png": (sixteen, {}),
        "bits.png": (colours.convert("1"), {}),
        "page.webp": (clear, {"lossless": True}),
    }
    files = {}
    for name, (image, options) in made.items():
        image.save(file := io.BytesIO(), name.partition(".")[2], **options)
        files[name] = file.getvalue()
    return files


def test_what_is_served_says_what_predict_says_of_every_kind_of_image(
    exported: dict[str, Any], served: served_model.ServedModel
) -> None:
    files = strange_images()
    texts = [base64_of(content) for content in files.values()]
    texts[0] = f"data:image/png;base64,{texts[0][:40]}\n{texts[0][40:]}"
    table = served.predict(CONTEXT, pd.DataFrame({"image": texts}), {"top": 3, "contexts": 2})
    predictor = Predictor.load(Path(exported["folder"]), "cpu")
    predictions = predictor.predict([*files.values()], contexts=2)
    for name, row, prediction in zip(files, table.to_dict("records"), predictions, strict=True):
        assert [g["label"] for g in row["top"]] == [g.name for g in prediction.classes], name
        assert [g["context"] for g in row["contexts"]] == [g.name for g in prediction.contexts]
        for guess, other in zip(row["top"], prediction.classes, strict=True):
            assert guess["probability"] == pytest.approx(other.probability, abs=1e-5), name


GOOD = strange_images()["rgb.png"]


def base64_of(content: bytes) -> str:
    return base64.b64encode(content).decode()


def refused(
    served: served_model.ServedModel, images: list[object], message: str, **more: int
) -> None:
    with pytest.raises(MlflowException, match=message) as caught:
        served.predict(CONTEXT, pd.DataFrame({"image": images}), more or None)
    assert caught.value.get_http_status_code() == 400


def test_what_is_served_tells_the_row_that_is_wrong(served: served_model.ServedModel) -> None:
    good = base64_of(GOOD)
    for image, message in (
        ("%%%", "row 1: `image` is not base64"),
        (base64_of(b"hello"), "row 1: `image` is no image of a known format"),
        (base64_of(GOOD[:900]), "row 1: `image` is no readable image"),
        (7, "row 1: `image` is no text but int"),
        (base64_of(claimed_png(9000, 9000)), "9000 x 9000 pixels; at most 64 million are decoded"),
    ):
        refused(served, [good, image], message)
    refused(served, [good], "at least 1", top=0)
    refused(served, [], "there is no row")


def test_a_request_of_too_much_is_refused_whole(
    served: served_model.ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = base64_of(GOOD)
    monkeypatch.setattr(served_model, "BATCH", 2)
    assert len(served.predict(CONTEXT, pd.DataFrame({"image": [good] * 3}))) == 3
    for name, most in (("MOST_ROWS", 2), ("MOST_BYTES", 3 * len(good) - 1)):
        with monkeypatch.context() as patch:
            patch.setattr(served_model, name, most)
            refused(served, [good] * 3, "a request takes at most")
