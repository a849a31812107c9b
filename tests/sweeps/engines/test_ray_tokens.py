"""Which Ray asks for tokens, and the token of a Ray of our own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.engines.ray_tokens import OLDEST, check_version, own_token

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}


def test_a_ray_that_starts_without_a_token_is_refused() -> None:
    for version in ("2.58.1", "2.9.3"):
        message = rf"^the cluster has Ray {version}; carft-sweep needs 2\.59 or newer"
        with pytest.raises(RequestError, match=message):
            check_version(version, "the cluster")
    for version in ("2.59.0", "2.100.0", "3.0.0.dev0"):
        check_version(version, "the cluster")


def test_the_package_requires_no_older_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [text for texts in project["optional-dependencies"].values() for text in texts]
    floors = [re.findall(r">=([\d.]+)", line) for line in lines if line.startswith("ray[")]
    assert floors == [[".".join(map(str, OLDEST))]] * 2


def test_scripts_ask_for_the_version_by_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "carft_sweep.sweeps.engines.ray_tokens"]

    def call(path: Path) -> subprocess.CompletedProcess[str]:
        search = {"PYTHONPATH": os.pathsep.join(map(str, (path, ROOT)))}
        return subprocess.run(
            command, env={**os.environ, **search}, cwd=tmp_path, capture_output=True, text=True
        )

    done = call(ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "ray-2.44.0.dist-info").mkdir()
    (tmp_path / "ray-2.44.0.dist-info" / "METADATA").write_text("Name: ray\nVersion: 2.44.0\n")
    done = call(tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("this machine has Ray 2.44.0; carft-sweep needs 2.59 or newer")
    assert "Traceback" not in done.stderr


def test_each_ray_of_our_own_has_another_token_which_is_gone_afterwards_and_what_is_set_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = set()
    for _ in range(2):
        with own_token():
            made = variables()
            tokens.add(made.pop("RAY_AUTH_TOKEN"))
            assert made == {"RAY_AUTH_MODE": "token"}
        assert variables() == {}
    assert [len(token) for token in tokens] == [64, 64]
    for name, value in {"TOKEN": "mine", "TOKEN_PATH": "/my/token", "MODE": "disabled"}.items():
        name = f"RAY_AUTH_{name}"
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with own_token():
                assert variables() == {"RAY_AUTH_MODE": "token", name: value}
            assert variables() == {name: value}
