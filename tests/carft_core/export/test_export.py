"""An exported model is the run's own: plain open_clip says of it what the run said."""

from __future__ import annotations

import json
import re
import shutil
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
from carft_sweep.carft_core.export.export import MeasuredRow, _computing, export, read_facts
from carft_sweep.carft_core.models.clip import open_model
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.training.loop import train
from tests.carft_core.models.test_clip import ARCHITECTURES
from tests.carft_core.trained import Config

MERGES = [{"name": "wise_ft", "alphas": [0.5]}]


@pytest.fixture(scope="module")
def config(toy_config: Config) -> TrialConfig:
    return toy_config({"algorithm": {"name": "car_ft"}, "merges": MERGES})


@pytest.fixture(scope="module")
def workdir(config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("run")
    train(config, 0, workdir=folder)
    return folder


def said(folder: Path, root: Path, split: str) -> tuple[torch.Tensor, list[str]]:
    """Logits of an export's images, by plain open_clip and a matrix."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    head = load_file(folder / "head.safetensors")["weight"]
    files = sorted((root / split).rglob("*.png"))
    images = torch.stack([preprocess(Image.open(file).convert("RGB")) for file in files])
    with torch.inference_mode():
        logits = model.eval().encode_image(images, normalize=True) @ head.T
    return logits, [str(file.relative_to(root)) for file in files]


def stored(workdir: Path, label: str, split: str) -> dict[str, dict[str, Any]]:
    rows = pq.read_table(RunFolder(workdir).predictions(label)).to_pylist()
    return {row["id"]: row for row in rows if row["split"] == split}


@pytest.mark.parametrize("label", ["unmerged", "wise_ft@0.5"])
def test_open_clip_gives_the_stored_predictions(
    workdir: Path, config: TrialConfig, toy_root: Path, tmp_path: Path, label: str
) -> None:
    export(workdir, config, tmp_path / "model", label=label)
    for split, folder in {"id/test": "test", "ood/dark": "shifts/dark"}.items():
        rows = stored(workdir, label, split)
        logits, ids = said(tmp_path / "model", toy_root, folder)
        assert set(ids) == set(rows)
        for row, values in zip((rows[name] for name in ids), logits, strict=True):
            assert torch.allclose(torch.tensor(row["logits"]), values, atol=0.02)
            assert row["prediction"] == int(values.argmax())


@pytest.mark.parametrize("architecture", ["resnet", "coca"])
def test_other_architectures_open_again_with_the_tuned_tower(
    toy_config: Config, toy_root: Path, tmp_path: Path, architecture: str
) -> None:
    start = tmp_path / "start"
    start.mkdir()
    model_cfg = ARCHITECTURES[architecture]
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
    (start / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": preprocess})
    )
    kind = open_clip.CoCa if "multimodal_cfg" in model_cfg else open_clip.CLIP
    torch.manual_seed(0)
    plain = {key: value for key, value in model_cfg.items() if key != "custom_text"}
    save_file(kind(**plain).state_dict(), start / "open_clip_model.safetensors")
    config = toy_config(
        {
            "model": {"name": str(start)},
            "algorithm": {"name": "fine_tune"},
            "optim": {"lr": 1e-3, "steps": 1, "batch_size": 8},
        }
    )
    train(config, 0, workdir=tmp_path / "run")
    export(tmp_path / "run", config, tmp_path / "model")
    logits, ids = said(tmp_path / "model", toy_root, "test")
    rows = stored(tmp_path / "run", "unmerged", "id/test")
    for row, values in zip((rows[name] for name in ids), logits, strict=True):
        assert torch.allclose(torch.tensor(row["logits"]), values, atol=0.02)
    before, after = open_model(str(start)), open_model(str(tmp_path / "model"))
    assert torch.equal(before.encode_text(["a bell"]), after.encode_text(["a bell"]))
    assert before.transform == after.transform


def test_a_zero_shot_row_can_be_exported_and_is_the_model_it_started_from(
    toy_config: Config, tiny_clip_files: Path, tmp_path: Path
) -> None:
    config = toy_config({"algorithm": "zero_shot"})
    train(config, 0, workdir=tmp_path / "run")
    export(tmp_path / "run", config, tmp_path / "model")
    before = load_file(tiny_clip_files / "open_clip_model.safetensors")
    after = load_file(tmp_path / "model" / "open_clip_model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_contexts_of_an_export_are_those_that_training_held(
    workdir: Path, config: TrialConfig, tmp_path: Path
) -> None:
    export(workdir, config, tmp_path / "model")
    told = json.loads((tmp_path / "model" / "classes.json").read_text())
    kept = load_file(tmp_path / "model" / "contexts.safetensors")
    clip = open_model(config.model.name)
    for row, template in zip(kept["w_ctx"], told["contexts"], strict=True):
        texts = [template.replace("{}", name) for name in told["classes"]]
        mean = clip.encode_text(texts).mean(dim=0)
        assert torch.allclose(row, mean / mean.norm(), atol=1e-6)
    assert float(kept["logit_scale"]) == pytest.approx(clip.logit_scale)


def test_the_same_export_again_has_the_same_files_and_no_path_of_this_machine(
    workdir: Path, config: TrialConfig, toy_root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    export(workdir, config, folder)
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    export(workdir, config, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    paths = [str(path).encode() for path in (toy_root, tmp_path, Path(config.model.name).parent)]
    for name, content in first.items():
        assert not [path for path in paths if path in content], name


def test_no_field_tells_a_path_of_this_machine(
    workdir: Path, toy_config: Config, tmp_path: Path
) -> None:
    tuned = {"name": "from_checkpoint", "weights": str(RunFolder(workdir).weights("last"))}
    evaluation = {"retention_root": str(tmp_path / "moved")}
    config = toy_config({"algorithm": tuned, "eval": evaluation})
    train(config, 0, workdir=tmp_path / "run")
    export(tmp_path / "run", config, tmp_path / "model")
    texts = [(tmp_path / "model" / name).read_text() for name in ("README.md", "carft.json")]
    assert all("last.safetensors" in text for text in texts)
    assert not any(str(path.parent) in text for path in (workdir, tmp_path) for text in texts)


def test_the_card_is_one_of_the_hub_and_holds_what_was_measured(
    workdir: Path, config: TrialConfig, tmp_path: Path
) -> None:
    other = MeasuredRow("zero_shot | plain", {"id/test/top1": 0.125, "ood/mean/top1": 0.25}, 3)
    export(workdir, config, tmp_path / "my-model", label="wise_ft@0.5", rows=[other])
    text = (tmp_path / "my-model" / "README.md").read_text()
    metrics = json.loads(RunFolder(workdir).metrics("wise_ft@0.5").read_text())["metrics"]
    data = ModelCard(text).data
    assert isinstance(data, ModelCardData)
    assert data.model_name == "my-model"
    assert data.license == "other"
    results = {result.dataset_config: result.metric_value for result in data.eval_results or []}
    splits = ("id/test", "ood/dark", "ood/pale")
    assert results == {split: metrics[f"{split}/top1"] for split in splits}
    row = next(line for line in text.splitlines() if line.startswith("| **this model**"))
    assert f"| {100 * metrics['id/test/top1']:.1f} | {100 * metrics['ood/dark/top1']:.1f} |" in row
    assert r"| zero_shot \| plain | 3 |  | 12.5 |  |  | 25.0 |  |" in text
    facts = read_facts(tmp_path / "my-model")
    assert facts is not None
    assert facts["digest"] in text


def test_the_lines_of_the_card_do_what_they_say(
    workdir: Path,
    config: TrialConfig,
    toy_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    export(workdir, config, tmp_path / "model")
    file = toy_root / "test" / "cat" / "0.png"
    shutil.copy(file, tmp_path / "model" / "image.png")
    card = (tmp_path / "model" / "README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", card, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path / "model")
    exec(compile(code, "README.md", "exec"), {})
    name, probability = capsys.readouterr().out.split()
    row = stored(workdir, "unmerged", "id/test")["test/cat/0.png"]
    assert name == ("anchor", "bell", "cat")[row["prediction"]]
    assert float(probability) == pytest.approx(row["confidence"], abs=1e-5)


# What is refused


def test_another_model_is_replaced_only_by_force(
    workdir: Path, config: TrialConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    export(workdir, config, folder)
    with pytest.raises(
        RequestError, match=r"holds another model \(unmerged of run \w{12}\).*force"
    ):
        export(workdir, config, folder, label="wise_ft@0.5")
    export(workdir, config, folder, label="wise_ft@0.5", force=True)
    facts = read_facts(folder)
    assert facts is not None
    assert facts["label"] == "wise_ft@0.5"


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_anything_else_is_never_replaced(
    workdir: Path, config: TrialConfig, tmp_path: Path, force: bool
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(RequestError, match="is there and is no exported model"):
        export(workdir, config, tmp_path, force=force)
    with pytest.raises(RequestError, match="is there and is no exported model"):
        export(workdir, config, tmp_path / "thesis.tex", force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_export_of_another_format_is_named(
    workdir: Path, config: TrialConfig, tmp_path: Path
) -> None:
    (tmp_path / "carft.json").write_text('{"format": 7}')
    with pytest.raises(RequestError, match=r"carft\.json is not of format 1"):
        export(workdir, config, tmp_path)


def test_an_empty_folder_is_filled(workdir: Path, config: TrialConfig, tmp_path: Path) -> None:
    export(workdir, config, tmp_path)
    assert read_facts(tmp_path)


def test_an_unknown_label_is_told_with_the_nearest(
    workdir: Path, config: TrialConfig, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=r"unknown model of this run 'wise_ft@.5'; did you mean"):
        export(workdir, config, tmp_path / "model", label="wise_ft@.5")


def test_a_model_that_was_not_measured_is_not_exported(
    workdir: Path, toy_config: Config, tmp_path: Path
) -> None:
    more = toy_config({"merges": [{"name": "wise_ft", "alphas": [0.25, 0.5]}]})
    with pytest.raises(RequestError, match=r"no evaluation of wise_ft@0\.25"):
        export(workdir, more, tmp_path / "model", label="wise_ft@0.25")


def test_weights_that_are_not_kept_cannot_be_exported(toy_config: Config, tmp_path: Path) -> None:
    config = toy_config({"optim": {"lr": 1e-3, "steps": 1}, "keep": {"weights": False}})
    train(config, 0, workdir=tmp_path / "run")
    with pytest.raises(
        RequestError, match=r"are not kept \(keep\.weights: false\); train it again"
    ):
        export(tmp_path / "run", config, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_model_that_is_another_now_is_refused(
    workdir: Path, toy_config: Config, tmp_path: Path
) -> None:
    now = toy_config({"merges": MERGES, "prompts": {"classes": "openai", "contexts": "simple"}})
    with pytest.raises(
        RequestError, match=r"trained with something else: prompts\.classes changed"
    ):
        export(workdir, now, tmp_path / "model")


def test_a_failure_leaves_the_export_that_was_there(
    workdir: Path, config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(workdir, config, tmp_path / "model")
    before = {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()}

    def full(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("carft_sweep.carft_core.export.export.write_json", full)
    with pytest.raises(OSError, match="disk full"):
        export(workdir, config, tmp_path / "model", label="wise_ft@0.5", force=True)
    assert {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_heads_come_from_the_kind_of_device_that_the_run_computed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def claimed(kind: str) -> dict[str, Any]:
        return {"identity": {"device": kind, "precision": "fp32"}}

    assert _computing(claimed("cpu"))["device"] == "cpu"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert _computing(claimed("cuda"))["device"] == "cuda"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert _computing(claimed("cuda"))["device"] == "cpu"
