"""The trial config: defaults, round trip, and every mistake at once."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import jsonschema
import pytest
from pydantic import ValidationError

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm
from carft_sweep.carft_core.algorithms.car_ft import CarFt
from carft_sweep.carft_core.algorithms.fine_tune import FineTune
from carft_sweep.carft_core.config.trial import TrialConfig, field_names, flatten, trial_config
from carft_sweep.carft_core.data import FAMILIES
from carft_sweep.carft_core.errors import InvalidConfig
from carft_sweep.carft_core.merges import MERGES, Merge, MergePoint

FULL: dict[str, Any] = {
    "model": {"name": "ViT-B-16", "pretrained": "openai"},
    "data": {"family": "image_folder", "root": "/data", "val_fraction": 0.02},
    "prompts": {"classes": "openai", "contexts": "simple"},
    "algorithm": {"name": "car_ft", "kl_weight": 3.0},
    "optim": {"lr": 3e-5, "steps": 100, "batch_size": 64, "micro_batch": 16},
    "merges": [{"name": "wise_ft", "alphas": [0.0, 0.5]}],
    "eval": {"every_epoch": True},
    "keep": {"result": "best_val"},
    "device": "cuda:1",
    "precision": "bf16",
    "workers": 4,
}


def problems(data: dict[str, Any]) -> list[str]:
    with pytest.raises(InvalidConfig) as caught:
        trial_config(data)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("data", [{"algorithm": "fine_tune"}, FULL])
def test_a_config_reads_back_from_its_own_plain_data(data: dict[str, Any]) -> None:
    config = trial_config(data)
    assert trial_config(json.loads(json.dumps(config.as_dict()))) == config


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_defaults_fill_in_what_is_left_out_and_no_more(family: str) -> None:
    config = trial_config({"data": {"family": family}, "algorithm": "fine_tune"})
    values = dict(flatten(config.as_dict()))
    for name, default in FAMILIES[family].defaults.items():
        assert values[name] == default
    null = {"epochs": None, "steps": None}
    data = {"data": {"family": family}, "algorithm": "fine_tune"}
    assert trial_config({**data, "optim": null}) == config
    with_rate = trial_config({**data, "optim": {"lr": 0.5}})
    assert with_rate.optim.lr == 0.5


def test_some_hundred_images_of_ones_own_and_the_small_model_are_learned_by_default() -> None:
    data = {"data": {"family": "image_folder"}, "algorithm": "fine_tune"}
    optim = trial_config(data).optim
    assert (optim.batch_size, optim.epochs, optim.lr) == (32, 20, 5e-4)
    large = {"model": {"name": "ViT-B-32", "pretrained": "openai"}}
    assert trial_config({**data, **large}).optim.lr == 1e-5


def test_steps_replace_the_epochs_of_the_defaults() -> None:
    config = trial_config({"algorithm": "fine_tune", "optim": {"steps": 7}})
    assert (config.optim.steps, config.optim.epochs) == (7, None)


def test_every_mistake_is_told_at_once() -> None:
    told = problems(
        {
            "modle": {},
            "data": {"family": "icon_shfit"},
            "optim": {"lr": -1, "epochs": 2.5, "lerning_rate": 3},
            "algorithm": {"name": "car_ft", "kl_wieght": 1},
            "merges": [{"name": "wise_ft", "alphas": [2]}, {"name": "soup"}],
            "device": "gpu",
        }
    )
    text = "\n".join(told)
    for expected in (
        "modle: unknown field 'modle'; did you mean 'model'?",
        "data.family: unknown family 'icon_shfit'; did you mean 'icon_shift",
        "optim.lr: must be greater than 0, got -1",
        "optim.epochs: must be a valid integer, got 2.5",
        "optim.lerning_rate: unknown field",
        "algorithm.kl_wieght: unknown field 'kl_wieght'; did you mean 'kl_weight'?",
        "merges[0].alphas[0]: must be less than or equal to 1, got 2",
        "merges[1].name: unknown merge 'soup'; Known: "
        + ", ".join(sorted(MERGES))
        + ". One of your own is registered in a file that `import:` or --import names.",
        "device: must be auto, cpu, cuda, cuda:N or mps, got 'gpu'; for an Nvidia GPU say cuda",
    ):
        assert expected in text
    assert text.count("alphas") == 1


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({}, f"algorithm.name: which algorithm? Known: {', '.join(sorted(ALGORITHMS))}."),
        ({"algorithm": "car-ft"}, "algorithm.name: unknown algorithm 'car-ft'; did you mean"),
        ({"algorithm": "fine_tune", "optim": 3}, "optim: must be a mapping of fields, got 3"),
        (
            {"algorithm": "fine_tune", "optim": {"epochs": 1, "steps": 1}},
            "optim: give epochs or steps, not both",
        ),
        (
            {"algorithm": "fine_tune", "merges": ["wise_ft", "wise_ft"]},
            "merges[1]: wise_ft is in the list twice",
        ),
        ({"algorithm": "fine_tune", "merges": "wise_ft"}, "merges: must be a list of merges"),
        ({"algorithm": {"name": "fine_tune"}, "optim": {"lr": True}}, "optim.lr: must"),
        ({"algorithm": {"name": "fine_tune"}, "workers": -1}, "workers: must be greater than"),
        (
            {"algorithm": "fine_tune", "workers": 3000},
            "workers: must be less than or equal to 256 or be 'auto', got 3000",
        ),
        (
            {"algorithm": "fine_tune", "optim": {"lr": 100.0}},
            "optim.lr: must be less than or equal to 10, got 100.0",
        ),
        (
            {"algorithm": "fine_tune", "optim": {"epochs": 10**15}},
            "optim.epochs: must be less than or equal to 100000, got 1000000000000000",
        ),
        (
            {"algorithm": "fine_tune", "optim": {"steps": 10**15}},
            "optim.steps: must be less than or equal to 100000000, got 1000000000000000",
        ),
        ({"algorithm": {"name": ["x"]}}, "algorithm.name: unknown algorithm"),
        (
            {"algorithm": "fine_tune", "data": {"augmentation": "wise_ft"}},
            "data.augmentation: icon_shift has training views of its own; leave the field out",
        ),
        (
            {
                "algorithm": "fine_tune",
                "data": {"family": "image_folder", "augmentation": "wise-ft"},
            },
            "data.augmentation: unknown augmentation 'wise-ft'; did you mean 'wise_ft'?",
        ),
        (
            {"algorithm": "fine_tune", "data": {"bad_files": "ignore"}},
            "data.bad_files: must be 'refuse' or 'skip', got 'ignore'",
        ),
    ],
)
def test_a_mistake_says_where_and_what_is_allowed(data: dict[str, Any], expected: str) -> None:
    assert any(expected in line for line in problems(data)), problems(data)


@pytest.mark.parametrize("cls", [*ALGORITHMS.values(), *MERGES.values()])
def test_no_field_is_infinite_or_nan(cls: type[Algorithm | Merge]) -> None:
    """JSON has no such numbers, and a worker gets its config as JSON."""
    for field, value in itertools.product(cls.model_fields, (math.inf, math.nan)):
        with pytest.raises(ValidationError):
            cls.model_validate({field: value})


def test_every_field_that_a_sweep_may_vary_exists() -> None:
    config = trial_config(FULL)
    known = {name for name, _ in flatten(config.as_dict())}
    assert known <= {*field_names()}
    assert "algorithm.kl_weight" in field_names("car_ft")
    assert "algorithm.kl_weight" not in field_names("fine_tune")
    assert all(
        f"algorithm.{f}" in field_names() for a in ALGORITHMS.values() for f in a.model_fields
    )


def test_shifts_are_a_list_of_names_each_once() -> None:
    def shifts(value: object) -> tuple[str, ...] | None:
        data = {"family": "image_folder", "shifts": value}
        return trial_config({"data": data, "algorithm": "fine_tune"}).data.shifts

    assert shifts(["v2", "r"]) == ("v2", "r")
    assert shifts([]) == ()
    assert shifts(None) is None
    for wrong, words in ((["r", "r"], "r is in the list twice"), ("r", "must "), ([""], "")):
        with pytest.raises(InvalidConfig, match=rf"data\.shifts.*{words}"):
            shifts(wrong)


@pytest.mark.parametrize(
    ("value", "rule"), [("seeds", "be a valid integer"), (-1, "be greater than or equal to 0")]
)
def test_a_field_of_two_kinds_tells_both_in_one_line(value: object, rule: str) -> None:
    assert problems({"algorithm": "fine_tune", "data": {"split_seed": value}}) == [
        f"data.split_seed: must {rule} or be 'seed', got {value!r}"
    ]


@pytest.fixture
def averaged(registries: None) -> type[Algorithm]:
    """An algorithm around another one."""
    del registries

    @ALGORITHMS.register
    class Averaged(FineTune):
        name: ClassVar[str] = "averaged"
        summary: ClassVar[str] = "The moving average of another algorithm's weights"
        of: Algorithm = FineTune()
        decay: float = 0.9

    return Averaged


def test_an_algorithm_in_an_algorithm_is_named_and_read_back_in_the_same_way(
    averaged: type[Algorithm],
) -> None:
    inner = {"name": "car_ft", "kl_weight": 3.0}
    config = trial_config({"algorithm": {"name": "averaged", "of": inner}})
    assert config.algorithm == averaged(of=CarFt(kl_weight=3.0))  # type: ignore[call-arg]
    plain = json.loads(json.dumps(config.as_dict()))
    assert plain["algorithm"]["of"] == {
        **inner,
        "context_scale": None,
        "kl_direction": "teacher_student",
    }
    assert trial_config(plain) == config
    by_name = trial_config({"algorithm": {"name": "averaged", "of": "zero_shot"}})
    assert by_name.as_dict()["algorithm"] == {
        "name": "averaged",
        "of": {"name": "zero_shot"},
        "decay": 0.9,
    }


@pytest.mark.usefixtures("averaged")
def test_every_mistake_in_both_is_told_at_once() -> None:
    algorithm = {"name": "averaged", "of": {"name": "car_ft", "kl_weight": -1, "x": 1}, "deca": 1}
    assert problems({"algorithm": algorithm}) == [
        "algorithm.of.kl_weight: must be greater than or equal to 0, got -1",
        "algorithm.of.x: unknown field 'x'; Known: context_scale, kl_direction, kl_weight.",
        "algorithm.deca: unknown field 'deca'; did you mean 'decay'?",
    ]
    assert problems({"algorithm": {"name": "averaged", "of": "carft"}})[0].startswith(
        "algorithm.of.name: unknown algorithm 'carft'; did you mean 'car_ft'?"
    )
    assert problems({"algorithm": {"name": "averaged", "of": 3}}) == [
        "algorithm.of: must be a mapping of fields, got 3"
    ]


def test_a_field_of_a_section_that_stands_beside_it_is_named_by_its_section() -> None:
    assert problems({"algorithm": "fine_tune", "lr": 1e-4, "learning_rate": 1e-4, "name": "x"}) == [
        "lr: unknown field 'lr'; did you mean 'optim.lr'?",
        "learning_rate: unknown field 'learning_rate'; did you mean 'optim.lr'?",
        f"name: unknown field 'name'; Known: {', '.join(sorted(TrialConfig.model_fields))}.",
    ]


def test_a_class_takes_its_own_name_among_its_fields_and_no_other() -> None:
    assert CarFt.model_validate({"name": "car_ft", "kl_weight": 2.0}) == CarFt(kl_weight=2.0)
    with pytest.raises(ValueError, match="name"):
        CarFt.model_validate({"name": "fine_tune"})


def test_what_stands_beside_the_sections_is_of_the_kinds_that_it_says() -> None:
    config = trial_config({"algorithm": "fine_tune"})
    assert (config.deterministic, config.workers, config.precision) == (False, "auto", "auto")
    assert (config.compile, config.optim.grad_checkpointing) == ("auto", False)
    told = trial_config({"algorithm": "fine_tune", "deterministic": True, "workers": 0})
    assert (told.deterministic, told.workers) == (True, 0)
    assert trial_config({"algorithm": "fine_tune", "compile": False}).compile is False
    wrong = {"algorithm": "fine_tune", "workers": "many", "precision": "fp16", "deterministic": 1}
    wrong["compile"] = "yes"
    assert problems(wrong) == [
        "precision: must be 'auto', 'fp32', 'tf32' or 'bf16', got 'fp16'",
        "deterministic: must be a valid boolean, got 1",
        "compile: must be a valid boolean or be 'auto', got 'yes'",
        "workers: must be a valid integer or be 'auto', got 'many'",
    ]


def test_the_schema_of_a_field_that_is_an_algorithm_takes_any_by_its_name(
    averaged: type[Algorithm],
) -> None:
    schema = averaged.model_json_schema()
    for good in ("car_ft", {"name": "car_ft", "kl_weight": 3.0}):
        jsonschema.validate({"of": good}, schema)
    for wrong in (3, {"kl_weight": 3.0}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"of": wrong}, schema)


def test_a_dump_leaves_out_what_it_is_told_to() -> None:
    assert CarFt().model_dump(exclude={"name", "kl_weight"}).keys() == {
        "context_scale",
        "kl_direction",
    }


def test_templates_in_the_place_of_a_set_are_told_what_is_allowed() -> None:
    with pytest.raises(InvalidConfig, match=r"prompts\.contexts: must name a template set"):
        trial_config({"algorithm": "fine_tune", "prompts": {"contexts": ["a photo of a {}"]}})


class _Halves(Merge):
    name: ClassVar[str] = "halves"
    summary: ClassVar[str] = "A merge whose label is no name of a folder"

    def points(self) -> Sequence[MergePoint]:
        return (MergePoint("halves@a/b", 500, {}),)


def test_a_merge_without_a_label_that_can_be_kept_is_a_mistake_of_the_config(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(MERGES, "halves", _Halves)
    with pytest.raises(InvalidConfig, match=r"merges\[0\]: 'halves@a/b' is no label"):
        trial_config({"algorithm": {"name": "car_ft"}, "merges": [{"name": "halves"}]})
