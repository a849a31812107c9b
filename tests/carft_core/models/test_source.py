"""Every way to name a model: what it finds, and what it says when it finds nothing."""

from __future__ import annotations

import json
import re
import shutil
import socket
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import open_clip
import pytest
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

from carft_sweep.carft_core.errors import DownloadFailed, RequestError
from carft_sweep.carft_core.models.clip import open_model
from carft_sweep.carft_core.models.source import BUILTIN, find_model
from tests.carft_core.refusals import refusal, refused
from tests.carft_core.stand_ins import failing, watched

HALF = (0.5, 0.5, 0.5)
SAFE, BIN = "open_clip_model.safetensors", "open_clip_pytorch_model.bin"
REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty, with no network; the folder is returned."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def put_in_hub(hub: Path, repo: str, files: Path) -> Path:
    """A repository as the hub's client keeps it after a download."""
    folder = hub / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(REVISION)
    shutil.copytree(files, folder / "snapshots" / REVISION)
    return folder / "snapshots" / REVISION


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not opened here")
    return str(path)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that the hub's cache was asked for; it has all of them."""
    look_up = "try_to_load_from_cache"
    monkeypatch.setattr(huggingface_hub, look_up, lambda *_: "/somewhere")
    return watched(monkeypatch, huggingface_hub, look_up, lambda repo, file: f"{repo}/{file}")


def test_every_open_clip_name_takes_a_local_file(file: str) -> None:
    for name in open_clip.list_models():
        source = find_model(name, file)
        assert source.weights == Path(file)
        assert (source.architecture, source.tokenizer) == (open_clip.get_model_config(name), name)


def test_every_tag_brings_its_own_activation_and_preprocessing(asked: list[str]) -> None:
    for name, tag in open_clip.list_pretrained():
        asked.clear()
        published, source = open_clip.get_pretrained_cfg(name, tag), find_model(name, tag)
        assert asked[0].startswith(published["hf_hub"].rsplit(".", 1)[0])
        for key in ("mean", "std", "interpolation"):
            assert source.preprocess[key] == published[key], (name, tag)
        if published.get("quick_gelu"):
            assert source.architecture["quick_gelu"] is True


@pytest.mark.usefixtures("asked")
def test_the_openai_tag_of_the_plain_name_is_a_quickgelu_model_however_it_is_written() -> None:
    plain, marked = find_model("ViT-B-32", "openai"), find_model("ViT-B-32-quickgelu", "openai")
    assert plain.architecture == marked.architecture
    assert "quick_gelu" not in find_model("ViT-B-32", "laion2b_s34b_b79k").architecture
    assert find_model("ViT-B/32", "laion2b-s34b-b79k").tokenizer == "ViT-B-32"


@pytest.mark.parametrize(
    ("name", "mean"),
    [
        ("ViT-B-16-SigLIP", HALF),
        ("ViT-B-32", open_clip.OPENAI_DATASET_MEAN),
        ("RN50", open_clip.OPENAI_DATASET_MEAN),
        ("ViT-L-14", None),  # open_clip's default
    ],
)
def test_a_file_takes_the_preprocessing_on_which_all_tags_of_its_name_agree(
    name: str, mean: tuple[float, ...] | None, file: str
) -> None:
    preprocess = find_model(name, file).preprocess
    assert (preprocess.get("mean"), preprocess["interpolation"]) == (mean, "bicubic")


@pytest.mark.parametrize(("wrong", "near"), [("vit_b_16", "ViT-B-16"), ("RN-50", "RN50")])
def test_an_unknown_name_lists_the_near_ones_and_every_form(wrong: str, near: str) -> None:
    message = refusal(find_model, wrong, "openai")
    assert near in message.partition("near names: ")[2].partition(". Allowed")[0].split(", ")
    for form in ("builtin", "hf-hub:<org>/<model>", "open_clip_config.json"):
        assert form in message


@pytest.mark.parametrize("name", ["", "\0", "~nobody-here", "a" * 5000, "hf-hub:", "local-dir:"])
def test_a_name_that_could_be_nothing_is_refused_like_any_other(name: str) -> None:
    refused(r"model\.name|could not be downloaded", find_model, name)
    refused(r"^model\.", find_model, "RN50" if name else name, name)


@pytest.mark.parametrize(
    ("name", "pretrained", "message"),
    [
        ("RN50", None, r"RN50 alone has random weights; give model\.pretrained\. Tags of RN50"),
        ("ViT-S-16", None, r"Tags of ViT-S-16: none\. Or the path"),
        ("RN50", "opnai", r"'opnai' is no tag of RN50, .* did you mean 'openai'\? Tags of RN50: c"),
        *(
            ("RN50", path, f"'{path}' is no tag of RN50, and there is no file")
            for path in ("./no.pt", "/", "~/no.pt", "no.safetensors")
        ),
        *(
            (name, "openai", "brings its own weights; leave it out")
            for name in ("builtin", "hf-hub:org/model", "local-dir:/some")
        ),
        ("hf-hub:a b", None, "hf-hub:a b could not be downloaded .*alphanumeric"),
        *((name, None, r"a checkpoint file as model\.pretrained") for name in ("/no", __file__)),
    ],
)
def test_a_wrong_name_is_told_what_can_be(name: str, pretrained: str | None, message: str) -> None:
    refused(message, find_model, name, pretrained)


def test_builtin_and_a_folder_with_or_without_open_clips_prefix_are_models(
    tiny_clip_files: Path, tmp_path: Path
) -> None:
    source = find_model("builtin")
    assert source.weights == BUILTIN["builtin"] / SAFE
    assert source.architecture["vision_cfg"]["image_size"] == 32
    for prefix in ("", "local-dir:"):
        source = find_model(f"{prefix}{tiny_clip_files}")
        assert source.weights == tiny_clip_files / SAFE
        assert source.tokenizer == f"local-dir:{tiny_clip_files}"
    refused(r"there is no file .*open_clip_config\.json", find_model, str(tmp_path))


@pytest.fixture
def folder(tmp_path: Path, tiny_clip_files: Path) -> Path:
    target = tmp_path / "model"
    target.mkdir()
    shutil.copy(tiny_clip_files / "open_clip_config.json", target)
    return target


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        ([BIN, SAFE, "a.pt"], SAFE),
        ([BIN, "a.pt"], BIN),
        (["epoch_3.pt", "README.md"], "epoch_3.pt"),
        ([], None),
        (["b.pt", "a.safetensors"], None),
    ],
)
def test_a_folders_weights_are_the_file_open_clip_writes_or_the_only_one(
    folder: Path, files: list[str], chosen: str | None
) -> None:
    for name in files:
        (folder / name).touch()
    if chosen is not None:
        assert find_model(str(folder)).weights == folder / chosen
    else:
        message = rf"which file holds the weights\? Found: {', '.join(sorted(files)) or 'none'}\."
        refused(message, find_model, str(folder))


MODEL = b'{"model_cfg": {"embed_dim": 3, "text_cfg": {}, "vision_cfg": {}}'


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (b"{", "is not a model config: "),
        (b"\xff", "is not a model config: "),
        (b"[]", "lacks embed_dim, vision_cfg, text_cfg"),
        (b'{"model_cfg": 3}', "lacks embed_dim, vision_cfg, text_cfg"),
        (b'{"model_cfg": {"embed_dim": 3, "text_cfg": {}}}', "its model_cfg lacks vision_cfg$"),
        (MODEL + b', "preprocess_cfg": 1}', "preprocess_cfg must be a mapping"),
    ],
)
def test_a_broken_config_says_what_is_wrong(folder: Path, config: bytes, message: str) -> None:
    (folder / "open_clip_config.json").write_bytes(config)
    refused(message, find_model, str(folder))


def test_a_hub_model_that_was_downloaded_once_needs_no_network_but_for_a_tokenizer_of_its_own(
    offline: Path, tiny_clip_files: Path
) -> None:
    snapshot = put_in_hub(offline, "org/tiny", tiny_clip_files)
    source = find_model("hf-hub:org/tiny")
    assert (source.weights, source.architecture["embed_dim"]) == (snapshot / SAFE, 32)
    assert source.tokenizer.startswith("local-dir:")
    set_text(snapshot, hf_tokenizer_name="org/words")
    assert find_model("hf-hub:org/tiny").tokenizer.startswith("hf-hub:")


@pytest.mark.parametrize(
    ("name", "pretrained", "asked"),
    [
        ("hf-hub:org/tiny", None, "hf-hub:org/tiny"),
        ("ViT-B-32", "openai", r"model\.pretrained: openai \(of ViT-B-32\)"),
    ],
)
def test_a_download_that_fails_names_the_way_without_a_network(
    offline: Path, name: str, pretrained: str | None, asked: str
) -> None:
    way = r"use a local file, model\.name: .* with model.pretrained: <path"
    message = refusal(find_model, name, pretrained)
    assert re.match(rf"{asked} could not be downloaded \(.*{way}", message)
    assert "\n" not in message
    assert not offline.exists()


def test_without_a_network_one_name_is_tried(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unreachable = failing(LocalEntryNotFoundError("no network"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable)
    asked = watched(monkeypatch, huggingface_hub, "hf_hub_download", lambda *names: "/".join(names))
    refused("no network", find_model, "RN50", "openai")
    assert asked == ["timm/resnet50_clip.openai/open_clip_model.safetensors"]
    assert not offline.exists()


@pytest.mark.usefixtures("offline")
def test_where_no_name_is_resolved_the_hub_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    asked = failing(LocalEntryNotFoundError("asked"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", asked)
    unknown = socket.gaierror("huggingface.co not known")
    monkeypatch.setattr(socket, "getaddrinfo", failing(unknown))
    proxies: dict[str, str] = {}
    monkeypatch.setattr("carft_sweep.carft_core.models.source.getproxies", lambda: proxies)
    with pytest.raises(DownloadFailed, match=r"not be downloaded \(huggingface\.co not known"):
        find_model("RN50", "openai")
    proxies["https"] = "proxy:3128"
    with pytest.raises(DownloadFailed, match="asked"):
        find_model("RN50", "openai")


class Answered(OSError):
    """An answer of the hub's, whose class differs between its client's versions."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (LocalEntryNotFoundError("no network"), True),
        (ConnectionResetError("by peer"), True),
        (Answered(503), True),
        (Answered(429), True),
        (Answered(404), False),
        (Answered(401), False),
        (EntryNotFoundError("no such file"), False),
        (ValueError("not a name"), False),
    ],
)
def test_what_may_succeed_later_is_told_from_what_never_will(
    monkeypatch: pytest.MonkeyPatch, error: Exception, passes: bool
) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failing(error))
    with pytest.raises(RequestError, match="could not be downloaded") as caught:
        find_model("hf-hub:org/tiny")
    assert isinstance(caught.value, DownloadFailed) is passes


def test_a_repository_without_safetensors_gives_its_pickled_file(
    offline: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_bin(repo: str, file: str) -> str:
        if file.endswith(".safetensors"):
            raise EntryNotFoundError(file)
        return f"/{repo}/{file}"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", only_bin)
    assert find_model("RN50", "openai").weights.name == BIN
    vitamin = find_model("ViTamin-S", "datacomp1b").weights
    assert vitamin == Path("/jienengchen/ViTamin-S/pytorch_model.bin")
    assert not offline.exists()


def test_a_tag_outside_the_hub_is_fetched_by_open_clip_and_a_failure_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "here.pt").write_bytes(b"abc")
    for name in ("here", "gone"):
        tag = {"url": (tmp_path / f"{name}.pt").as_uri()}
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED["RN50"], name, tag)
    assert find_model("RN50", "here").weights.read_bytes() == b"abc"
    refused(r"gone \(of RN50\) could not be downloaded", find_model, "RN50", "gone")


def set_text(folder: Path, **text: str) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"] |= text
    (folder / "open_clip_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("repo", "is_taken"), [("org/tiny", True), ("xlm-roberta-base", True), ("evil/words", False)]
)
def test_a_model_of_the_hub_takes_its_tokenizer_from_no_unknown_repository(
    offline: Path, tiny_clip_files: Path, monkeypatch: pytest.MonkeyPatch, repo: str, is_taken: bool
) -> None:
    set_text(put_in_hub(offline, "org/tiny", tiny_clip_files), hf_tokenizer_name=repo)
    opening: list[dict[str, object]] = []
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda _, **options: opening.append(options))
    if is_taken:
        open_model("hf-hub:org/tiny")
    else:
        refused(f"tokenizer is that of another repository, {repo}", open_model, "hf-hub:org/tiny")
    assert opening == ([{"trust_remote_code": False}] if is_taken else [])
