"""Registering: what is taken, what is refused with which words, and who sees it afterwards."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import pytest

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm
from carft_sweep.carft_core.algorithms.fine_tune import FineTune
from carft_sweep.carft_core.config.registry import Registry
from carft_sweep.carft_core.config.trial import field_names, trial_config
from carft_sweep.carft_core.data import FAMILIES, Family, FamilyData
from carft_sweep.carft_core.data.base import DataConfig
from carft_sweep.carft_core.data.families.downstream_tasks import TASKS
from carft_sweep.carft_core.errors import InvalidConfig, RequestError
from carft_sweep.carft_core.merges import MERGES, Merge, MergePoint, State
from carft_sweep.carft_core.models.prompts import TemplateSet, register_templates, template_set
from tests.carft_core.refusals import refused

pytestmark = pytest.mark.usefixtures("registries")


def algorithm(**own: Any) -> Any:
    """A subclass of fine_tune with `own` in its body."""
    body = {"__module__": "my_methods", "__qualname__": "Mine", **own}
    return types.new_class("Mine", (FineTune,), exec_body=lambda space: space.update(body))


def opens(config: DataConfig) -> FamilyData:
    del config
    raise RequestError("nothing here")


def test_the_built_in_ones_come_in_their_order_and_are_looked_up_as_in_any_mapping() -> None:
    assert list(ALGORITHMS)[:3] == ["zero_shot", "fine_tune", "car_ft"]
    assert next(iter(MERGES)) == "wise_ft"
    assert list(FAMILIES) == [
        *("icon_shift", "icon_shift_dev", "image_folder", "imagenet", "iwildcam", "fmow"),
        *("pacs", "vlcs", "office_home", "terra_incognita", "domain_net"),
        *TASKS,
    ]
    assert ALGORITHMS["fine_tune"] is FineTune
    assert isinstance(ALGORITHMS, Mapping)
    assert "no_such" not in ALGORITHMS


def test_what_is_registered_later_is_seen_wherever_names_are_read() -> None:
    @ALGORITHMS.register
    class Mine(FineTune):
        name: ClassVar[str] = "mine"
        summary: ClassVar[str] = "Mine"
        pull: float = 0.5

    family = FAMILIES.register(Family("my_family", "mine", opens, {"optim.epochs": 3}))
    config = trial_config({"data": {"family": "my_family"}, "algorithm": {"name": "mine"}})
    assert (config.algorithm, config.optim.epochs) == (Mine(), 3)
    assert trial_config(config.as_dict()) == config
    assert "algorithm.pull" in field_names()
    assert "algorithm.pull" not in field_names("car_ft")
    assert family is FAMILIES["my_family"]
    with pytest.raises(InvalidConfig, match="did you mean 'mine'"):
        trial_config({"algorithm": "minee"})


class _HalfMerge(Merge):
    name: ClassVar[str] = "half"
    summary: ClassVar[str] = "Half of it"

    def state(self, point: MergePoint, zero_shot: State, tuned: State) -> State:
        del point, zero_shot
        return tuned


class _Silent(Algorithm):
    name: ClassVar[str] = "silent"
    summary: ClassVar[str] = "Without a loss"


def _refusals() -> Iterable[tuple[Registry[Any], Any, str]]:
    named = {"name": "mine", "summary": "Mine"}
    yield ALGORITHMS, FineTune(), "must be a class derived from Algorithm, not its instance"
    yield ALGORITHMS, "mine", "it must be a class derived from Algorithm"
    yield ALGORITHMS, int, "it must be a class derived from Algorithm"
    yield ALGORITHMS, Algorithm, "must be a class derived from Algorithm"
    yield ALGORITHMS, _Silent, "it lacks `loss`"
    yield ALGORITHMS, algorithm(), "no `name` of its own, as in name: ClassVar"
    yield ALGORITHMS, algorithm(name="mine"), "no `summary` of its own"
    yield ALGORITHMS, algorithm(**named | {"name": "My-Method"}), "'My-Method' must be lower-case"
    yield ALGORITHMS, algorithm(**named | {"name": "1st"}), "beginning with a letter"
    yield ALGORITHMS, algorithm(**named | {"name": "a\n"}), "must be lower-case"
    yield ALGORITHMS, algorithm(**named | {"summary": "a\nb"}), "summary must be one line"
    yield ALGORITHMS, algorithm(**named | {"summary": " "}), "summary must be one line"
    yield (ALGORITHMS, algorithm(**named | {"name": "car_ft"}), "taken by carft_sweep.*CarFt; give")
    yield MERGES, _HalfMerge, "it lacks points"
    yield MERGES, FineTune, "must be a class derived from Merge"
    yield FAMILIES, Family, "of the class Family"
    yield FAMILIES, Family("icon_shift", "x", opens), "name 'icon_shift' is taken by carft_sweep"
    yield FAMILIES, Family("my-family", "x", opens), "must be lower-case"
    yield FAMILIES, Family("mine", "", opens), "summary must be one line"
    yield FAMILIES, Family("mine", "x", functools.partial(opens)), "must be a function"


@pytest.mark.parametrize(("registry", "candidate", "words"), list(_refusals()))
def test_what_is_of_no_kind_is_refused(registry: Registry[Any], candidate: Any, words: str) -> None:
    before, begin = dict(registry), "^(algorithm|merge|family) .* cannot be registered: "
    refused(f"{begin}.*{words}", registry.register, candidate)
    assert dict(registry) == before


def test_a_class_with_its_name_as_a_field_is_told_how_to_write_it() -> None:
    with pytest.warns(UserWarning, match="shadows an attribute"):
        mine = algorithm(name="mine", summary="Mine", __annotations__={"name": str})
    refused(r"as in name: ClassVar\[str\]", ALGORITHMS.register, mine)


def test_a_class_takes_the_place_of_the_old_one_of_its_module_and_of_no_other() -> None:
    old = ALGORITHMS.register(algorithm(name="mine", summary="Old"))
    new = ALGORITHMS.register(algorithm(name="mine", summary="New"))
    assert old is not new
    assert ALGORITHMS["mine"] is new
    assert list(ALGORITHMS).count("mine") == 1
    namesake = algorithm(name="mine", summary="Mine", __module__="my_others")
    refused(r"taken by my_methods\.Mine", ALGORITHMS.register, namesake)


def test_a_default_of_a_family_for_no_field_is_told_and_not_a_crash() -> None:
    for name in ("learning_rate", "optim.learning_rate"):
        FAMILIES.register(Family("mine", "mine", opens, {name: 0.1}))
        with pytest.raises(InvalidConfig, match=r"(data.family: .*|optim.\w+: )unknown field"):
            trial_config({"data": {"family": "mine"}, "algorithm": "fine_tune"})


def test_a_template_set_of_the_users_own_is_known_by_its_name() -> None:
    mine = TemplateSet("my_words", ("a scan of a {}", "{}"), ("scan",))
    assert register_templates(mine) is register_templates(mine) is mine
    assert template_set("my_words") is mine
    refused("another set has this name", register_templates, TemplateSet("openai", ("{}",)))
    refused("lower-case", register_templates, TemplateSet("My words", ("{}",)))
    assert len(template_set("openai").templates) == 80
