"""Every shipped sweep file with every one of its profiles is whole, before there is any data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.families.domainbed import DOMAIN_BED
from carft_sweep.sweeps.spec.document import parse
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec, recipes

PAGE = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text()
PRETRAINED = frozenset(open_clip.list_pretrained())
SMOKE = "smoke"
PROFILES: dict[str, dict[str, Any]] = {
    name: parse(file.read_text()).data.get("profiles", {}) for name, file in recipes().items()
}
PAPERS = [name for name, profiles in PROFILES.items() if profiles]
"""Those of the papers' benchmarks; the others run on the embedded one, small as they are."""


def of(recipe: str, *profiles: str) -> SweepSpec:
    return load_spec(recipe, [f"profile={name}" for name in profiles])


def test_the_papers_benchmarks_are_there() -> None:
    assert PAPERS == ["domainbed", "downstream", "imagenet", "wilds"]


@pytest.mark.parametrize("recipe", PAPERS)
def test_every_profile_makes_a_sweep_of_its_own_name_also_with_smoke(recipe: str) -> None:
    taken = [(), *((name,) for name in PROFILES[recipe])]
    taken += [(name, SMOKE) for name in PROFILES[recipe] if name != SMOKE]
    found = {profiles: of(recipe, *profiles) for profiles in taken}
    assert len({spec.name for spec in found.values()}) == len(found)
    for profiles, spec in found.items():
        assert profiles == () or spec.name.endswith(profiles[-1])
        for config in configs(spec):
            weights = (config.model.name, config.model.pretrained)
            assert weights == ("builtin", None) if SMOKE in profiles else weights in PRETRAINED


def configs(spec: SweepSpec) -> Iterator[TrialConfig]:
    """Of its baselines, and of its trials where these are known before it runs."""
    yield from (baseline.config for baseline in spec.baseline_configs())
    yield from map(spec.config_for, spec.points() if spec.method == "grid" else ())


def test_every_set_of_domains_holds_each_of_its_domains_out() -> None:
    sets = {()} | {(name,) for name in PROFILES["domainbed"] if name in FAMILIES}
    families = {}
    for profiles in sets:
        spec = of("domainbed", *profiles)
        (family,) = {config.data.family for config in configs(spec)}
        families[family] = set(spec.task_values)
    assert families == {family.name: {*family.folders} for family in DOMAIN_BED}


@pytest.mark.parametrize("recipe", PAPERS)
def test_the_page_tells_of_every_recipe_and_profile(recipe: str) -> None:
    section = section_of(f"[^\n]*`{recipe}`")
    assert f"carft-sweep run {recipe} " in section
    of_every_recipe = set.intersection(*(set(PROFILES[name]) for name in PAPERS))
    own = set(PROFILES[recipe]) - of_every_recipe
    assert {name for name in own if f"`{name}`" not in section} == set()
    backbones = section_of("Backbones")
    assert {name for name in of_every_recipe if f"`{name}`" not in backbones} == set()


def section_of(heading: str) -> str:
    """The text of the page's one section with this heading."""
    sections = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    (section,) = sections
    return str(section)
