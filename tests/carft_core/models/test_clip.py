"""An opened CLIP is open_clip's own model, frozen; its classifier sees what open_clip sees."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import huggingface_hub
import open_clip
import pytest
import timm
import torch
from open_clip import factory
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models import clip as clip_module
from carft_sweep.carft_core.models import source
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.models.clip import OpenedClip, open_model, weights_digest
from tests.carft_core.refusals import refused
from tests.carft_core.stand_ins import failing
from tests.carft_core.trained import same
from tests.tiny_vit import TINY_CONFIG

TEXTS = ["a photo of a cat", "an icon of a dog", "é", "a " * 70]
TINY = "tiny-test-ViT"
HALF = (0.5, 0.5, 0.5)
VISION, TEXT = TINY_CONFIG["vision_cfg"], TINY_CONFIG["text_cfg"]
DIGESTS = {
    ("builtin", None): "a7c89c27e081c138",
    ("ViT-B-16", "openai"): "0e9eb6e7f15aa54f",
    ("ViT-B-32", "laion2b_s34b_b79k"): "d50fec2ce50b080f",
    ("RN50", "openai"): "89e0e0c5eea6d714",
    ("ViT-B-16-SigLIP", "webli"): "e1bb41ac8acb9863",
}
TIMM = {
    **{"timm_model_name": "test_convnext", "timm_model_pretrained": True},
    **{"timm_pool": "", "timm_proj": "linear"},
}
RESNET = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "vit": TINY_CONFIG,
    "vit_quickgelu": {**TINY_CONFIG, "quick_gelu": True},
    "resnet": {**TINY_CONFIG, "vision_cfg": RESNET},
    "convnext": {**TINY_CONFIG, "vision_cfg": {"image_size": 32, **TIMM}},
    "siglip": {
        **TINY_CONFIG,
        "init_logit_bias": -10,
        "custom_text": True,
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    },
    "coca": {
        "embed_dim": 32,
        "custom_text": True,
        "multimodal_cfg": {**TEXT, "context_length": 76, "dim_head": 16, "mlp_ratio": 4},
        "vision_cfg": {**VISION, "attentional_pool": True, "output_tokens": True},
        "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
    },
}
Pair = tuple[OpenedClip, nn.Module]
Edit = Callable[..., Path]


def images(count: int = 3, size: int = 32) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module", params=ARCHITECTURES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """A folder opened by us and by open_clip, for each kind of tower."""
    folder = tmp_path_factory.mktemp(request.param)
    config = {"model_cfg": ARCHITECTURES[request.param]}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        made = factory.create_model(f"local-dir:{folder}", load_weights=False)
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()  # type: ignore[union-attr]
    torch.save(made.state_dict(), folder / "open_clip_pytorch_model.bin")
    return open_model(str(folder)), factory.create_model(f"local-dir:{folder}").eval()


@pytest.fixture
def edited(tiny_clip_files: Path, tmp_path: Path) -> Edit:
    """`edited("text_cfg", width=8)`: the tiny model in a folder of its own, with another config."""

    def edit(section: str, **fields: object) -> Path:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        shutil.copytree(tiny_clip_files, folder, dirs_exist_ok=True)
        config = json.loads((folder / "open_clip_config.json").read_text())
        model = config["model_cfg"]
        {"": config, "model_cfg": model, **model}[section].update(fields)
        (folder / "open_clip_config.json").write_text(json.dumps(config))
        return folder

    return edit


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The tiny architecture under a name that open_clip knows for one test."""
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", [*factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", {**factory._MODEL_CONFIGS})
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / f"{TINY}.json").write_text(json.dumps(ARCHITECTURES["vit"]))
    open_clip.add_model_config(tmp_path / "configs")
    return TINY


@pytest.fixture
def state(tiny_clip_files: Path) -> dict[str, Tensor]:
    return load_file(tiny_clip_files / "open_clip_model.safetensors")


def test_images_and_texts_are_encoded_and_classified_as_by_open_clip(pair: Pair) -> None:
    ours, theirs = pair
    head = nn.Linear(32, len(TEXTS), bias=False)
    with torch.no_grad():
        head.weight.copy_(ours.logit_scale * ours.encode_text(TEXTS))
        image = theirs.encode_image(images(), normalize=True)  # type: ignore[operator]
        text = theirs.encode_text(ours.tokenizer(TEXTS), normalize=True)  # type: ignore[operator]
        scale = theirs.logit_scale.exp()  # type: ignore[operator]
    classifier = ImageClassifier(ours.image_tower, head)
    # The same weights elsewhere in memory may add up in another order: not equal to the last bit.
    assert torch.allclose(classifier.features(images()), image, atol=1e-6)
    assert torch.allclose(ours.encode_text(TEXTS), text, atol=1e-6)
    assert ours.logit_scale == pytest.approx(float(scale))
    assert torch.allclose(classifier(images()), scale * image @ text.T, atol=1e-4)


def test_an_opened_clip_is_frozen_in_eval_mode_and_float32_and_can_be_trained(pair: Pair) -> None:
    model = pair[0].model
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    kinds = {(value.dtype, value.device.type) for value in model.state_dict().values()}
    assert kinds <= {(torch.float32, "cpu"), (torch.int64, "cpu")}
    visual = copy.deepcopy(pair[0].image_tower)
    classifier = ImageClassifier(visual, nn.Linear(32, 3, bias=False)).requires_grad_(True)
    F.cross_entropy(classifier(images()), torch.tensor([0, 1, 2])).backward()
    assert [name for name, value in classifier.named_parameters() if value.grad is None] == []


def test_an_open_clip_name_opens_with_a_training_checkpoint_as_by_open_clip(
    registered: str, state: dict[str, Tensor], tiny_clip: OpenedClip, tmp_path: Path
) -> None:
    path = tmp_path / "training.pt"
    prefixed = {f"module.{key}": value for key, value in state.items()}
    torch.save({"epoch": 1, "name": "x", "state_dict": prefixed, "optimizer": {}}, path)
    ours = open_model(registered, str(path))
    assert same(ours.model.state_dict(), tiny_clip.model.state_dict())
    reference = open_clip.create_model(registered, pretrained=str(path)).eval()
    with torch.no_grad():
        expected = reference.encode_image(images())
    assert torch.equal(ours.model.encode_image(images()), expected)  # type: ignore[operator]


def test_weights_of_the_plain_layout_fit_a_model_with_a_text_tower_of_its_own(
    tiny_clip: OpenedClip, edited: Edit, state: dict[str, Tensor]
) -> None:
    folder = edited("model_cfg", custom_text=True)
    # Checkpoints of old text towers carry the positions, which no model asks for any more.
    state["text.transformer.embeddings.position_ids"] = torch.arange(77)
    save_file(state, folder / "open_clip_model.safetensors")
    clip = open_model(str(folder))
    assert isinstance(clip.model, open_clip.CustomTextCLIP)
    assert torch.equal(clip.encode_text(TEXTS), tiny_clip.encode_text(TEXTS))


def test_a_checkpoint_for_another_image_size_is_refused_not_resized(
    registered: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    state["visual.positional_embedding"] = torch.zeros(26, 32)
    torch.save(state, tmp_path / "large.pt")
    with pytest.raises(RequestError, match=r"size mismatch for visual\.positional_embedding: "):
        open_model(registered, str(tmp_path / "large.pt"))


def test_a_tag_or_config_decides_activation_and_preprocessing_but_no_size(
    registered: str, tiny_clip_files: Path, monkeypatch: pytest.MonkeyPatch, edited: Edit
) -> None:
    file = str(tiny_clip_files / "open_clip_model.safetensors")
    tags = {
        "quick": {"file": file, "quick_gelu": True, "mean": (0.1, 0.2, 0.3)},
        "plain": {"file": file, "std": HALF, "interpolation": "bilinear"},
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, TINY, tags)
    quick, plain = open_model(registered, "quick"), open_model(registered, "plain")
    reference = open_clip.create_model(registered, pretrained=file, force_quick_gelu=True).eval()
    with torch.no_grad():
        expected = reference.encode_image(images())
    assert torch.equal(quick.model.encode_image(images()), expected)  # type: ignore[operator]
    assert not torch.equal(plain.model.encode_image(images()), expected)  # type: ignore[operator]
    assert quick.digest != plain.digest
    assert quick.transform.mean == (0.1, 0.2, 0.3)
    assert plain.transform == Transform(32, open_clip.OPENAI_DATASET_MEAN, HALF, "bilinear")
    preprocess = {"size": 99, "mean": HALF, "std": HALF, "interpolation": "bilinear"}
    configured = open_model(str(edited("", preprocess_cfg=preprocess)))
    assert configured.transform == Transform(32, HALF, HALF, "bilinear")


@pytest.mark.parametrize(
    ("section", "fields", "message"),
    [
        ("model_cfg", {"no_such": 1}, r"cannot build .*TypeError.*no_such"),
        ("model_cfg", {"vision_cfg": 3}, "vision_cfg must be a mapping"),
        ("vision_cfg", {"timm_model_name": ["convnext_base"]}, "timm_model_name must be a text"),
        *(
            ("vision_cfg", {"timm_model_name": name}, f"'{name}' is no image tower of timm; near")
            for name in ("convnext_bas", "hf-hub:org/model", "local-dir:/etc", "hf_hub:org/model")
        ),
        ("", {"preprocess_cfg": {"mean": [0.5]}}, "three numbers each, not"),
        ("", {"preprocess_cfg": {"std": "abc"}}, "three numbers each, not 'abc'"),
        ("text_cfg", {"tokenizer_kwargs": ["clean"]}, "tokenizer_kwargs must be a mapping"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "my"}}, "its tokenizer  ?could not be loaded"),
        ("text_cfg", {"hf_tokenizer_name": ["x"]}, "hf_tokenizer_name must be a text"),
        ("text_cfg", {"hf_model_name": "evil/it"}, "'evil/it' is no text tower that open_clip its"),
        # Its tokens alone would have 400 GB.
        ("text_cfg", {"vocab_size": 10**6, "width": 10**5, "heads": 1}, "does not fit .*for posit"),
    ],
)
def test_a_config_that_describes_no_model_is_one_message_and_asks_timm_for_nothing(
    edited: Edit, monkeypatch: pytest.MonkeyPatch, section: str, fields: Any, message: str
) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was asked for it"))
    refused(message, open_model, str(edited(section, **fields)))


def test_every_model_of_open_clips_may_be_opened(tmp_path: Path) -> None:
    for name in open_clip.list_models():
        source._check_architecture(tmp_path, open_clip.get_model_config(name))


@pytest.mark.parametrize(
    ("field", "number", "most"),
    [
        ("text_cfg.vocab_size", 60_000_000, "1,000,000"),
        ("text_cfg.context_length", 100_000, "4,096"),
        ("vision_cfg.image_size", 20_000, "1,024"),
        ("vision_cfg.image_size", [20_000, 20_000], "1,024"),
        ("vision_cfg.layers", 1_000_000, "1,000"),
        ("vision_cfg.width", math.nan, "1,000,000"),
    ],
)
def test_a_number_too_large_for_any_model_is_refused_before_it_is_built(
    edited: Edit, monkeypatch: pytest.MonkeyPatch, field: str, number: object, most: str
) -> None:
    monkeypatch.setattr(clip_module, "_build", lambda *_: pytest.fail("it was built"))
    section, key = field.split(".")
    with pytest.raises(RequestError, match=rf"{section}\.{key} is .*; at most {most}$"):
        open_model(str(edited(section, **{key: number})))


def test_a_model_of_oblong_images_is_refused(tmp_path: Path) -> None:
    config = {**TINY_CONFIG, "vision_cfg": {**VISION, "image_size": [32, 64]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    save_file(open_clip.CLIP(**config).state_dict(), tmp_path / "open_clip_model.safetensors")
    refused(r"wants \(32, 64\) pixels; images here are square", open_model, str(tmp_path))


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ModuleNotFoundError("transformers"), "needs the package transformers"),
        (OSError("no\nnetwork"), r"could not be loaded \(no network\)\. Without a network put"),
    ],
)
def test_a_tokenizer_that_cannot_be_had_names_the_remedy(
    edited: Edit, monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str
) -> None:
    monkeypatch.setattr(open_clip, "get_tokenizer", failing(failure))
    with pytest.raises(RequestError, match=f"its tokenizer org/words {message}"):
        open_model(str(edited("text_cfg", hf_tokenizer_name="org/words")))


Loaded = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Loaded:
    """What open_clip has transformers load, which need not be installed."""
    calls: Loaded = []

    class AutoTokenizer:
        @staticmethod
        def from_pretrained(name: object, **options: Any) -> object:
            calls.append((str(name), options))
            return SimpleNamespace()

    stand_in: Any = ModuleType("transformers")
    stand_in.AutoTokenizer = AutoTokenizer
    monkeypatch.setitem(sys.modules, "transformers", stand_in)
    return calls


def test_a_tokenizer_of_a_models_own_is_open_clips_and_loaded_without_running_its_code(
    edited: Edit, loaded: Loaded
) -> None:
    folder = edited("text_cfg", hf_tokenizer_name="x", tokenizer_kwargs={"clean": "canonicalize"})
    assert isinstance(open_model(str(folder)).tokenizer, open_clip.tokenizer.HFTokenizer)
    ((name, arguments),) = loaded
    assert (name, arguments["trust_remote_code"]) == (str(folder), False)


@pytest.mark.parametrize("hf", [{}, {"hf_tokenizer_name": "x"}])
@pytest.mark.parametrize("option", ["trust_remote_code", "bpe_path", "reduction_mask", "cache_dir"])
def test_a_model_cannot_choose_how_its_tokenizer_is_opened(
    edited: Edit, loaded: Loaded, option: str, hf: dict[str, str]
) -> None:
    folder = edited("text_cfg", tokenizer_kwargs={"clean": "lower", option: "/etc/x.gz"}, **hf)
    refused(f"tokenizer_kwargs: {option} cannot be set", open_model, str(folder))
    assert loaded == []


def test_texts_are_cut_from_the_length_on_at_which_open_clip_cuts(tiny_clip: OpenedClip) -> None:
    # Start and end take two of the 77 tokens; each "a" takes one.
    texts = ["", "a " * 74, "a " * 75, "a " * 76, "a " * 300]
    assert (tiny_clip.context_length, tiny_clip.cut_texts(texts)) == (77, [3, 4])
    assert torch.equal(tiny_clip.tokenizer([texts[2]]), tiny_clip.tokenizer([texts[3]]))


@pytest.mark.parametrize("kind", ["end", "start, end", "padded by the end mark", "class mark last"])
@pytest.mark.parametrize("length", [5, 9])
def test_any_tokenizers_cut_texts_are_found(tiny_clip: OpenedClip, kind: str, length: int) -> None:
    start, end, mark, padding = 1, 2, 3, 2 if kind == "padded by the end mark" else 0
    before = [start] if kind in ("start, end", "class mark last") else []
    after = [mark] if kind == "class mark last" else []

    def tokenize(texts: list[str], context_length: int = length) -> Tensor:
        rows, room = [], context_length - len(before) - 1 - len(after)
        for text in texts:
            row = [*before, *range(10, 10 + min(len(text.split()), room)), end]
            rows.append([*row, *[padding] * (context_length - len(row) - len(after)), *after])
        return torch.tensor(rows)

    tokenize.context_length = length  # type: ignore[attr-defined]
    clip = dataclasses.replace(tiny_clip, tokenizer=tokenize)
    fits = length - len(before) - 1 - len(after)
    texts = ["a " * count for count in range(length + 3)]
    assert clip.cut_texts(texts) == list(range(fits + 1, length + 3))


def test_the_digest_is_of_architecture_and_weights_and_of_nothing_else(
    registered: str, state: dict[str, Tensor], tiny_clip_files: Path, tmp_path: Path, edited: Edit
) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "configs" / "b.safetensors"]
    for file in files:
        shutil.copy(tiny_clip_files / "open_clip_model.safetensors", file)
    first, second = (weights_digest(registered, str(file)) for file in files)
    assert (first, len(first)) == (second, 64)
    state["logit_scale"] += 1
    save_file(state, tmp_path / "other.safetensors")
    assert weights_digest(registered, str(tmp_path / "other.safetensors")) != first
    quick = edited("model_cfg", quick_gelu=True)
    assert weights_digest(str(quick)) != weights_digest(str(tiny_clip_files))


def test_the_digest_is_of_the_tokenizer_too_that_a_folder_brings(
    tiny_clip_files: Path, tmp_path: Path, edited: Edit
) -> None:
    """Equal weights with another vocabulary give other features of texts."""
    plain, own = edited(""), edited("text_cfg", hf_tokenizer_name="x")
    for folder in (plain, own):
        (folder / "tokenizer.json").write_text('{"a": 1, "b": 2}')
    before = weights_digest(str(plain)), weights_digest(str(own))
    assert before[0] == weights_digest(str(tiny_clip_files))
    moved = shutil.copytree(own, tmp_path / "moved")
    (moved / "README.md").write_text("what it is")
    assert weights_digest(str(moved)) == before[1]
    for folder in (plain, own):
        (folder / "tokenizer.json").write_text('{"a": 2, "b": 1}')
    assert weights_digest(str(plain)) == before[0]
    edited_digest = weights_digest(str(own))
    (own / "merges.txt").write_text("a b")
    assert len({before[1], edited_digest, weights_digest(str(own))}) == 3


@pytest.mark.parametrize(
    ("vision", "expected"),
    [
        ({}, False),
        ({"patch_dropout": 0.25}, True),
        ({"timm_model_name": "test_convnext", "timm_drop_path": 0.1}, True),
        ({"timm_model_name": "test_convnext", "timm_drop": 0.1}, True),
        ({"timm_model_name": "test_convnext", "timm_drop_path": 0.0}, False),
        ({"timm_model_name": "swin_tiny_patch4_window7_224"}, True),  # by timm's own default
        ({"layers": [1, 1, 1, 1], "width": 8}, False),
    ],
    ids=str,
)
def test_an_image_tower_that_draws_at_random_while_it_trains_is_known(
    vision: dict[str, object], expected: bool, edited: Edit
) -> None:
    folder = str(edited("vision_cfg", image_size=224, **vision))
    assert clip_module.draws_at_random(folder, None, weights_digest(folder)) is expected


def test_the_digest_needs_no_model(
    tiny_clip: OpenedClip, tiny_clip_files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip_module, "_build", lambda *_: pytest.fail("it was built"))
    for _ in range(2):
        assert weights_digest(str(tiny_clip_files)) == tiny_clip.digest
    assert len(list((cache / "weights").iterdir())) == 1


def test_digests_of_models_stay_what_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are known by them; these were computed before the opener was last rewritten."""
    digests = {("builtin", None): weights_digest("builtin")[:16]}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "/somewhere")
    monkeypatch.setattr(clip_module, "file_digest", lambda _: "0" * 64)
    assert {key: weights_digest(*key)[:16] for key in DIGESTS} | digests == DIGESTS


def test_opening_says_nothing_and_leaves_root_logger_and_random_state_as_they_were(
    tiny_clip_files: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    state, root = torch.get_rng_state(), logging.getLogger()
    open_model(str(tiny_clip_files))
    assert caplog.records == []
    monkeypatch.setattr(root, "handlers", [])  # without pytest's own
    open_model(str(tiny_clip_files))
    assert (root.handlers, root.filters) == ([], [])
    assert capfd.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)


def test_attention_is_computed_one_way_once_a_model_was_opened(tiny_clip: OpenedClip) -> None:
    assert not torch.backends.mha.get_fastpath_enabled()
    block = copy.deepcopy(tiny_clip.model.visual)
    with torch.no_grad():
        frozen = block(images())  # type: ignore[operator]
    assert torch.equal(block.requires_grad_(True)(images()), frozen)  # type: ignore[operator]
