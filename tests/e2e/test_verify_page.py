"""The page that says how to check the evaluation with WiSE-FT's checkpoints can be followed."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from carft_sweep.carft_core.training.setup import open_setup
from carft_sweep.sweeps.spec.spec import load_spec
from tests.e2e.conftest import printed_by

PAGE = (Path(__file__).parents[2] / "docs" / "verify.md").read_text()
NAMES = ("zeroshot", "checkpoint_10")
MODELING = """
import pickle
import torch

class ImageEncoder(torch.nn.Module):
    pass

class ImageClassifier(torch.nn.Module):
    def save(self, file):
        with open(file, "wb") as out:
            pickle.dump(self, out)

    @classmethod
    def load(cls, file):
        with open(file, "rb") as kept:
            return pickle.load(kept)
"""
"""The classes whose objects WiSE-FT pickles, as far as the page uses them."""

DRM = {
    "args.py": "from types import SimpleNamespace\n\ndef parse_arguments():\n"
    "    return SimpleNamespace(checkpoint_path='clip.pt')\n",
    "models/modeling.py": "import torch\n\nclass CLIPEncoder:\n    @classmethod\n"
    "    def load(cls, file):\n        encoder = cls()\n"
    "        encoder.model = torch.load(file, weights_only=False)\n        return encoder\n",
    "models/zeroshot.py": "import torch\n\ndef get_zeroshot_classifier(args, clip):\n"
    "    return torch.load('heads.pt', weights_only=False)\n",
}
"""Likewise of DRM's code."""


def block(language: str, part: str) -> str:
    """The one of this language that has this in it."""
    blocks = re.findall(rf"^ *```{language}\n(.*?)^ *```", PAGE, re.MULTILINE | re.DOTALL)
    (content,) = (text for text in blocks if part in text)
    return content


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module that the page imports and a place for the two files."""
    (tmp_path / "src" / "models").mkdir(parents=True)
    (tmp_path / "src" / "models" / "modeling.py").write_text(MODELING)
    (tmp_path / "models" / "vit-16").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "src"]:
        sys.modules.pop(name, None)


def test_the_page_can_be_followed_with_checkpoints_in_wise_fts_layout(
    checkout: Path, imagenet_root: Path, tiny_clip_files: Path
) -> None:
    file, changes = on_tiny_images(checkout, imagenet_root, tiny_clip_files)
    _pickle_models(changes, file)
    exec(compile(block("python", "ImageClassifier"), "docs/verify.md", "exec"), {})
    for name in NAMES:
        state = torch.load(f"{name}.state.pt")  # tensors alone, or this refuses it
        assert state["classification_head.bias"].abs().max() == 0
    outputs = []
    for line in block("sh", "run verify_wise_ft").splitlines():
        _, command, *words = shlex.split(line)
        if command != "compare":
            changed = (word for change in changes for word in ("--set", change))
            words = [*words[:1], *["--in-process"][: command == "run"], *changed]
        if "--columns" in words:  # of the shifts that are measured here
            words[words.index("--columns") + 1] = "id/test/top1,ood/mean/top1,ood/a/top1"
        outputs.append(printed_by(command, *words, "--home", checkout / "home"))
    assert all(f"{name}.state.pt" in outputs[2] for name in NAMES)
    assert "oracle" in outputs[3]
    nll = nll_of_rows(checkout)
    theirs, tuned = (nll[f"from_checkpoint #{number}"] for number, _ in enumerate(NAMES))
    assert theirs == pytest.approx(nll["zero_shot"], rel=1e-6)
    assert tuned != pytest.approx(nll["zero_shot"], rel=1e-2)


def test_the_heads_of_drm_become_rows(
    checkout: Path, imagenet_root: Path, tiny_clip_files: Path
) -> None:
    file, changes = on_tiny_images(checkout, imagenet_root, tiny_clip_files)
    for name, code in DRM.items():
        (checkout / "src" / name).write_text(code)
    (zero_shot,) = load_spec(file, changes).baseline_configs()
    teacher = open_setup(zero_shot.config).teacher
    defaults = teacher.classifier.head
    concepts = torch.nn.Linear(defaults.in_features, defaults.out_features)
    torch.save(teacher.clip.model, "clip.pt")
    torch.save((concepts, defaults), "heads.pt")
    exec(compile(block("python", "CLIPEncoder"), "docs/verify.md", "exec"), {})
    weights = "parameters.algorithm.weights.values=[defaults.state.pt, concepts.state.pt]"
    changes += [weights, "merges=[]"]
    words = [word for change in changes for word in ("--set", change)]
    printed_by("run", file, *words, "--in-process", "--home", checkout / "home")
    nll = nll_of_rows(checkout)
    assert nll["from_checkpoint #0"] == pytest.approx(nll["zero_shot"], rel=1e-6)
    assert nll["from_checkpoint #1"] != pytest.approx(nll["zero_shot"], rel=1e-2)


def on_tiny_images(checkout: Path, root: Path, clip: Path) -> tuple[Path, list[str]]:
    """The page's sweep file, and the changes with which it runs here."""
    file = checkout / "verify_wise_ft.yaml"
    file.write_text(block("yaml", "verify_wise_ft"))
    tiny = {"model": f"{{name: {clip}}}", "data.root": str(root), "data.shifts": "[a]"}
    tiny |= {"merges": "[{name: wise_ft, alphas: [0.5]}]", "workers": "0", "device": "cpu"}
    tiny |= {"prompts": "{classes: class_only, contexts: class_only}"}
    tiny |= {"report": "{page: false, model: false}"}
    return file, [f"{name}={value}" for name, value in tiny.items()]


def nll_of_rows(checkout: Path) -> dict[str, float]:
    """By label, as `compare` prints it."""
    words = ("compare", "verify_wise_ft", "--json", "--home", checkout / "home")
    rows = json.loads(printed_by(*words))["rows"]
    return {row["label"]: row["metrics"]["id/test/nll"]["mean"] for row in rows}


def _pickle_models(overrides: list[str], file: Path) -> None:
    """Put a zero-shot and a tuned model where the page expects them; the head of one has a bias."""
    modeling = importlib.import_module("src.models.modeling")
    (zero_shot,) = load_spec(file, overrides).baseline_configs()
    teacher = open_setup(zero_shot.config).teacher
    torch.manual_seed(0)
    classes, width = teacher.classifier.head.weight.shape
    for name in NAMES:
        tuned = name == "checkpoint_10"
        classifier = teacher.new_classifier()
        for parameter in classifier.parameters() if tuned else ():
            parameter.data += 0.1 * torch.randn_like(parameter)
        whole, encoder = modeling.ImageClassifier(), modeling.ImageEncoder()
        encoder.model = torch.nn.ModuleDict({"visual": classifier.visual})
        whole.image_encoder = encoder
        whole.classification_head = torch.nn.Linear(width, classes)
        whole.classification_head.weight.data.copy_(classifier.head.weight)
        whole.classification_head.bias.data.fill_(0.1 * tuned)
        whole.save(file.parent / "models" / "vit-16" / f"{name}.pt")
