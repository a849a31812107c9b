"""What runs on a GPU runs on a CPU at the smallest size, and what recipes take of one is told of as
many images as their makers publish.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from unittest import mock

import pytest

from benchmarks.gpu import smoke
from benchmarks.gpu.recipes import RECIPES, published
from carft_sweep.carft_core import data
from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.data import FAMILIES, open_data
from carft_sweep.carft_core.training import compilation
from carft_sweep.sweeps.spec.spec import load_spec

OPTIONS = "--device cpu --model tiny --steps 2 --batch 8 --images 16 --workers 0 --bare-steps 1"
Smoke = Callable[..., dict[str, dict[str, object]]]


@pytest.fixture
def measure(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Smoke:
    """Its figures by name."""

    def measure(*options: str) -> dict[str, dict[str, object]]:
        monkeypatch.setattr(sys, "argv", ["smoke", *OPTIONS.split(), *options])
        assert smoke.main() == 0
        return {of["name"]: of for of in json.loads(capsys.readouterr().out)["figures"]}

    return measure


def test_the_smoke_runs_on_a_cpu(measure: Smoke) -> None:
    measured = measure()
    assert (measured["KL before the first step"]["value"], measured["loader"]["ok"]) == (0, None)
    assert measured["evaluation on three splits"]["beside"] == {"models": 12}
    assert all(figure["value"] for name, figure in measured.items() if not name.startswith("KL"))


@pytest.mark.slow
def test_the_ways_to_compute_the_same_steps_agree_on_a_cpu(
    measure: Smoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    measured = measure("--all")
    for name in ("grad_checkpointing", "two runs at once", "two ranks"):
        assert measured[name]["ok"], name


@pytest.mark.parametrize(
    ("fields", "train", "measured"),
    [
        ({"family": "cifar100"}, 45_000, {"id/test": 10_000}),
        ({"family": "fmow"}, 76_863, {"id/test": 11_327, "ood/test": 22_108, "ood/val": 19_915}),
        (
            {"family": "pacs", "test_domain": "sketch"},
            4_851,
            {"ood/sketch": 3_144, "ood/sketch_out": 785},
        ),
    ],
)
def test_a_family_without_images_has_the_published_number(
    fields: Mapping[str, str], train: int, measured: Mapping[str, int]
) -> None:
    families = {name: published(of) if of.folders else of for name, of in FAMILIES.items()}
    config = trial_config({"data": fields, "algorithm": "fine_tune"}).for_seed(0)
    with mock.patch.object(data, "FAMILIES", families):
        family_data = open_data(config.data)
        assert len(family_data.train) == train
        assert {name: len(split) for name, split in family_data.measured().items()} == measured
        assert (family_data.train.groups is None) == (fields["family"] != "pacs")


def test_its_recipes_and_profiles_are_shipped_with_a_real_model() -> None:
    for recipe, profiles in RECIPES.items():
        for profile in profiles:
            spec = load_spec(recipe, [f"profile={profile}"] if profile else [])
            assert spec.typical_config().model.name == "ViT-B-16"
