"""An exported model is the run's own: plain open_clip and the predictor say of it what it said."""

from __future__ import annotations

import io
import json
import math
import os
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pyarrow.parquet as pq
import pytest
import torch
from huggingface_hub import ModelCard, ModelCardData
from PIL import Image
from safetensors.torch import load_file, save_file

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.export import predictor as module
from carft_sweep.carft_core.export.export import MeasuredRow, _computing, export, read_facts
from carft_sweep.carft_core.export.predictor import Picture, Prediction, Predictor, read_image
from carft_sweep.carft_core.files import read_json, write_json
from carft_sweep.carft_core.models.clip import open_model
from carft_sweep.carft_core.runs.folder import RunFolder, load_weights, save_weights
from carft_sweep.carft_core.training.loop import train
from carft_sweep.carft_core.training.setup import open_setup
from tests.carft_core.models.test_clip import ARCHITECTURES
from tests.carft_core.refusals import refused
from tests.carft_core.stand_ins import failing
from tests.carft_core.trained import Config, same, weights

CLASSES = ("anchor", "bell", "cat")
MERGES = [{"name": "wise_ft", "alphas": [0.5]}]


@pytest.fixture(scope="module")
def config(toy_config: Config) -> TrialConfig:
    return toy_config({"algorithm": {"name": "car_ft"}, "merges": MERGES})


@pytest.fixture(scope="module")
def workdir(config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(config, 0, workdir=folder)
    return folder


@pytest.fixture(scope="module")
def exported(workdir: Path, config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's export; it is shared: copy it before a change."""
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(workdir, config, folder)
    return folder


@pytest.fixture(scope="module")
def predictor(exported: Path) -> Predictor:
    return Predictor.load(exported, "cpu")


@pytest.fixture(scope="module")
def image(toy_root: Path) -> Path:
    return next((toy_root / "test").rglob("*.png"))


def classified(folder: Path, root: Path, split: str) -> tuple[torch.Tensor, list[str]]:
    """Logits of an export's images, by plain open_clip and a matrix."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    head = load_file(folder / "head.safetensors")["weight"]
    files = sorted((root / split).rglob("*.png"))
    images = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        logits = model.eval().encode_image(images, normalize=True) @ head.T
    return logits, [str(file.relative_to(root)) for file in files]


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def stored(workdir: Path, label: str, split: str) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(RunFolder(workdir).predictions(label)).to_pylist()
    return {row["id"]: row for row in rows if row["split"] == split}


def check_said(exported: Path, workdir: Path, root: Path, label: str = "unmerged") -> None:
    """Plain open_clip says of an export what the run has stored."""
    for split, folder in {"id/test": "test", "ood/dark": "shifts/dark"}.items():
        rows = stored(workdir, label, split)
        logits, ids = classified(exported, root, folder)
        assert set(ids) == set(rows)
        for row, values in zip((rows[name] for name in ids), logits, strict=True):
            assert torch.allclose(torch.tensor(row["logits"]), values, atol=0.02)
            assert row["prediction"] == int(values.argmax())


def test_open_clip_gives_the_stored_predictions(
    workdir: Path, config: TrialConfig, toy_root: Path, tmp_path: Path
) -> None:
    for label in ("unmerged", "wise_ft@0.5"):
        export(workdir, config, tmp_path / label, label=label)
        check_said(tmp_path / label, workdir, toy_root, label)


@pytest.mark.parametrize("architecture", ["resnet", "coca"])
def test_other_architectures_open_again_with_the_tuned_tower(
    toy_config: Config, toy_root: Path, tmp_path: Path, architecture: str
) -> None:
    start, run, exported = (tmp_path / name for name in ("start", "run", "model"))
    start.mkdir()
    model_cfg = ARCHITECTURES[architecture]
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    written = json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess})
    (start / "open_clip_config.json").write_text(written)
    kind = open_clip.CoCa if "multimodal_cfg" in model_cfg else open_clip.CLIP
    torch.manual_seed(0)
    plain = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    save_file(kind(**plain).state_dict(), start / "open_clip_model.safetensors")
    fields = {"model": {"name": str(start)}, "algorithm": "fine_tune"}
    config = toy_config({**fields, "optim": {"lr": 1e-3, "steps": 1, "batch_size": 8}})
    train(config, 0, workdir=run)
    export(run, config, exported)
    check_said(exported, run, toy_root)
    before, after = open_model(str(start)), open_model(str(exported))
    assert torch.equal(before.encode_text(["a bell"]), after.encode_text(["a bell"]))
    assert before.transform == after.transform


def test_a_zero_shot_row_can_be_exported_and_is_the_model_it_started_from(
    toy_config: Config, tiny_clip_files: Path, tmp_path: Path
) -> None:
    config = toy_config({"algorithm": "zero_shot"})
    train(config, 0, workdir=tmp_path / "run")
    export(tmp_path / "run", config, tmp_path / "model")
    folders = (tiny_clip_files, tmp_path / "model")
    assert same(*(load_file(folder / "open_clip_model.safetensors") for folder in folders))


def test_the_contexts_are_those_of_training(
    workdir: Path, config: TrialConfig, tmp_path: Path
) -> None:
    export(workdir, config, tmp_path)  # an empty folder is filled
    written = json.loads((tmp_path / "classes.json").read_text())
    stored = load_file(tmp_path / "contexts.safetensors")
    clip = open_model(config.model.name)
    for row, template in zip(stored["w_ctx"], written["contexts"], strict=True):
        texts = [template.replace("{}", name) for name in written["classes"]]
        mean = clip.encode_text(texts).mean(dim=0)
        assert torch.allclose(row, mean / mean.norm(), atol=1e-6)
    assert float(stored["logit_scale"]) == pytest.approx(clip.logit_scale)


def test_the_same_export_again_has_the_same_files_and_no_path_of_this_machine(
    workdir: Path, config: TrialConfig, toy_root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    export(workdir, config, folder)
    first = contents(folder)
    export(workdir, config, folder)
    assert (contents(folder), [path.name for path in tmp_path.iterdir()]) == (first, ["model"])
    paths = [str(path).encode() for path in (toy_root, tmp_path, Path(config.model.name).parent)]
    assert not [path for path in paths for content in first.values() if path in content]


def test_no_field_tells_a_path_of_here(workdir: Path, toy_config: Config, tmp_path: Path) -> None:
    tuned = {"name": "from_checkpoint", "weights": str(RunFolder(workdir).weights("last"))}
    config = toy_config({"algorithm": tuned, "eval": {"retention_root": str(tmp_path / "moved")}})
    train(config, 0, workdir=tmp_path / "run")
    export(tmp_path / "run", config, tmp_path / "model")
    texts = [(tmp_path / "model" / name).read_text() for name in ("README.md", "carft.json")]
    assert all("last.safetensors" in text for text in texts)
    assert not any(str(path.parent) in text for path in (workdir, tmp_path) for text in texts)


def test_the_card_is_one_of_the_hub_and_holds_what_was_measured(
    workdir: Path, config: TrialConfig, tmp_path: Path
) -> None:
    measured = MeasuredRow("zero_shot | plain", {"id/test/top1": 0.125, "ood/mean/top1": 0.25}, 3)
    export(workdir, config, tmp_path / "my-model", label="wise_ft@0.5", rows=[measured])
    text = (tmp_path / "my-model" / "README.md").read_text()
    metrics = json.loads(RunFolder(workdir).metrics("wise_ft@0.5").read_text())["metrics"]
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    assert (data.model_name, data.license) == ("my-model", "other")
    results = {result.dataset_config: result.metric_value for result in data.eval_results or []}
    splits = ("id/test", "ood/dark", "ood/pale")
    assert results == {split: metrics[f"{split}/top1"] for split in splits}
    row = next(line for line in text.splitlines() if line.startswith("| **this model**"))
    assert f"| {100 * metrics['id/test/top1']:.1f} | {100 * metrics['ood/dark/top1']:.1f} |" in row
    assert r"| zero_shot \| plain | 3 |  | 12.5 |  |  | 25.0 |  |" in text
    assert (read_facts(tmp_path / "my-model") or {})["digest"] in text


def test_the_lines_of_the_card_do_what_they_say(
    workdir: Path,
    exported: Path,
    toy_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    shutil.copy(toy_root / "test" / "cat" / "0.png", folder / "image.png")
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(folder)
    exec(compile(code, "README.md", "exec"), {})
    name, probability = capsys.readouterr().out.split()
    row = stored(workdir, "unmerged", "id/test")["test/cat/0.png"]
    assert name == CLASSES[row["prediction"]]
    assert float(probability) == pytest.approx(row["confidence"], abs=1e-5)


def test_another_model_is_replaced_only_by_force(
    workdir: Path, config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    export(workdir, config, folder)
    before = contents(folder)
    words = r"holds another model \(unmerged of run \w{12}\).*force"
    refused(words, export, workdir, config, folder, label="wise_ft@0.5")
    with monkeypatch.context() as patch:
        full = failing(OSError("disk full"))
        patch.setattr("carft_sweep.carft_core.export.export.write_json", full)
        with pytest.raises(OSError, match="disk full"):
            export(workdir, config, folder, label="wise_ft@0.5", force=True)
    assert (contents(folder), [path.name for path in tmp_path.iterdir()]) == (before, ["model"])
    export(workdir, config, folder, label="wise_ft@0.5", force=True)
    assert (read_facts(folder) or {})["label"] == "wise_ft@0.5"


def test_a_folder_with_anything_else_is_never_replaced(
    workdir: Path, config: TrialConfig, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    words = "is there and is no exported model"
    for folder in (tmp_path, tmp_path / "thesis.tex"):
        for force in (False, True):
            refused(words, export, workdir, config, folder, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "carft.json").write_text('{"format": 7}')
    refused(r"carft\.json is not of format 1", export, workdir, config, tmp_path)


def test_what_is_not_kept_is_refused(workdir: Path, toy_config: Config, tmp_path: Path) -> None:
    more = [{"name": "wise_ft", "alphas": [0.25, 0.5]}]
    prompts = {"classes": "openai", "contexts": "simple"}
    lean = {"optim": {"lr": 1e-3, "steps": 1}, "keep": {"weights": False}}
    train(toy_config(lean), 0, workdir=tmp_path / "lean")
    cases: list[tuple[Path, dict[str, Any], str, str]] = [
        (workdir, {"merges": MERGES}, "wise_ft@.5", "unknown model .* 'wise_ft@.5'; did you mean"),
        (workdir, {"merges": more}, "wise_ft@0.25", r"no evaluation of wise_ft@0\.25"),
        (workdir, {"prompts": prompts}, "unmerged", r"something else: prompts\.classes changed"),
        (tmp_path / "lean", lean, "unmerged", r"not kept \(keep\.weights: false\); train it again"),
    ]
    for run, changes, label, words in cases:
        refused(words, export, run, toy_config(changes), tmp_path / "model", label=label)
    assert not (tmp_path / "model").exists()


def test_heads_come_from_the_kind_of_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for claimed, gpus, expected in (("cpu", 0, "cpu"), ("cuda", 1, "cuda"), ("cuda", 0, "cpu")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        identity = {"device": claimed, "precision": "fp32"}
        assert _computing({"identity": identity})["device"] == expected


@pytest.mark.parametrize("form", [Path, Path.read_bytes, Image.open])
def test_it_says_of_every_image_what_the_run_said(
    workdir: Path, predictor: Predictor, toy_root: Path, form: Callable[[Path], Picture]
) -> None:
    rows = stored(workdir, "unmerged", "id/test").values()
    assert len(rows) == 12
    predictions = predictor.predict([form(toy_root / row["id"]) for row in rows])
    for row, prediction in zip(rows, predictions, strict=True):
        assert [CLASSES.index(guess.name) for guess in prediction.classes] == row["top5"]
        assert prediction.classes[0].probability == pytest.approx(row["confidence"], abs=1e-5)
        assert sum(guess.probability for guess in prediction.classes) == pytest.approx(1)


def test_contexts_are_the_softmax_over_the_templates(
    workdir: Path, predictor: Predictor, config: TrialConfig, toy_root: Path
) -> None:
    setup = open_setup(config)
    teacher, test = setup.teacher, setup.data.id_test
    classifier = teacher.new_classifier()
    classifier.load_state_dict(weights(workdir))
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
    (prediction,) = predictor.predict([str(image)], top=99, contexts=0)
    assert ({guess.name for guess in prediction.classes}, prediction.contexts) == (set(CLASSES), ())
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
    moved = Predictor.load(str(shutil.copytree(exported, tmp_path / "elsewhere")))
    assert moved.predict([image])[0] == predictor.predict([image])[0]


def test_what_is_no_export_is_told(exported: Path, tmp_path: Path) -> None:
    refused(r"holds no exported model: there is no carft\.json", Predictor.load, tmp_path)
    for name in ("classes.json", "head.safetensors", "contexts.safetensors"):
        folder = shutil.copytree(exported, tmp_path / name)
        (folder / name).unlink()
        refused(f"is not whole: there is no {name}", Predictor.load, folder)


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
    folder = shutil.copytree(exported, tmp_path / "model")
    file = folder / (name if "." in name else "open_clip_config.json")
    if file.suffix == ".json":
        write_json(file, {**read_json(file), **change})
    else:
        tensors = {**load_weights(file), **change}
        save_weights(file, {key: value for key, value in tensors.items() if value is not None})
    refused(name, Predictor.load, folder)


def test_an_export_whose_files_do_not_fit_together_is_named(exported: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(exported, tmp_path / "model")
    file = folder / "open_clip_model.safetensors"
    tensors = load_weights(file)
    save_weights(file, {name: torch.full_like(value, 1e38) for name, value in tensors.items()})
    refused(r"model: the model gives NaN", Predictor.load, folder)
    file = folder / "contexts.safetensors"
    save_weights(file, {**load_weights(file), "logit_scale": torch.zeros(2)})
    refused(r"model: its files do not fit together", Predictor.load, folder)


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
    errors = [place for place, outcome in enumerate(outcomes) if isinstance(outcome, RequestError)]
    assert (errors, len(outcomes)) == ([0, 65], 67)
    (alone,) = predictor.predict([image], top=1)
    for outcome in (outcomes[1], outcomes[-1]):
        assert isinstance(outcome, Prediction)
        assert outcome.classes[0].name == alone.classes[0].name


def test_what_is_no_image_is_told(tmp_path: Path) -> None:
    refused("no image of a known format", read_image, b"hello")
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    refused("cannot be read", read_image, file.getvalue()[:1500])
    refused(r"none\.png cannot be read as an image", read_image, tmp_path / "none.png")
    os.mkfifo(tmp_path / "pipe.png")
    refused(r"pipe\.png .*not a regular file", read_image, tmp_path / "pipe.png")
