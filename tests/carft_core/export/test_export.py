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
from tests.carft_core.trained import Config, same

MERGES = [{"name": "wise_ft", "alphas": [0.5]}]


@pytest.fixture(scope="module")
def config(toy_config: Config) -> TrialConfig:
    return toy_config({"algorithm": {"name": "car_ft"}, "merges": MERGES})


@pytest.fixture(scope="module")
def workdir(config: TrialConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    train(config, 0, workdir=folder)
    return folder


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
    assert contents(folder) == first
    assert [file.name for file in tmp_path.iterdir()] == ["model"]
    paths = [str(path).encode() for path in (toy_root, tmp_path, Path(config.model.name).parent)]
    assert not [path for path in paths for content in first.values() if path in content]


def test_no_field_tells_a_path_of_here(workdir: Path, toy_config: Config, tmp_path: Path) -> None:
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
    measured = MeasuredRow("zero_shot | plain", {"id/test/top1": 0.125, "ood/mean/top1": 0.25}, 3)
    export(workdir, config, tmp_path / "my-model", label="wise_ft@0.5", rows=[measured])
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


def test_another_model_is_replaced_only_by_force(
    workdir: Path, config: TrialConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where that fails, the old one is as it was."""
    folder = tmp_path / "model"
    export(workdir, config, folder)
    before = contents(folder)
    refused = r"holds another model \(unmerged of run \w{12}\).*force"
    with pytest.raises(RequestError, match=refused):
        export(workdir, config, folder, label="wise_ft@0.5")

    def full(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("carft_sweep.carft_core.export.export.write_json", full)
        with pytest.raises(OSError, match="disk full"):
            export(workdir, config, folder, label="wise_ft@0.5", force=True)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    export(workdir, config, folder, label="wise_ft@0.5", force=True)
    facts = read_facts(folder)
    assert facts is not None
    assert facts["label"] == "wise_ft@0.5"


def test_a_folder_with_anything_else_is_never_replaced(
    workdir: Path, config: TrialConfig, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for folder in (tmp_path, tmp_path / "thesis.tex"):
        for force in (False, True):
            with pytest.raises(RequestError, match="is there and is no exported model"):
                export(workdir, config, folder, force=force)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    (tmp_path / "carft.json").write_text('{"format": 7}')
    with pytest.raises(RequestError, match=r"carft\.json is not of format 1"):
        export(workdir, config, tmp_path)


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
        with pytest.raises(RequestError, match=words):
            export(run, toy_config(changes), tmp_path / "model", label=label)
    assert not (tmp_path / "model").exists()


def test_heads_come_from_the_kind_of_device_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    for claimed, gpus, expected in (("cpu", 0, "cpu"), ("cuda", 1, "cuda"), ("cuda", 0, "cpu")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        identity = {"device": claimed, "precision": "fp32"}
        assert _computing({"identity": identity})["device"] == expected
