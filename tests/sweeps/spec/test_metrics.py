"""A sweep that values runs by what their family does not measure is refused before it trains."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from carft_sweep.carft_core.config.trial import TrialConfig, trial_config
from carft_sweep.carft_core.data import open_data
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.sweeps.spec.metrics import check_measured
from tests import domain_bed_tree
from tests.sweeps.conftest import Carft


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return domain_bed_tree.make(tmp_path_factory.mktemp("pacs"), "pacs", per_domain=50)


def told(name: str, config: TrialConfig) -> str:
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


@pytest.mark.parametrize(
    "name",
    [
        *("id/val/mean_group_top1", "ood/sketch/top1", "ood/sketch_out/nll", "ood/sketch_all/ece"),
        *("ood/mean/top1", "gain/ood/top1", "train/loss", "context/id/val/kl"),
    ],
)
def test_what_is_measured_passes(pacs: TrialConfig, name: str) -> None:
    assert told(name, pacs) == ""


@pytest.mark.parametrize("name", ["id/test/top1", "gap/top1", "hmean/top1", "ood/photo/top1"])
def test_a_missing_split_is_named_with_those_there_are(pacs: TrialConfig, name: str) -> None:
    splits = "id/val, ood/sketch, ood/sketch_out, ood/sketch_all, ood/mean"
    assert told(name, pacs) == f"metric: pacs has no {name}; it is measured on {splits}"


def test_a_missing_kind_is_named_with_the_others(pacs: TrialConfig, icons: TrialConfig) -> None:
    usual = "top1, nll, ece, brier"
    assert told("id/val/mean_group_top1", icons) == (
        f"metric: icon_shift has no id/val/mean_group_top1; of id/val it has {usual}"
    )
    assert told("ood/sketch/worst_group_top1", pacs).endswith(f"of ood/sketch it has {usual}")
    assert told("gap/top1", icons) == ""


def test_corruptions_alone_have_a_mean_of_their_own_and_no_other(icons: TrialConfig) -> None:
    data = open_data(icons.data.model_copy(update={"shifts": ("outline", "pixel")}))
    data = replace(data, own_means={"ood/c": ("ood/outline", "ood/pixel")})
    check_measured("ood/c/top1", icons, data)
    with pytest.raises(RequestError, match=r"measured on id/val, .*, ood/pixel, ood/c$"):
        check_measured("ood/mean/top1", icons, data)
    with pytest.raises(RequestError, match="icon_shift has no gain/ood/top1"):
        check_measured("gain/ood/top1", icons, data)


@pytest.mark.parametrize("key", ["metric", "constraint"])
def test_a_run_of_such_a_sweep_trains_nothing(tmp_path: Path, carft: Carft, key: str) -> None:
    file = tmp_path / "sweep.json"
    sweep = {"name": "groups", "baselines": ["zero_shot"], key: {"name": "id/val/macro_f1"}}
    file.write_text(json.dumps({**sweep, "trial": {"algorithm": "fine_tune"}}))
    home = ["--home", str(tmp_path / "home")]
    assert (
        f"{key}: icon_shift has no id/val/macro_f1"
        in carft("run", file, *home, "--in-process", code=2).err
    )
    assert not [*(tmp_path / "home").glob("runs/*/history.json")]
