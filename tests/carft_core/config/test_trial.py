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
    plain = config.algorithm.model_dump()
    assert type(config.algorithm).model_validate(plain) == config.algorithm
    with pytest.raises(ValueError, match="name"):
        type(config.algorithm).model_validate({"name": "zero_shot"})


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_defaults_fill_in_what_is_left_out_and_no_more(family: str) -> None:
    data = {"data": {"family": family}, "algorithm": "fine_tune"}
    config = trial_config(data)
    assert FAMILIES[family].defaults.items() <= dict(flatten(config.as_dict())).items()
    assert trial_config({**data, "optim": {"epochs": None, "steps": None}}) == config
    assert trial_config({**data, "optim": {"lr": 0.5}}).optim.lr == 0.5


def test_some_hundred_images_of_ones_own_and_the_small_model_are_learned_by_default() -> None:
    data = {"data": {"family": "image_folder"}, "algorithm": "fine_tune"}
    optim = trial_config(data).optim
    assert (optim.batch_size, optim.epochs, optim.lr) == (32, 20, 5e-4)
    large = {"model": {"name": "ViT-B-32", "pretrained": "openai"}}
    assert trial_config({**data, **large}).optim.lr == 1e-5
    optim = trial_config({"algorithm": "fine_tune", "optim": {"steps": 7}}).optim
    assert (optim.steps, optim.epochs) == (7, None), "they replace the epochs of the defaults"


def test_every_mistake_is_told_at_once() -> None:
    mistakes = problems(
        {
            "modle": {},
            "data": {"family": "icon_shfit"},
            "optim": {"lr": -1, "epochs": 2.5, "lerning_rate": 3},
            "algorithm": {"name": "car_ft", "kl_wieght": 1},
            "merges": [{"name": "wise_ft", "alphas": [2]}, {"name": "soup"}],
            "device": "gpu",
        }
    )
    text = "\n".join(mistakes)
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


class _Halves(Merge):
    name: ClassVar[str] = "halves"
    summary: ClassVar[str] = "A merge whose label is no name of a folder"

    def points(self) -> Sequence[MergePoint]:
        return (MergePoint("halves@a/b", 500, {}),)


ALGORITHM_NAMES = ", ".join(sorted(ALGORITHMS))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"algorithm": None}, f"algorithm.name: which algorithm? Known: {ALGORITHM_NAMES}."),
        ({"algorithm": "car-ft"}, "algorithm.name: unknown algorithm 'car-ft'; did you mean"),
        ({"algorithm": {"name": ["x"]}}, "algorithm.name: unknown algorithm"),
        ({"optim": 3}, "optim: must be a mapping of fields, got 3"),
        ({"optim": {"epochs": 1, "steps": 1}}, "optim: give epochs or steps, not both"),
        ({"optim": {"lr": True}}, "optim.lr: must"),
        ({"optim": {"lr": 100.0}}, "optim.lr: must be less than or equal to 10, got 100.0"),
        (
            {"optim": {"epochs": 10**15}},
            "optim.epochs: must be less than or equal to 100000, got 1000000000000000",
        ),
        (
            {"optim": {"steps": 10**15}},
            "optim.steps: must be less than or equal to 100000000, got 1000000000000000",
        ),
        ({"merges": ["wise_ft", "wise_ft"]}, "merges[1]: wise_ft is in the list twice"),
        ({"merges": "wise_ft"}, "merges: must be a list of merges"),
        ({"workers": -1}, "workers: must be greater than"),
        ({"workers": 3000}, "workers: must be less than or equal to 256 or be 'auto', got 3000"),
        (
            {"data": {"augmentation": "wise_ft"}},
            "data.augmentation: icon_shift has training views of its own; leave the field out",
        ),
        (
            {"data": {"family": "image_folder", "augmentation": "wise-ft"}},
            "data.augmentation: unknown augmentation 'wise-ft'; did you mean 'wise_ft'?",
        ),
        (
            {"data": {"bad_files": "ignore"}},
            "data.bad_files: must be 'refuse' or 'skip', got 'ignore'",
        ),
        (
            {"data": {"split_seed": "seeds"}},
            "data.split_seed: must be a valid integer or be 'seed', got 'seeds'",
        ),
        (
            {"data": {"split_seed": -1}},
            "data.split_seed: must be greater than or equal to 0 or be 'seed', got -1",
        ),
        ({"prompts": {"contexts": ["a photo of a {}"]}}, "prompts.contexts: must name a template"),
        ({"merges": [{"name": "halves"}]}, "merges[0]: 'halves@a/b' is no label"),
    ],
)
def test_a_mistake_says_where_and_what_is_allowed(
    data: dict[str, Any], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(MERGES, "halves", _Halves)
    fields = {"algorithm": "fine_tune", **data}
    (mistake,) = problems({key: value for key, value in fields.items() if value is not None})
    assert mistake.startswith(expected)


@pytest.mark.parametrize("cls", [*ALGORITHMS.values(), *MERGES.values()])
def test_no_field_is_infinite_or_nan(cls: type[Algorithm | Merge]) -> None:
    """JSON has no such numbers, and a worker gets its config as JSON."""
    for field, value in itertools.product(cls.model_fields, (math.inf, math.nan)):
        with pytest.raises(ValidationError):
            cls.model_validate({field: value})


def test_every_field_that_a_sweep_may_vary_exists() -> None:
    known = {name for name, _ in flatten(trial_config(FULL).as_dict())}
    own = {f"algorithm.{field}" for cls in ALGORITHMS.values() for field in cls.model_fields}
    assert known | own <= {*field_names()}
    assert "algorithm.kl_weight" in field_names("car_ft")
    assert "algorithm.kl_weight" not in field_names("fine_tune")


def test_shifts_are_a_list_of_names_each_once() -> None:
    def shifts(value: object) -> tuple[str, ...] | None:
        data = {"family": "image_folder", "shifts": value}
        return trial_config({"data": data, "algorithm": "fine_tune"}).data.shifts

    assert [shifts(names) for names in (["v2", "r"], [], None)] == [("v2", "r"), (), None]
    for wrong, words in ((["r", "r"], "r is in the list twice"), ("r", "must "), ([""], "")):
        with pytest.raises(InvalidConfig, match=rf"data\.shifts.*{words}"):
            shifts(wrong)


@pytest.fixture
def averaged(registries: None) -> type[Algorithm]:
    del registries

    @ALGORITHMS.register
    class Averaged(FineTune):
        name: ClassVar[str] = "averaged"
        summary: ClassVar[str] = "The moving average of another algorithm's weights"
        of: Algorithm = FineTune()
        decay: float = 0.9

    return Averaged


def test_an_algorithm_in_another_is_named_and_read_back(averaged: type[Algorithm]) -> None:
    inner = {"name": "car_ft", "kl_weight": 3.0}
    config = trial_config({"algorithm": {"name": "averaged", "of": inner}})
    assert config.algorithm == averaged(of=CarFt(kl_weight=3.0))  # type: ignore[call-arg]
    plain = json.loads(json.dumps(config.as_dict()))
    defaults = {"context_scale": None, "kl_direction": "teacher_student"}
    assert plain["algorithm"]["of"] == inner | defaults
    assert CarFt().model_dump(exclude={"name", "kl_weight"}).keys() == defaults.keys()
    assert trial_config(plain) == config
    by_name = {"name": "averaged", "of": "zero_shot"}
    whole = {"name": "averaged", "of": {"name": "zero_shot"}, "decay": 0.9}
    assert trial_config({"algorithm": by_name}).as_dict()["algorithm"] == whole
    schema = averaged.model_json_schema()
    for good in ("car_ft", inner):
        jsonschema.validate({"of": good}, schema)
    for wrong in (3, {"kl_weight": 3.0}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({"of": wrong}, schema)


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
    fields = {"lr": 1e-4, "learning_rate": 1e-4, "batch_size": 8, "colour": "x"}
    sizes = "'optim.batch_size' or 'eval.batch_size'"
    assert problems({"algorithm": "fine_tune", **fields}) == [
        "lr: unknown field 'lr'; did you mean 'optim.lr'?",
        "learning_rate: unknown field 'learning_rate'; did you mean 'optim.lr'?",
        f"batch_size: unknown field 'batch_size'; did you mean {sizes}?",
        f"colour: unknown field 'colour'; Known: {', '.join(sorted(TrialConfig.model_fields))}.",
    ]


def test_what_stands_beside_the_sections_is_of_the_kinds_that_it_says() -> None:
    config = trial_config({"algorithm": "fine_tune"})
    assert (config.deterministic, config.workers, config.precision) == (False, "auto", "auto")
    assert (config.compile, config.optim.grad_checkpointing) == ("auto", False)
    fields = {"deterministic": True, "workers": 0, "compile": False}
    config = trial_config({"algorithm": "fine_tune", **fields})
    assert (config.deterministic, config.workers, config.compile) == (True, 0, False)
    wrong = {"workers": "many", "precision": "fp16", "deterministic": 1, "compile": "yes"}
    assert problems({"algorithm": "fine_tune", **wrong}) == [
        "precision: must be 'auto', 'fp32', 'tf32' or 'bf16', got 'fp16'",
        "deterministic: must be a valid boolean, got 1",
        "compile: must be a valid boolean or be 'auto', got 'yes'",
        "workers: must be a valid integer or be 'auto', got 'many'",
    ]
