"""Weight files: what is read, what is refused, and how a misfit is told."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.clip import open_model
from carft_sweep.carft_core.models.weights import check_contents, file_digest, fit, read_state
from tests.carft_core.refusals import refused
from tests.carft_core.trained import same

STATE = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


class RunsCode:
    """Unpickled, it would make a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.proof}",)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("state.safetensors", STATE),
        ("state.pt", STATE),
        ("hub.bin", STATE),
        ("lightning.ckpt", {"state_dict": STATE, "epoch": 3}),
        (
            "open_clip_training.pt",
            {
                "epoch": 3,
                "name": "run",
                "state_dict": {f"module.{key}": value for key, value in STATE.items()},
                "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": []},
            },
        ),
    ],
)
def test_every_layout_in_which_open_clip_weights_come_is_read(
    tmp_path: Path, file: str, content: dict[str, Any]
) -> None:
    (save_file if file.endswith("safetensors") else torch.save)(content, tmp_path / file)
    assert same(read_state(tmp_path / file), STATE)


def test_a_name_is_only_cut_when_every_name_has_the_prefix(tmp_path: Path) -> None:
    torch.save({"module.weight": torch.ones(1), "scale": torch.ones(1)}, tmp_path / "mixed.pt")
    assert set(read_state(tmp_path / "mixed.pt")) == {"module.weight", "scale"}


def test_what_holds_more_than_tensors_is_refused_unrun_and_named(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    torch.save({"state_dict": RunsCode(proof)}, tmp_path / "evil.pt")
    torch.save({"args": argparse.Namespace(lr=1), "state_dict": STATE}, tmp_path / "run.pt")
    for reads in (read_state, check_contents):
        refused(r"evil\.pt holds more than tensors \(\w+\.system\)", reads, tmp_path / "evil.pt")
        refused(r"argparse\.Namespace.*Save the state dict alone", reads, tmp_path / "run.pt")
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(RunsCode(proof)))
    refused(r"raw\.pt is not a checkpoint of PyTorch", read_state, tmp_path / "raw.pt")
    assert not proof.exists()
    torch.save({"state_dict": STATE}, tmp_path / "good.pt")
    for name in ("good.pt", "raw.pt"):
        check_contents(tmp_path / name)


def test_a_torchscript_archive_names_the_tag_and_another_ending_those_read(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "ViT-B-32.pt")
    refused(r"TorchScript archive .* Use the tag `openai`", read_state, tmp_path / "ViT-B-32.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 1, "model": {"weight": torch.ones(1)}}, "not tensors are epoch, model"),
        ({}, "holds no state dict but dict"),
        ([torch.ones(1)], "holds no state dict but list"),
        ({"state_dict": 3}, "holds no state dict but int"),
        ({3: torch.ones(1)}, "not tensors are 3"),
        ({"w": torch.ones(1).to_sparse()}, "not tensors are w"),
        ({"w": torch.empty(1, device="meta")}, "not tensors are w"),
        ({"w": torch.ones(1, dtype=torch.complex64)}, "not tensors are w"),
    ],
)
def test_a_file_of_no_state_dict_says_what(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "other.pt")
    refused(message, read_state, tmp_path / "other.pt")
    refused(r"\.safetensors, \.pt, \.pth, \.bin, \.ckpt", read_state, tmp_path / "weights.npz")


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
def test_what_is_no_weights_file_gives_one_message(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"broken{ending}"
    for content in (b"", b"<!DOCTYPE html>", b"version https://git-lfs", b"\x00" * 99):
        path.write_bytes(content)
        refused("broken", read_state, path)
    os.mkfifo(tmp_path / f"w{ending}")
    refused(rf"w\{ending} is not a regular file", read_state, tmp_path / f"w{ending}")


@pytest.mark.parametrize("ending", [".pt", ".safetensors"])
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_file_never_is_a_crash(tmp_path: Path, ending: str, data: st.DataObject) -> None:
    path = tmp_path / f"damaged{ending}"
    (save_file if ending == ".safetensors" else torch.save)(STATE, path)
    content = bytearray(path.read_bytes())
    end = data.draw(st.integers(0, len(content)))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content[:end]))
    refusal, state = "", {}
    try:
        state = read_state(path)
    except RequestError as error:
        refusal = str(error)
    assert (str(path) in refusal) != bool(state)
    assert all(isinstance(value, Tensor) for value in state.values())


def fitted(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    fit(model, state, name="ViT-X", path=Path("file.pt"))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_misfit_names_what_is_missing_unexpected_and_of_another_shape(device: str) -> None:
    state = {"weight": torch.ones(2, 4), "gain": torch.ones(2)}
    with pytest.raises(RequestError, match=r"^file\.pt does not fit ViT-X: ") as caught:
        fitted(nn.Linear(3, 2, device=device), state)
    parts = ('Missing key(s) in state_dict: "bias"', "Unexpected", "size mismatch for weight")
    assert all(part in str(caught.value) for part in parts)


def test_a_compressed_archive_is_refused_unread(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1 << 20)}, tmp_path / "w.pt")
    with zipfile.ZipFile(tmp_path / "w.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "w.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    refused(r"w\.pt is compressed", read_state, tmp_path / "w.pt")


@pytest.mark.parametrize("shape", [(), (1,)])
def test_half_weights_any_scale_and_openais_numbers_fit_a_model(shape: tuple[int, ...]) -> None:
    model = nn.Linear(3, 2)
    model.logit_scale = nn.Parameter(torch.zeros(shape))
    scale = torch.full((1,) if shape == () else (), 4.5)
    halves = {key: value.half() for key, value in STATE.items()}
    fitted(model, {**halves, "logit_scale": scale, "input_resolution": torch.tensor(224)})
    assert (float(model.logit_scale.detach()), model.weight.dtype) == (4.5, torch.float32)
    assert torch.equal(model.weight, STATE["weight"])


def test_a_digest_is_read_once_and_anew_where_the_file_was_replaced(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, link = tmp_path / "weights.bin", tmp_path / "link.bin"
    file.write_bytes(b"old")
    link.symlink_to(file)
    assert file_digest(file) == hashlib.sha256(b"old").hexdigest()
    with monkeypatch.context() as patch:
        patch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("it was read"))
        assert file_digest(file) == file_digest(link) == hashlib.sha256(b"old").hexdigest()
    assert len(list((cache / "weights").iterdir())) == 1
    stat = file.stat()
    file.write_bytes(b"new")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest(file) == hashlib.sha256(b"new").hexdigest()
    assert file_digest(file.rename(tmp_path / "moved.bin")) == hashlib.sha256(b"new").hexdigest()


def test_a_file_that_is_written_to_while_it_is_read_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"half")
    whole = hashlib.file_digest

    def slow(stream: Any, kind: str) -> Any:
        digest = whole(stream, kind)
        file.write_bytes(b"half and half")
        return digest

    monkeypatch.setattr(hashlib, "file_digest", slow)
    assert file_digest(file) == hashlib.sha256(b"half").hexdigest()
    monkeypatch.undo()
    assert file_digest(file) == hashlib.sha256(b"half and half").hexdigest()


@pytest.mark.parametrize(
    "damage",
    [
        *(b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'{"sha256": "%s"}' % (b"0" * 64)),
        *({"sha256": digest} for digest in ("", "x" * 64, "0" * 63, 7, None)),
    ],
)
def test_a_damaged_entry_of_the_cache_is_computed_anew_and_mended(
    tmp_path: Path, cache: Path, damage: bytes | dict[str, object]
) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(b"abc")
    right = file_digest(file)
    (entry,) = (cache / "weights").iterdir()
    good = entry.read_bytes()
    if isinstance(damage, dict):
        damage = json.dumps({**json.loads(good), **damage}).encode()
    entry.write_bytes(damage)
    assert (file_digest(file), entry.read_bytes()) == (right, good)


@pytest.mark.parametrize("number", [1e38, float("nan")])
def test_weights_that_overflow_are_refused_when_texts_are_read(
    tiny_clip_files: Path, tmp_path: Path, number: float
) -> None:
    state = load_file(tiny_clip_files / "open_clip_model.safetensors")
    state["token_embedding.weight"].fill_(number)
    shutil.copy(tiny_clip_files / "open_clip_config.json", tmp_path)
    save_file(state, tmp_path / "open_clip_model.safetensors")
    clip = open_model(str(tmp_path))
    refused(f"{tmp_path.name}: its weights give NaN", clip.encode_text, ["a cat"])
