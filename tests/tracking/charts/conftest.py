"""Made-up sweeps that charts are drawn from."""

from __future__ import annotations

import pytest

from carft_sweep.tracking.charts.data import ChartData
from carft_sweep.tracking.comparison.compare import compare
from tests.tracking.charted import full
from tests.tracking.made_up import kl_sweep


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> ChartData:
    """Of a sweep of which every chart has something to show."""
    return full(tmp_path_factory.mktemp("charted"))


@pytest.fixture(scope="session")
def plain() -> ChartData:
    """One parameter on a grid, five seeds, no folders."""
    return ChartData(compare(kl_sweep(), sweep="kl_weight"))
