"""Profiles: named changes that a sweep file keeps, with the places of their values."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from carft_sweep.carft_core.errors import InvalidConfig
from carft_sweep.sweeps.ledger.generations import Invocation
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec
from tests.sweeps.conftest import Carft
from tests.sweeps.spec.validator import VALIDATOR

FILE = """\
name: plain
parameters:
  algorithm.kl_weight: {values: [0.1, 1.0]}
seeds: [0, 1, 2]
trial:
  algorithm: car_ft
  optim.epochs: 5
profiles:
  quick:
    name: quick
    seeds: [0]
    optim.epochs: 1
    parameters.algorithm.kl_weight.values: [0.1]
  slow:
    trial.optim.epochs: 20
    optim.lr: 3e-4
    name: "{name}_slow"
"""


def load(tmp_path: Path, *overrides: str, text: str = FILE) -> SweepSpec:
    file = tmp_path / "sweep.yaml"
    file.write_text(text)
    return load_spec(file, overrides)


def test_a_profile_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    plain, quick = load(tmp_path), load(tmp_path, "profile=quick")
    assert (plain.name, plain.seeds, plain.trial_count) == ("plain", (0, 1, 2), 2)
    assert (quick.name, quick.seeds, quick.trial_count) == ("quick", (0,), 1)
    assert quick.config_for({}).optim.epochs == 1
    assert quick.config_for({}).optim.lr == plain.config_for({}).optim.lr
    assert quick.trial["algorithm"] == plain.trial["algorithm"]
    VALIDATOR.validate(yaml.safe_load(FILE))
    # A mistake in a value of one that is not used is none.
    assert load(tmp_path, text=FILE.replace(EPOCHS, "trial.optim.epochs: x")).name == "plain"


def test_later_profiles_go_before_earlier_and_set_goes_before_all(tmp_path: Path) -> None:
    both = load(tmp_path, "profile=quick", "profile=slow")
    assert (both.name, both.config_for({}).optim.epochs) == ("quick_slow", 20)
    assert both.config_for({}).optim.lr == 3e-4
    spec = load(tmp_path, "profile=slow", "optim.epochs=7")
    assert spec.config_for({}).optim.epochs == 7


EPOCHS = "trial.optim.epochs: 20"
UNKNOWN = "sweep.yaml:15: profiles.slow: unknown key 'optim.epoch'; did you mean 'optim.epochs'"


@pytest.mark.parametrize(
    ("text", "override", "words"),
    [
        (FILE, "profile=quik", "--set profile=quik: unknown profile 'quik'; did you mean 'quick'?"),
        (FILE.partition("profiles:")[0], "profile=quick", "the file has no profiles"),
        (f"{FILE}  odd: 3\n", "seeds=[1]", "sweep.yaml:18: profiles.odd: must be a mapping, got 3"),
        (FILE.replace(EPOCHS, "trial.optim.epochs: x"), "profile=slow", ":15: optim.epochs: "),
        (FILE.replace(EPOCHS, "optim.epoch: 20"), "profile=slow", UNKNOWN),
        (FILE.replace(EPOCHS, "optim.epoch: 20"), "seeds=[1]", UNKNOWN),
    ],
)
def test_what_is_no_profile_and_mistakes_in_one_are_told_with_their_lines(
    tmp_path: Path, text: str, override: str, words: str
) -> None:
    with pytest.raises(InvalidConfig) as error:
        load(tmp_path, override, text=text)
    (message,) = str(error.value).splitlines()
    assert words in message


def test_the_option_is_kept_for_a_later_resume(tmp_path: Path, carft: Carft) -> None:
    file = tmp_path / "sweep.yaml"
    file.write_text(FILE)
    assert "quick" in carft("check", file, "--profile", "quick", "--set", "seeds=[4]").out
    spec = load(tmp_path, "profile=quick", "seeds=[4]")
    assert Invocation.of(spec).overrides == ("profile=quick", "seeds=[4]")
    again = load_spec(file, Invocation.of(spec).overrides, text=spec.text)
    assert again.as_dict() == spec.as_dict()
