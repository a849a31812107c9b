"""Files are written whole or not at all, and the user's cache lies where the user wants it."""

from __future__ import annotations

import errno
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from carft_sweep.carft_core import files
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.files import read_json, read_lines
from carft_sweep.carft_core.runs.folder import RunFolder, load_weights, save_weights
from carft_sweep.carft_core.runs.identity import identify
from carft_sweep.carft_core.runs.result import Evaluation
from tests.carft_core.refusals import refused
from tests.carft_core.trained import Config, same


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"value": 1})
    no_space = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as `write` raises it
    for error, words in (
        (OSError("disk full"), "disk full"),
        (no_space, rf"No space left on device: '{path}'"),
    ):

        def fail(file: Path, error: OSError = error) -> None:
            file.write_text("half")
            raise error

        with pytest.raises(OSError, match=words):
            files.write_atomically(path, fail)
    assert read_json(path) == {"value": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_what_is_not_there_reads_as_none_and_what_is_broken_says_so(tmp_path: Path) -> None:
    assert read_json(tmp_path / "none.json") is None
    for name, text, words in (
        ("broken", "{", "is not JSON"),
        ("deep", "[" * 200_000, "is not JSON that is read: nested too"),
    ):
        (tmp_path / f"{name}.json").write_text(text)
        refused(rf"{name}\.json {words}", read_json, tmp_path / f"{name}.json")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(1 << 40)  # a hole
    refused(r"large\.json has 1099511627776 bytes; at most", read_json, tmp_path / "large.json")
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"value": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_weights_read_back_as_they_were(tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 2), "n": torch.tensor(3), "t": torch.randn(2, 3).T}
    save_weights(tmp_path / "w.safetensors", state)
    assert same(state, load_weights(tmp_path / "w.safetensors"))
    (tmp_path / "w.safetensors").write_bytes(b"garbage")
    refused("not a safetensors file", load_weights, tmp_path / "w.safetensors")
    (tmp_path / "v.safetensors").mkdir()
    refused(r"v\.safetensors is not a regular file", load_weights, tmp_path / "v.safetensors")


def test_a_damaged_checkpoint_means_a_new_start(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder(tmp_path)
    assert folder.load_checkpoint() is None
    assert not caplog.text, "there is none yet"
    folder.save_checkpoint({"step": 3, "model": {"w": torch.full((64,), 3.0)}})
    progress = folder.load_checkpoint()
    assert progress is not None
    assert progress["step"] == 3
    content, value = folder.checkpoint.read_bytes(), struct.pack("<f", 3.0)
    assert value in content
    other_byte = content.replace(value, struct.pack("<f", 4.0), 1)
    for damaged in (b"", b"garbage", b"PK\x03\x04", other_byte):
        caplog.clear()
        folder.checkpoint.write_bytes(damaged)
        assert folder.load_checkpoint() is None
        assert f"{folder.checkpoint} is damaged" in caplog.text
        assert "begins again" in caplog.text
    assert "is not what was written" in caplog.text


def test_what_a_killed_process_wrote_goes_at_a_claim(toy_config: Config, tmp_path: Path) -> None:
    config, folder = toy_config(), RunFolder(tmp_path)
    folder.claim(config, 0, identify(config, 0))
    (tmp_path / "weights").mkdir()
    large = [".checkpoint.pt.abcdefgh", "weights/.last.safetensors.abcdefgh"]
    for name in (*large, ".run.json.abcdefgh", "weights/last.safetensors"):
        (tmp_path / name).write_bytes(b"half a file")
    folder.claim(config, 0, identify(config, 0))
    remaining = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert remaining == {"config.json", ".run.json.abcdefgh", "weights/last.safetensors"}


def test_a_checkpoint_that_runs_code_is_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "owned",))

    torch.save({"step": Trap()}, tmp_path / "checkpoint.pt")
    assert RunFolder(tmp_path).load_checkpoint() is None
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "loop"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.json"
    make: dict[str, Callable[[], object]] = {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "device": lambda: path.symlink_to("/dev/zero"),
        "loop": lambda: path.symlink_to(path.name),
    }
    make[kind]()
    for read in (read_json, read_lines):
        refused(r"a\.json", read, path)
    if kind != "loop":
        refused(r"a\.json is not a regular file", read_json, path, follow=True)


def test_a_link_in_a_home_is_neither_read_nor_written_through(tmp_path: Path) -> None:
    elsewhere, link = tmp_path / "elsewhere", tmp_path / "a.json"
    elsewhere.write_text("[1]\n")
    link.symlink_to(elsewhere)
    for act in (read_json, read_lines, lambda path: files.append_lines(path, ["2"])):
        with pytest.raises((RequestError, OSError), match="is a link, which is not followed"):
            act(link)
    assert (elsewhere.read_text(), read_json(link, follow=True)) == ("[1]\n", [1])
    assert files.read_regular(link, 100) == b"[1]\n", "a file that the user names"


def test_another_shape_is_refused_with_its_place(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    whole = '{{"digest": "d", "label": "l", "step": 0, "values": {{}}, "metrics": {{"m": {}}}}}'
    for content, place in {
        "[]": "",
        '{"digest": "d"}': " step:",
        '{"digest": 1, "step": 0, "values": {}, "metrics": {}}': " digest:",
        whole.format('"0.5"'): " metrics.m:",
        whole.format("1e999"): " metrics.m:",
    }.items():
        file.write_text(content)
        assert read_json(file) is not None, "of any shape"
        refused(rf"metrics\.json is damaged:{place}", read_json, file, Evaluation)


FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOATS | st.text(),
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(st.text(), parts, max_size=4),
)


@given(data=JSON, indent=st.sampled_from([None, 1]), escaped=st.booleans())
@example(data=[-0.0, 10**400, 1e-320, 5e-324, 1.7976931348623157e308], indent=1, escaped=True)
def test_json_reads_alike_where_checked(data: object, indent: int | None, escaped: bool) -> None:
    content = json.dumps(data, indent=indent, ensure_ascii=escaped).encode("utf-8", "replace")
    checked, plain = files.parse_json(content, "it", Any), files.parse_json(content, "it")
    assert repr(checked) == repr(plain)


def test_the_cache_lies_where_the_user_wants_it_and_not_in_a_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A home of somebody else's would bring digests of weights and scripts of pages."""
    monkeypatch.setenv("CARFT_CACHE", "/elsewhere")
    assert files.user_cache() == Path("/elsewhere")
    monkeypatch.delenv("CARFT_CACHE")
    own = Path.home() / ".cache" / "carft-sweep"
    for home, expected in (("/xdg", Path("/xdg/carft-sweep")), ("relative", own), (None, own)):
        monkeypatch.setenv("XDG_CACHE_HOME", home) if home else monkeypatch.delenv("XDG_CACHE_HOME")
        assert files.user_cache() == expected
    monkeypatch.setenv("CARFT_HOME", str(tmp_path))
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert files.user_cache() == own
