"""Where the data lie: the option, the file, the environment, in this order, and told to workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.cli.parser import overrides, parse
from carft_sweep.sweeps.engines.resources import Hardware
from carft_sweep.sweeps.home import Home
from carft_sweep.sweeps.ledger.generations import Invocation
from carft_sweep.sweeps.plan.estimate import estimate_sweep
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec
from tests.imagenet_tree import sweep

Load = Callable[..., SweepSpec]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Loads a sweep of some data, with CARFT_DATA and options."""

    def loaded(
        data: object, *given: str, environment: str | None = None, **changes: Any
    ) -> SweepSpec:
        if environment is not None:
            monkeypatch.setenv("CARFT_DATA", environment)
        else:
            monkeypatch.delenv("CARFT_DATA", raising=False)
        file = tmp_path / "rooted.yaml"
        trial = {"data": data, "algorithm": "car_ft"}
        file.write_text(json.dumps({"name": "rooted", "trial": trial, **changes}))
        return load_spec(file, overrides(parse(["run", str(file), *given])))

    return loaded


IMAGENET = {"family": "imagenet"}


def test_the_environment_fills_in_what_nobody_said(load: Load) -> None:
    assert load(IMAGENET, environment="/data").config_for({}).data.root == "/data"
    assert load(IMAGENET).config_for({}).data.root is None
    assert load(IMAGENET, environment="").config_for({}).data.root is None


def test_the_file_goes_before_the_environment_and_the_option_before_both(load: Load) -> None:
    there = {**IMAGENET, "root": "/mine"}
    assert load(there, environment="/data").config_for({}).data.root == "/mine"
    given = load(there, "--data-root", "/given: here", environment="/data")
    assert given.config_for({}).data.root == "/given: here"
    set_ = load(IMAGENET, "--set", "data.root=/set", environment="/data")
    assert set_.config_for({}).data.root == "/set"


def test_a_relative_folder_is_one_of_where_the_command_was_given(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(IMAGENET, "--data-root", "x").config_for({}).data.root == str(tmp_path / "x")
    assert load(IMAGENET, environment="y").config_for({}).data.root == str(tmp_path / "y")


@pytest.mark.parametrize("data", [None, {}, {"family": "icon_shift"}, {"family": "image_folder"}])
def test_families_that_lie_elsewhere_ignore_the_environment(load: Load, data: object) -> None:
    assert load(data, environment="/data").config_for({}).data.root is None


def test_where_the_family_varies_all_must_lie_below_the_root(load: Load) -> None:
    def roots(*families: str) -> set[str | None]:
        found = load(
            {}, environment="/data", parameters={"data.family": {"values": list(families)}}
        )
        return {found.config_for(point).data.root for point in found.points()}

    assert roots("imagenet") == {"/data"}
    assert roots("imagenet", "icon_shift") == {None}


def test_families_of_retention_lie_below_it_where_the_own_does_not(load: Load) -> None:
    measured = {"retention": ["dtd"]}

    def roots(data: object, eval_: object) -> tuple[str | None, str | None]:
        trial = {"data": data, "algorithm": "car_ft", "eval": eval_}
        config = load(data, environment="/data", trial=trial).config_for({})
        return config.data.root, config.eval.retention_root

    assert roots({"family": "icon_shift"}, measured) == (None, "/data")
    assert roots({"family": "icon_shift"}, {**measured, "retention_root": "/b"}) == (None, "/b")
    assert roots({"family": "icon_shift"}, {}) == (None, None)
    assert roots({"family": "cifar10"}, measured) == ("/data", None)
    assert roots({"family": "cifar10", "root": "/mine"}, measured) == ("/mine", None)


def test_what_is_missing_of_retention_is_told_by_check(load: Load, tmp_path: Path) -> None:
    measured = {"retention": ["dtd"], "retention_root": str(tmp_path)}
    trial = {"data": {"family": "icon_shift"}, "algorithm": "car_ft", "eval": measured}
    with pytest.raises(RequestError, match=r"eval\.retention: dtd: data\.root: .* lacks folders"):
        estimate_sweep(load({}, trial=trial), Home(tmp_path / "home"), Hardware(1))


def test_a_root_that_varies_is_left_alone(load: Load) -> None:
    found = load(IMAGENET, environment="/data", parameters={"data.root": {"values": ["/a", "/b"]}})
    assert [found.config_for(point).data.root for point in found.points()] == ["/a", "/b"]


def test_resuming_needs_no_environment(load: Load) -> None:
    spec = load(IMAGENET, environment="/data")
    assert spec.overrides == ('data.root="/data"',)
    assert load_spec(spec.source_path, spec.overrides).config_for({}).data.root == "/data"
    again = Invocation.of(spec).with_override("data.root", '"/moved"')
    assert again.overrides == ('data.root="/moved"',)
    assert trial_config(spec.config_for({}).as_dict()) == spec.config_for({})


def test_check_tells_what_of_the_data_is_not_as_published(
    imagenet_root: Path, tiny_clip_files: Path, tmp_path: Path
) -> None:
    file = tmp_path / "shifts.yaml"
    file.write_text(sweep(imagenet_root, tiny_clip_files))
    plan = estimate_sweep(load_spec(file), Home(tmp_path / "home"), Hardware(1))
    told = [warning for warning in plan.warnings if "as published" in warning]
    assert len(told) == 7  # once, whatever number of runs
    assert told[0].startswith("imagenet: train has 3,000 images here")
