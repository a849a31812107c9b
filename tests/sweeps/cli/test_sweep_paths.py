"""A path in the place of a sweep's name stands for the sweep, and its name is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from carft_sweep.sweeps.cli import main
from tests.sweeps.conftest import ONE_RUN, ToySweep

COMMANDS = ("show", "compare", "watch", "stop", "resume", "sync")
PATHS = ("toy.yaml", "./toy.yaml", "toy", "home/sweeps/photos", "home/sweeps/photos/sweep.yaml")


@pytest.fixture
def photos(toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch) -> ToySweep:
    """A sweep `photos`, whose file is `toy.yaml` in the current folder."""
    monkeypatch.chdir(toy_cli.folder)
    toy_cli.run(**ONE_RUN, name="photos")
    return toy_cli


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_the_sweep_that_it_leads_to(
    photos: ToySweep, path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["show", path, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["sweep"] == "photos"
    assert told.err == f"{path} is the sweep photos.\n"
    assert main(["show", str(photos.folder / "toy.yaml")]) == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_that_wants_a_sweep_takes_a_path(
    photos: ToySweep, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    del photos
    capsys.readouterr()
    assert main([command, "toy.yaml"]) == 0
    assert "toy.yaml is the sweep photos.\n" in capsys.readouterr().err


def test_a_sweep_of_that_very_name_goes_before_a_file(
    photos: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    photos.run(**ONE_RUN, name="toy.yaml")
    photos.file(**ONE_RUN, name="photos")
    capsys.readouterr()
    assert main(["show", "toy.yaml", "--json"]) == 0
    told = capsys.readouterr()
    assert (json.loads(told.out)["sweep"], told.err) == ("toy.yaml", "")


def test_a_file_whose_sweep_was_not_run_is_told_by_its_name(
    toy_cli: ToySweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(toy_cli.folder)
    toy_cli.file(name="never")
    assert main(["show", "toy.yaml"]) == 2
    assert "toy.yaml is the sweep never.\n" in (told := capsys.readouterr().err)
    assert "'never'" in told
    Path("nameless.yaml").write_text("trial: {algorithm: car_ft}\n")
    assert main(["show", "nameless.yaml"]) == 2
    assert "'nameless'" in capsys.readouterr().err
    Path("broken.yaml").write_text("a: [1\n")
    assert main(["show", "broken.yaml"]) == 2
    assert "broken.yaml:1" in capsys.readouterr().err


def test_the_nearest_exported_folder_is_suggested_before_the_nearest_sweep(
    photos: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos-notes").mkdir()
    model = Path("photos-model")
    model.mkdir()
    (model / "carft.json").write_text("{}")
    assert main(["predict", "photos-modle", "x.png"]) == 2
    said = "photos-modle is no folder that `carft-sweep export` made; did you mean 'photos-model'?"
    assert said in capsys.readouterr().err
    assert main(["predict", "phots", "x.png"]) == 2
    assert "did you mean 'photos'?" in capsys.readouterr().err
    del photos


def test_an_exported_folder_is_no_sweep(
    photos: ToySweep, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos.yaml").write_text("name: photos\n")
    Path("model").mkdir()
    Path("model.yaml").write_text("name: photos\n")
    assert main(["predict", "model", "x.png"]) == 2
    assert "is the sweep" not in capsys.readouterr().err
    del photos
