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
        data: object, *words: str, environment: str | None = None, **changes: Any
    ) -> SweepSpec:
        monkeypatch.delenv("CARFT_DATA", raising=False)
        if environment is not None:
            monkeypatch.setenv("CARFT_DATA", environment)
        file = tmp_path / "rooted.yaml"
        trial = {"data": data, "algorithm": "car_ft"}
        file.write_text(json.dumps({"name": "rooted", "trial": trial, **changes}))
        return load_spec(file, overrides(parse(["run", str(file), *words])))

    return loaded


IMAGENET = {"family": "imagenet"}


def test_the_option_goes_before_the_file_and_the_file_before_the_environment(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def root(data: object, *words: str, environment: str | None = None) -> str | None:
        return load(data, *words, environment=environment).config_for({}).data.root

    monkeypatch.chdir(tmp_path)
    placed = {**IMAGENET, "root": "/mine"}
    assert root(IMAGENET, environment="/data") == "/data"
    assert root(IMAGENET) is root(IMAGENET, environment="") is None
    assert root(placed, environment="/data") == "/mine"
    assert root(placed, "--data-root", "/given: here", environment="/data") == "/given: here"
    assert root(IMAGENET, "--set", "data.root=/set", environment="/data") == "/set"
    assert root(IMAGENET, "--data-root", "x") == str(tmp_path / "x")
    assert root(IMAGENET, environment="y") == str(tmp_path / "y")
    for data in (None, {}, {"family": "icon_shift"}, {"family": "image_folder"}):
        assert root(data, environment="/data") is None  # it lies elsewhere


def test_where_the_family_varies_all_must_lie_below_the_root(load: Load) -> None:
    def roots(data: object, **parameters: list[str]) -> list[str | None]:
        varied = {f"data.{name}": {"values": values} for name, values in parameters.items()}
        spec = load(data, environment="/data", parameters=varied)
        return [spec.config_for(point).data.root for point in spec.points()]

    assert roots({}, family=["imagenet"]) == ["/data"]
    assert roots({}, family=["imagenet", "icon_shift"]) == [None, None]
    assert roots(IMAGENET, root=["/a", "/b"]) == ["/a", "/b"], "what varies is left alone"


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
    warnings = [warning for warning in plan.warnings if "as published" in warning]
    assert len(warnings) == 7  # once, whatever number of runs
    assert warnings[0].startswith("imagenet: train has 3,000 images here")
