"""Every shipped sweep file with every one of its profiles is whole, before there is any data."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest

from carft_sweep.carft_core.algorithms import ALGORITHMS
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.data.families.domainbed import DOMAIN_BED
from carft_sweep.carft_core.models.source import BUILTIN
from carft_sweep.sweeps.spec.document import parse
from carft_sweep.sweeps.spec.spec import SweepSpec, load_spec, recipes

PAGE = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text()
PRETRAINED = frozenset(open_clip.list_pretrained())
SMOKE = "smoke"
PROFILES: dict[str, dict[str, Any]] = {
    name: parse(file.read_text()).data.get("profiles", {}) for name, file in recipes().items()
}
PAPERS = [name for name, profiles in PROFILES.items() if SMOKE in profiles]
"""Those of the papers' benchmarks; the others run on the embedded one, small as they are."""
VIT = "builtin_vit"


def of(recipe: str, *profiles: str) -> SweepSpec:
    return load_spec(recipe, [f"profile={name}" for name in profiles])


def test_the_papers_benchmarks_are_there() -> None:
    assert PAPERS == ["domainbed", "downstream", "imagenet", "wilds"]


@pytest.mark.parametrize("recipe", PAPERS)
def test_every_profile_makes_a_sweep_of_its_own_name_also_with_smoke(recipe: str) -> None:
    taken = [(), *((name,) for name in PROFILES[recipe])]
    taken += [(name, SMOKE) for name in PROFILES[recipe] if name != SMOKE]
    specs = {profiles: of(recipe, *profiles) for profiles in taken}
    assert len({spec.name for spec in specs.values()}) == len(specs)
    for profiles, spec in specs.items():
        assert profiles == () or spec.name.endswith(profiles[-1])
        for config in configs(spec):
            weights = (config.model.name, config.model.pretrained)
            smoke = [(name, None) for name in BUILTIN]
            assert weights in (smoke if SMOKE in profiles else PRETRAINED)


def configs(spec: SweepSpec) -> Iterator[TrialConfig]:
    """Of its baselines, and of its trials where these are known before it runs."""
    yield from (baseline.config for baseline in spec.baseline_configs())
    yield from map(spec.config_for, spec.points() if spec.method == "grid" else ())


def settings(spec: SweepSpec) -> Counter[str]:
    """How many settings of each method run."""
    return Counter(config.algorithm.name for config in configs(spec) if config.algorithm.trains)


def test_every_rival_is_tuned_over_eight_settings_whichever_run() -> None:
    every = settings(of("rivals"))
    assert set(every.values()) == {8}
    trained = {name for name, cls in ALGORITHMS.items() if cls.trains}
    # No WiSE-FT curve; needs domains in train; needs a ViT; has a recipe of its own.
    assert trained - {*every} == {"clip_adapter", "coral", "r_adapter", "autoft"}
    for name in {*PROFILES["rivals"]} - {"vit", "merges", "object_mask", "spd"}:
        spec = of("rivals", name)
        assert settings(spec) == dict.fromkeys(("car_ft", "fine_tune", name), 8)
        assert spec.name == f"rivals_{name}"
    spd = of("rivals", "spd")
    assert settings(spd) == {"car_ft": 8, "fine_tune": 8}
    optims = [config.optim for config in configs(spd) if config.algorithm.trains]
    assert {optim.name for optim in optims} == {"spd"}
    assert {optim.weight_decay for optim in optims} >= {0.3, 1, 3, 10}


def test_the_rivals_of_a_vit_are_those_of_the_other_model_and_two_more() -> None:
    vit, other = of("rivals", "vit"), of("rivals")
    assert settings(vit) == settings(other) | {"r_adapter": 8}
    assert {config.model.name for config in configs(vit)} == {VIT}
    for name in ("r_adapter", "object_mask", "tracer"):
        assert of("rivals", "vit", name).name == f"rivals_vit_{name}"


def test_autoft_varies_every_weight_of_its_objective_and_is_valued_out_of_distribution() -> None:
    varied = {item.name: item for item in of("autoft").parameters}
    weights = {f"algorithm.{name}" for name in ALGORITHMS["autoft"].model_fields}
    assert {*varied} == weights | {"optim.lr", "optim.weight_decay"}
    ranges = {varied[name].boundary_values()[0][1] for name in weights}
    assert ranges == {1e-4}, "as in its code"
    goals = {of("autoft", *names).metric.name for names in ((), ("fmow",))}
    assert goals == {"ood/val/macro_f1", "ood/val/worst_group_top1"}
    final = load_spec("autoft", ["profile=final"], best_of=lambda *_: [dict.fromkeys(weights, 1.0)])
    assert final.fixed_values(0) == dict.fromkeys(weights, 1.0)
    assert [config.optim.lr for config in configs(final) if config.algorithm.trains] == [1e-5] * 3


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
