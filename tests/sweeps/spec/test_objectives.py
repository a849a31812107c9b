"""A sweep is judged by what its file says, else by what its families are ranked by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from carft_sweep.sweeps.results.records import comparison_spec
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec


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


@pytest.mark.parametrize(
    ("family", "by"),
    [
        ("iwildcam", "macro_f1"),
        ("fmow", "worst_group_top1"),
        ("caltech101", "mean_per_class_top1"),
        ("cifar10", None),
    ],
)
def test_left_out_it_is_the_familys(tmp_path: Path, family: str, by: str | None) -> None:
    spec = load(tmp_path, family)
    assert spec.report.by == by
    endpoint = comparison_spec(spec.as_dict()).endpoint
    assert (endpoint.by, endpoint.by_task) == (by or "top1", {})
    assert again(tmp_path, spec) == spec.as_dict()


def test_what_the_file_says_goes_before_and_stays_said(tmp_path: Path) -> None:
    spec = load(tmp_path, "iwildcam", by="top1")
    assert comparison_spec(spec.as_dict()).endpoint.by == "top1"
    assert again(tmp_path, spec) == spec.as_dict()


def test_tasks_have_each_their_own(tmp_path: Path) -> None:
    own = {"caltech101": "mean_per_class_top1", "cifar10": "top1"}
    spec = load(tmp_path, *own, tasks=True)
    assert (spec.report.by, spec.report.by_family) == (None, own)
    assert comparison_spec(spec.as_dict()).endpoint.by_task == own
    assert again(tmp_path, spec) == spec.as_dict()
    alike = load(tmp_path, "caltech101", "flowers102", tasks=True).report
    assert (alike.by, alike.by_family) == ("mean_per_class_top1", {})
    said = {"caltech101": "top1", "cifar10": "top1"}
    assert load(tmp_path, *own, tasks=True, by_family=said).report.by_family == said


def test_families_that_are_no_tasks_are_judged_by_top1_with_a_warning(tmp_path: Path) -> None:
    spec = load(tmp_path, "iwildcam", "cifar10")
    assert (spec.report.by, spec.report.by_family) == (None, {})
    assert any("iwildcam by macro_f1, cifar10 by top1" in said for said in spec.warnings)
