"""The profile `draws` of `domainbed` is DomainBed's search: its laws, its default, its number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from carft_sweep.carft_core.data.families.domainbed import DOMAIN_BED
from carft_sweep.sweeps.space.points import hashed
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec

DRAWS, SEED = 20_000, 0
SETTINGS = 20
OPTIM = {"optim.lr": 5e-5, "optim.weight_decay": 1e-6, "optim.batch_size": 32}
DEFAULT = {**OPTIM, "algorithm.kl_weight": 1}
"""DomainBed's, but for its decay of 0; see below."""
LAWS: Mapping[str, tuple[float, float, float]] = {
    "optim.lr": (10, -5, -3.5),
    "optim.weight_decay": (10, -6, -2),
    "algorithm.kl_weight": (10, -1, 1),
}
"""Base and ends of the exponent, which is uniform: `lr`, `weight_decay` and, for example,
`mmd_gamma` of DomainBed's `hparams_registry.py` at commit b93c22a. CLIP's images are none of its
SMALL_IMAGES, and the network, a ResNet or a ViT, changes none of these laws."""
OF_DOMAIN_NET = ("run_cap=120", "parameters.optim.batch_size.max=32")


def search(*overrides: str, profile: str = "draws") -> SweepSpec:
    return load_spec("domainbed", [f"profile={profile}", *overrides])


def drawn(spec: SweepSpec, name: str) -> NDArray[Any]:
    """Many draws of one parameter, as a sweep of many settings would make them."""
    (law,) = [item for item in spec.parameters if item.name == name]
    return np.array([law.quantile(hashed(SEED, number, name)) for number in range(DRAWS)])


@pytest.mark.parametrize("name", LAWS)
def test_rates_decays_and_weights_have_its_laws(name: str) -> None:
    base, low, high = LAWS[name]
    law = stats.loguniform(base**low, base**high)
    assert stats.kstest(drawn(search(), name), law.cdf).pvalue > 0.01
    its_own = base ** np.random.RandomState(SEED).uniform(low, high, DRAWS)
    assert stats.ks_2samp(drawn(search(), name), its_own).pvalue > 0.01


@pytest.mark.parametrize(
    ("overrides", "high"), [((), 5.5), (OF_DOMAIN_NET, 5)], ids=["four sets", "DomainNet"]
)
def test_batches_have_its_law_which_rounds_down(overrides: tuple[str, ...], high: float) -> None:
    sizes = np.arange(8, int(2**high) + 1)
    shares = np.diff(np.log2([*sizes, 2**high]).clip(max=high)) / (high - 3)
    counts = Counter(drawn(search(*overrides), "optim.batch_size").tolist())
    assert {*counts} <= {*sizes[shares > 0].tolist()}
    expected = DRAWS * shares[shares > 0]
    seen = [counts[size] for size in sizes[shares > 0].tolist()]
    assert stats.chisquare(seen, expected).pvalue > 0.01
    exponents = np.random.RandomState(SEED).uniform(3, high, DRAWS)
    its_own = Counter((2**exponents).astype(int).tolist())
    both = [seen, [its_own[size] for size in sizes[shares > 0].tolist()]]
    assert stats.chi2_contingency(both).pvalue > 0.01


@pytest.mark.parametrize("family", [family.name for family in DOMAIN_BED])
def test_each_algorithm_has_twenty_settings_on_each_domain_the_default_first(family: str) -> None:
    profile = "draws" if family == "pacs" else f"{family},draws"
    overrides = [f"profile={name}" for name in profile.split(",")]
    overrides += OF_DOMAIN_NET if family == "domain_net" else ()
    spec = load_spec("domainbed", overrides)
    assert spec.warnings == ()
    baselines = spec.baseline_configs()
    tuned = [baseline.params for baseline in baselines if baseline.algorithm == "fine_tune"]
    for points, fields in ((spec.points(), DEFAULT), (tuned, OPTIM)):
        for domain in spec.task_values:
            own = [point for point in points if point["data.test_domain"] == domain]
            settings = [{name: point[name] for name in fields} for point in own]
            assert len({str(setting) for setting in settings}) == len(settings) == SETTINGS
            assert settings[0] == fields
    # As there, the algorithms share what they draw in common.
    shared = [{name: point[name] for name in tuned[0]} for point in spec.points()]
    assert tuned == shared
