"""A package below its floor is refused where a crafted file or page could use its holes."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from carft_sweep.carft_core.models.weights import read_state
from carft_sweep.carft_core.requirements import missed_floor, refuse_outdated, requirements
from carft_sweep.carft_core.runs.folder import RunFolder
from tests.carft_core.refusals import refused

Install = Callable[[str, str], None]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Lets a package seem to be installed at another version, required as pyproject.toml says."""
    versions: dict[str, str] = {}
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or real(name))
    required = ["torch<3,>=2.10", "mlflow<4,>=3.17"]
    monkeypatch.setattr(metadata, "requires", lambda _: required)
    return versions.__setitem__


def test_a_build_before_a_release_counts_as_that_release(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    floors = {"2.5.1": "2.10", "2.9.1+cu128": "2.10", "2.10.0a0+b4e4ee8.nv25.12": None, "3.1": None}
    for version, floor in floors.items():
        install("torch", version)
        assert missed_floor(requirements()[0]) == floor

    def missing(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    install("torch", "1.0")
    monkeypatch.setattr(metadata, "requires", missing)
    refuse_outdated("torch", "it is a pickle")  # nothing, for sources that were never installed


def test_an_old_torch_reads_no_pickle(install: Install, tmp_path: Path) -> None:
    file, folder = tmp_path / "weights.pt", RunFolder(tmp_path)
    torch.save({"weight": torch.ones(2)}, file)
    assert read_state(file)["weight"].tolist() == [1, 1]
    install("torch", "2.5.1")
    refused(r'weights\.pt is .* pip install "torch<3,>=2\.10"', read_state, file)
    assert folder.load_checkpoint() is None
    folder.save_checkpoint({"epoch": 1})
    refused(r"torch 2\.5\.1 is older than 2\.10", folder.load_checkpoint)
    install("torch", "2.10.0")
    assert folder.load_checkpoint() == {"epoch": 1}
