"""A family in a YAML file: how a sweep names it. What is refused in one is in broken.yaml."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from PIL import Image

from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.declaration import Declaration
from carft_sweep.carft_core.data.families.image_folder import OWN_IMAGES
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.models.prompts import template_set
from carft_sweep.carft_core.runs.identity import identify
from carft_sweep.carft_core.testing import check_family
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.generations import Invocation
from carft_sweep.sweeps.spec.document import parse
from carft_sweep.sweeps.spec.schema import family_schema
from carft_sweep.sweeps.spec.spec import load_spec
from carft_sweep.sweeps.spec.user_code import load, place_of, register_family, vet_of
from tests.sweeps.conftest import Carft

pytestmark = pytest.mark.usefixtures("registries")

FAMILY = """\
name: birds
root: pictures
train: [first, second]
test: held_out
shifts:
  night: dark
  part: {folders: dark, classes: [owl]}
class_names: {owl: barn owl}
domains: [night]
prompts:
  contexts: ["a photo of a {}", "a {} at night"]
defaults: {data.val_fraction: 0.25, optim.epochs: 2}
"""
SWEEP = """\
name: first
parameters:
  algorithm.kl_weight: {values: [1.0]}
trial:
  model: {name: builtin}
  data: {family: birds.family.yaml}
  algorithm: {name: car_ft}
  device: cpu
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A family file and a sweep file beside its images."""
    place = tmp_path / "project"
    noise = np.random.default_rng(0)
    for name in ("first", "second", "held_out", "dark"):
        for label in ("owl", "rook"):
            (place / "pictures" / name / label).mkdir(parents=True)
            for index in range(4):
                pixels = noise.integers(0, 256, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / "pictures" / name / label / f"{index}.png")
    (place / "birds.family.yaml").write_text(FAMILY)
    (place / "birds.yaml").write_text(SWEEP)
    return place


def refusal(file: Path) -> list[str]:
    with pytest.raises(RequestError) as caught:
        register_family(file)
    return str(caught.value).splitlines()


def test_a_sweep_names_the_file_and_knows_the_family_by_its_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_spec(folder / "birds.yaml")
    assert spec.imports == (str(folder / "birds.family.yaml"),)
    assert spec.trial["data"]["family"] == "birds"
    config = spec.config_for({})
    assert (config.data.val_fraction, config.optim.epochs) == (0.25, 2)
    assert template_set(config.prompts.contexts).templates == ("a photo of a {}", "a {} at night")
    assert config.prompts.classes == "openai"
    assert FAMILIES["birds"].domains == ("night",)
    again = load_spec(folder / "birds.yaml", text=json.dumps(spec.as_dict()))
    assert again.as_dict() == spec.as_dict()
    check_family(FAMILIES["birds"], DataConfig(family="birds", val_fraction=0.25))
    # What the tracker is told of where the images lie.
    assert place_of(config.data) == str(folder / "pictures")
    assert place_of(config.data.model_copy(update={"root": "elsewhere"})) == "elsewhere"
    assert place_of(DataConfig(family="icon_shift")) == "builtin"
    monkeypatch.chdir(folder)
    spec = load_spec("kl_weight", ["data.family=birds.family.yaml"])
    assert spec.trial["data"]["family"] == "birds"
    assert spec.imports == (str(folder / "birds.family.yaml"),)


def test_a_sweep_file_for_a_family_file_the_reverse_and_a_missing_one_are_one_sentence(
    folder: Path,
) -> None:
    with pytest.raises(
        RequestError, match=r"^birds\.family\.yaml is a family file, not a sweep file: .*data check"
    ):
        load_spec(folder / "birds.family.yaml")
    (message,) = refusal(folder / "birds.yaml")
    assert message.startswith("birds.yaml is a sweep file, not a family file; ")
    pattern = r"bird\.family\.yaml does not exist; did you mean 'birds\."
    with pytest.raises(RequestError, match=pattern):
        load_spec(folder / "birds.yaml", [f"data.family={folder / 'bird.family.yaml'}"])


@pytest.mark.parametrize("place", ["beside it", "in the parent folder", "in a linked folder"])
def test_a_worker_and_a_resumed_sweep_find_the_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    file, stored = folder / "birds.yaml", folder / "kept"
    if place == "in the parent folder":
        file = folder / "sweeps" / "birds.yaml"
        file.parent.mkdir()
        file.write_text(SWEEP.replace("birds.family", "../birds.family"))
    if place == "in a linked folder":
        (tmp_path / "link").symlink_to(folder)
        file = tmp_path / "link" / "birds.yaml"
    spec = load_spec(file)
    as_run = Invocation.of(spec)
    stored.mkdir()
    (stored / "sweep.yaml").write_text(spec.text)
    for current in (Path.cwd(), Path("/")):
        monkeypatch.chdir(current)
        again, note = as_run.load(stored, vet_of(Home(tmp_path)))
        assert (again.as_dict(), note) == (spec.as_dict(), None)
        FAMILIES.clear()
        load(spec.imports)
        assert "birds" in FAMILIES


def test_a_sweep_that_moves_with_its_images_is_the_same(folder: Path, tmp_path: Path) -> None:
    before = identify(load_spec(folder / "birds.yaml").config_for({}), 0)
    moved = tmp_path / "elsewhere"
    shutil.move(folder, moved)
    after = identify(load_spec(moved / "birds.yaml").config_for({}), 0)
    assert after.digest == before.digest
    (moved / "pictures" / "first" / "owl" / "0.png").unlink()
    file = moved / "birds.family.yaml"
    file.write_text(FAMILY.replace("class_names", "# nothing\nclass_names"))
    assert identify(load_spec(moved / "birds.yaml").config_for({}), 0).digest != before.digest


def test_a_file_that_is_edited_is_read_again(folder: Path) -> None:
    file = folder / "birds.family.yaml"
    first = register_family(file)
    assert register_family(file) is first
    file.write_text(FAMILY.replace("a {} at night", "a {} in the dark"))
    assert register_family(file) is not first
    assert template_set("birds_contexts").templates[1] == "a {} in the dark"


def test_families_may_be_varied_and_imported(folder: Path) -> None:
    (folder / "more.family.yaml").write_text(FAMILY.replace("name: birds", "name: more"))
    text = SWEEP.replace("  data: {family: birds.family.yaml}\n", "")
    varied = "  data.family: {values: [birds.family.yaml, icon_shift, more]}\ntrial:"
    text = text.replace("trial:", varied)
    (folder / "birds.yaml").write_text(text + "import: [./more.family.yaml]\n")
    spec = load_spec(folder / "birds.yaml")
    points = [spec.config_for(point).data.family for point in spec.points()]
    assert points == ["birds", "icon_shift", "more"]
    assert len(spec.imports) == 2


def test_mistakes_of_both_files_come_at_once(folder: Path) -> None:
    wrong = "trian: first\ntest: t\nname: Birds\ndefaults: {optim.lr: -1}\n"
    (folder / "birds.family.yaml").write_text(wrong)
    (folder / "birds.yaml").write_text(SWEEP.replace("car_ft", "car_tf"))
    with pytest.raises(RequestError) as caught:
        load_spec(folder / "birds.yaml")
    where = "birds.yaml:6: data.family: birds.family.yaml"
    expected = [
        f"{where}:1: trian: unknown field 'trian'; did you mean 'train'?",
        f"{where}:3: name: must be lower-case letters, digits and '_'",
        f"{where}:4: defaults.optim.lr: must be greater than 0, got -1",
        "birds.yaml:7: algorithm.name: unknown algorithm 'car_tf'",
    ]
    for line, start in zip(str(caught.value).splitlines(), expected, strict=True):
        assert line.startswith(start)


def test_two_files_cannot_share_a_name_which_is_the_files_when_it_is_left_out(folder: Path) -> None:
    first = folder / "birds.family.yaml"
    register_family(first)
    other = folder / "other.yaml"
    other.write_text(FAMILY)
    taken = f"other.yaml:1: name: 'birds' is taken by {first}; give it another"
    assert refusal(other) == [taken]
    other.write_text(FAMILY.replace("name: birds", "name: icon_shift"))
    (message,) = refusal(other)
    words = "other.yaml:1: name: 'icon_shift' is a family already: things as icon"
    assert message.startswith(words)
    for name in ("garden.family.yaml", "My garden.yaml"):
        (folder / name).write_text("test_fraction: 0.2\n")
    assert register_family(folder / "garden.family.yaml").name == "garden"
    (message,) = refusal(folder / "My garden.yaml")
    assert message.startswith("My garden.yaml:1: name: must be lower-case letters")


def test_templates_may_be_a_set_or_lie_in_a_file(folder: Path) -> None:
    (folder / "styles.txt").write_text("a sketch of a {}\n")
    (folder / "styles.yaml").write_text("templates: ['a sketch of a {}']\n")
    for end in ("txt", "yaml"):
        file = folder / f"{end}.family.yaml"
        file.write_text(f"test: t\nprompts: {{classes: simple, contexts: styles.{end}}}\n")
        prompts = {"prompts.classes": "simple", "prompts.contexts": f"{end}_contexts"}
        assert register_family(file).defaults == {**OWN_IMAGES, **prompts}
        assert template_set(f"{end}_contexts").templates == ("a sketch of a {}",)


def test_the_schema_accepts_what_is_read_and_refuses_what_is_not(carft: Carft) -> None:
    assert '"carft-sweep family file"' in carft("schema", "--family").out
    schema = family_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    assert set(schema["properties"]) == set(Declaration.model_fields)
    validator.validate(parse(FAMILY).data)
    wrong: list[dict[str, Any]] = [{"trian": "x"}, {"test": []}, {"shifts": {"x": {"folder": "y"}}}]
    for item in wrong:
        assert not validator.is_valid({"test": "t", **item}), item
