"""A sweep is judged by what its file says, else by what its families are ranked by, and is refused
where they do not measure it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.data import open_data
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.results.records import comparison_spec
from carft_sweep.sweeps.spec.metrics import check_measured
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec
from tests import domain_bed_tree
from tests.sweeps.conftest import Carft


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return domain_bed_tree.make(tmp_path_factory.mktemp("pacs"), "pacs", per_domain=50)


def refusal(name: str, config: TrialConfig) -> str:
    try:
        check_measured(name, config, open_data(config.data))
    except RequestError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def pacs(root: Path) -> TrialConfig:
    data = {"family": "pacs", "root": str(root), "test_domain": "sketch"}
    return trial_config({"data": data, "algorithm": {"name": "fine_tune"}})


@pytest.fixture(scope="module")
def icons() -> TrialConfig:
    return trial_config({"algorithm": {"name": "fine_tune"}})


def test_what_is_measured_passes_and_what_is_missing_is_named_with_what_there_is(
    pacs: TrialConfig, icons: TrialConfig
) -> None:
    for name in (
        *("id/val/mean_group_top1", "ood/sketch/top1", "ood/sketch_out/nll", "ood/sketch_all/ece"),
        *("ood/mean/top1", "gain/ood/top1", "train/loss", "context/id/val/kl"),
    ):
        assert refusal(name, pacs) == ""
    splits = "id/val, ood/sketch, ood/sketch_out, ood/sketch_all, ood/mean"
    for name in ("id/test/top1", "gap/top1", "hmean/top1", "ood/photo/top1"):
        assert refusal(name, pacs) == f"metric: pacs has no {name}; it is measured on {splits}"
    usual = "top1, nll, ece, brier"
    assert refusal("id/val/mean_group_top1", icons) == (
        f"metric: icon_shift has no id/val/mean_group_top1; of id/val it has {usual}"
    )
    assert refusal("ood/sketch/worst_group_top1", pacs).endswith(f"of ood/sketch it has {usual}")
    assert refusal("gap/top1", icons) == ""


def test_corruptions_alone_have_a_mean_of_their_own_and_no_other(icons: TrialConfig) -> None:
    data = open_data(icons.data.model_copy(update={"shifts": ("outline", "pixel")}))
    data = replace(data, own_means={"ood/c": ("ood/outline", "ood/pixel")})
    check_measured("ood/c/top1", icons, data)
    with pytest.raises(RequestError, match=r"measured on id/val, .*, ood/pixel, ood/c$"):
        check_measured("ood/mean/top1", icons, data)
    with pytest.raises(RequestError, match="icon_shift has no gain/ood/top1"):
        check_measured("gain/ood/top1", icons, data)


def test_a_run_of_such_a_sweep_trains_nothing(tmp_path: Path, carft: Carft) -> None:
    file, home = tmp_path / "sweep.json", tmp_path / "home"
    sweep = {"name": "groups", "baselines": ["zero_shot"], "trial": {"algorithm": "fine_tune"}}
    for key in ("metric", "constraint"):
        file.write_text(json.dumps({**sweep, key: {"name": "id/val/macro_f1"}}))
        printed = carft("run", file, "--home", home, "--in-process", code=2).err
        assert f"{key}: icon_shift has no id/val/macro_f1" in printed
    assert not [*home.glob("runs/*/history.json")]


def load(folder: Path, *families: str, tasks: bool = False, **report: Any) -> SweepSpec:
    """A sweep over these families, or of the one."""
    trial: dict[str, Any] = {"algorithm": "car_ft", "data": {"root": str(folder)}}
    data: dict[str, Any] = {"name": "x", "trial": trial}
    if len(families) == 1:
        trial["data"]["family"] = families[0]
    else:
        data["parameters"] = {"data.family": {"values": [*families]}}
    if tasks:
        data["tasks"] = "data.family"
    if report:
        data["report"] = report
    file = folder / "x.yaml"
    file.write_text(json.dumps(data))
    return load_spec(file)


def again(folder: Path, spec: SweepSpec) -> dict[str, Any]:
    """The plain data of a sweep that was loaded from its plain data."""
    file = folder / "again.yaml"
    file.write_text(json.dumps(spec.as_dict()))
    return load_spec(file).as_dict()


def test_left_out_it_is_the_familys(tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, Any], str | None]] = [
        ("iwildcam", {}, "macro_f1"),
        ("fmow", {}, "worst_group_top1"),
        ("caltech101", {}, "mean_per_class_top1"),
        ("cifar10", {}, None),
        ("iwildcam", {"by": "top1"}, "top1"),
    ]
    for family, report, by in cases:
        spec = load(tmp_path, family, **report)
        assert spec.report.by == by
        endpoint = comparison_spec(spec.as_dict()).endpoint
        assert (endpoint.by, endpoint.by_task) == (by or "top1", {})
        assert again(tmp_path, spec) == spec.as_dict()


def test_tasks_have_each_their_own(tmp_path: Path) -> None:
    own = {"caltech101": "mean_per_class_top1", "cifar10": "top1"}
    spec = load(tmp_path, *own, tasks=True)
    assert (spec.report.by, spec.report.by_family) == (None, own)
    assert comparison_spec(spec.as_dict()).endpoint.by_task == own
    assert again(tmp_path, spec) == spec.as_dict()
    alike = load(tmp_path, "caltech101", "flowers102", tasks=True).report
    assert (alike.by, alike.by_family) == ("mean_per_class_top1", {})
    chosen = {"caltech101": "top1", "cifar10": "top1"}
    assert load(tmp_path, *own, tasks=True, by_family=chosen).report.by_family == chosen


def test_families_that_are_no_tasks_are_judged_by_top1_with_a_warning(tmp_path: Path) -> None:
    spec = load(tmp_path, "iwildcam", "cifar10")
    assert (spec.report.by, spec.report.by_family) == (None, {})
    assert any("iwildcam by macro_f1, cifar10 by top1" in warning for warning in spec.warnings)
