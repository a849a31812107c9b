"""Paths in a sweep file are relative to it, those of `--set` to the current folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.source import find_model
from carft_sweep.sweeps.spec.document import SpecDocument
from carft_sweep.sweeps.spec.normalize import normalize
from carft_sweep.sweeps.spec.paths import place_paths
from carft_sweep.sweeps.spec.spec import load_spec

SWEEP = """\
name: mine
parameters:
  model.pretrained: {values: [../models/a.pt, openai]}
  prompts.contexts: {value: mine.txt}
baselines:
  - zero_shot
  - {name: from_checkpoint, weights: tuned.pt}
  - {name: from_checkpoint, weights: {values: [a.pt, b.pt]}}
trial:
  model: {name: ViT-B/32}
  data: {family: image_folder, root: photos}
  prompts: {classes: openai}
  algorithm: car_ft
"""


@pytest.mark.parametrize("current", [".", "project", "project/sweeps", "elsewhere"])
def test_a_path_of_the_file_is_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current: str
) -> None:
    folder = tmp_path / "project" / "sweeps"
    folder.mkdir(parents=True)
    (folder / "mine.txt").write_text("a photo of a {}\n")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / current)
    document = SpecDocument(SWEEP, "mine.yaml")
    normalize(document, ["eval.retention_root=here"])
    place_paths(document, folder)

    def place_of(*route: str | int) -> Path:
        path = Path(document.get(route))
        assert path.is_absolute() == (current == "elsewhere")
        return path.absolute()

    assert place_of("trial", "data", "root") == folder / "photos"
    varied = "parameters", "model.pretrained", "values"
    assert place_of(*varied, 0) == folder / "../models/a.pt"
    assert place_of("trial", "prompts", "contexts") == folder / "mine.txt"
    assert place_of("baselines", 1, "weights") == folder / "tuned.pt"
    assert place_of("baselines", 2, "weights", "values", 1) == folder / "b.pt"
    assert document.get((*varied, 1)) == "openai"
    assert document.get(("trial", "model", "name")) == "ViT-B/32"
    assert document.get(("trial", "prompts", "classes")) == "openai"
    assert document.get(("trial", "eval", "retention_root")) == "here"


def test_a_message_says_where_a_file_was_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "sweeps" / "mine.yaml"
    file.parent.mkdir()
    file.write_text(
        "trial: {model: {name: ViT-B-32, pretrained: models/a.pt}, algorithm: fine_tune}\n"
    )
    monkeypatch.chdir(tmp_path)
    model = load_spec(file).config_for({}).model
    assert model.pretrained == "sweeps/models/a.pt"
    with pytest.raises(RequestError, match=rf"there is no file {file.parent / 'models/a.pt'};"):
        find_model(model.name, model.pretrained)
