"""What makes two runs the same, and what does not."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.data import open_data
from carft_sweep.carft_core.files import digest_of
from carft_sweep.carft_core.merges import Merge, MergePoint, Model
from carft_sweep.carft_core.merges.wise_ft import WiseFt
from carft_sweep.carft_core.runs import identity
from carft_sweep.carft_core.runs.evaluations import finish, is_complete
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import evaluation_digest, identify
from carft_sweep.carft_core.training.setup import open_setup
from tests.carft_core.refusals import refused
from tests.carft_core.trained import Config, trained
from tests.tiny_vit import TINY_CONFIG, write_clip


def wise_ft(*alphas: float) -> tuple[Merge, MergePoint]:
    merge = WiseFt(alphas=alphas)
    return merge, merge.points()[0]


Changes = dict[str, Any]
HALF = wise_ft(0.5)
EMA = {"name": "ema", "of": "fine_tune"}
OF_CAR_FT = {"algorithm": EMA | {"of": "car_ft"}}
ZERO_SHOT = {"algorithm": "zero_shot"}
TRAINED_NORMS = {"optim.batch_norm": "train"}
SAM = {"optim.name": "sam", "optim.rho": 0.1}
OTHER_CONTEXTS = {"prompts.contexts": "openai"}


@pytest.mark.parametrize(
    ("run", "change"),
    [
        ({}, {"merges": [{"name": "wise_ft", "alphas": [0.3]}]}),
        ({}, {"eval": {"batch_size": 3}}),
        ({}, {"keep": {"result": "best_val"}}),
        ({}, {"workers": 2}),
        ({}, {"optim.micro_batch": 4}),
        ({}, {"data.shifts": ["pale"]}),
        ({}, {"data.augmentation": "flyp"}),  # the same views as wise_ft
        ({}, {"data.bad_files": "skip"}),  # of none
        ({"algorithm": "fine_tune"}, OTHER_CONTEXTS),
        ({"algorithm": EMA}, OTHER_CONTEXTS),
        ({"algorithm": EMA}, {"optim.micro_batch": 4}),
        (ZERO_SHOT, OTHER_CONTEXTS),
        (ZERO_SHOT, {"optim.lr": 1e-9}),
        (ZERO_SHOT, {"data.augmentation": "lipsum"}),
    ],
)
def test_what_decides_nothing_is_outside(toy_config: Config, run: Changes, change: Changes) -> None:
    assert identify(toy_config(run | change), 0).digest == identify(toy_config(run), 0).digest


@pytest.mark.parametrize(
    ("run", "change"),
    [
        ({}, {"algorithm": {"name": "car_ft", "kl_weight": 2.0}}),
        ({}, {"algorithm": {"name": "fine_tune"}}),
        ({}, {"optim.lr": 2e-3}),
        ({}, {"optim.epochs": 3}),
        ({}, {"optim.batch_size": 4}),
        ({}, {"data.val_fraction": 0.5}),
        ({}, {"data.train_fraction": 0.5}),
        ({}, {"data.shots": 2}),
        ({}, {"data.split_seed": 1}),
        ({}, {"data.augmentation": "domainbed"}),
        ({}, {"data.augmentation": "none"}),
        ({}, {"prompts.classes": "openai"}),
        ({}, OTHER_CONTEXTS),
        ({}, {"precision": "bf16"}),
        ({}, {"optim.name": "sgd"}),
        ({}, SAM),
        (SAM, {"optim.rho": 0.2}),
        # Items of a batch are coupled; a retry after too little memory halves the micro-batch.
        (TRAINED_NORMS, {"optim.micro_batch": 4}),
        ({"algorithm": "flyp"}, {"optim.micro_batch": 2}),
        ({"algorithm": EMA | {"of": "flyp"}}, {"optim.micro_batch": 2}),
        (OF_CAR_FT, OTHER_CONTEXTS),
        ({"algorithm": EMA}, OF_CAR_FT),
        (OF_CAR_FT, {"algorithm": EMA | {"of": {"name": "car_ft", "kl_weight": 3.0}}}),
    ],
)
def test_what_decides_weights_is_inside(toy_config: Config, run: Changes, change: Changes) -> None:
    assert identify(toy_config(run | change), 0).digest != identify(toy_config(run), 0).digest


def test_a_micro_batch_is_inside_where_the_image_tower_draws_at_random(
    toy_config: Config, dropping_clip_files: Path, tmp_path: Path
) -> None:
    """Each micro-batch has masks of its own, so another size trains to other weights."""
    model = {"name": str(dropping_clip_files)}

    def config(micro_batch: int, **fields: Any) -> TrialConfig:
        return toy_config({"model": model, "optim.micro_batch": micro_batch, **fields})

    nll = [trained(config(size), tmp_path / str(size)).metrics["id/val/nll"] for size in (4, 8)]
    assert nll[0] != pytest.approx(nll[1], rel=1e-4)
    assert len({identify(config(size), 0).digest for size in (2, 4, 8)}) == 3
    probes = {identify(config(size, algorithm="linear_probe"), 0).digest for size in (4, 8)}
    assert len(probes) == 1  # it is solved on features of the tower as it is evaluated


@pytest.mark.parametrize(
    ("projection", "algorithms", "lack"),
    [
        ("linear", ["r_adapter"], "TimmModel has no blocks"),
        ("mlp", ["carot", {"name": "ema", "of": "tracer"}], "the projection of TimmModel is not"),
    ],
)
def test_a_model_without_what_an_algorithm_uses_is_refused_before_anything_trains(
    toy_config: Config, tmp_path: Path, projection: str, algorithms: list[object], lack: str
) -> None:
    tower = {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": projection}
    vision = {**tower, "image_size": 32}
    model = {"name": str(write_clip(tmp_path, {**TINY_CONFIG, "vision_cfg": vision}))}
    for algorithm in algorithms:
        refused(lack, identify, toy_config({"model": model, "algorithm": algorithm}), 0)
    identify(toy_config({"model": model, "algorithm": "ldifs"}), 0)


def test_a_model_whose_files_changed_is_opened_anew(
    toy_config: Config, tiny_clip_files: Path, tmp_path: Path
) -> None:
    """Also within a process, as in a notebook: else its run would bear the digest of another."""
    folder = shutil.copytree(tiny_clip_files, tmp_path / "clip")
    config = toy_config({"model": {"name": str(folder)}})
    before = open_setup(config).teacher.clip.digest
    state = load_file(folder / "open_clip_model.safetensors")
    state["logit_scale"] += 0.1
    save_file(state, folder / "open_clip_model.safetensors")
    after = open_setup(config).teacher.clip
    assert identify(config, 0).parts["model"] == after.digest != before
    assert after.logit_scale == pytest.approx(float(state["logit_scale"].exp()))


def test_a_revision_is_of_one_thing(toy_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def digests() -> tuple[str, str]:
        config = toy_config()
        return identify(config, 0).digest, evaluation_digest("a" * 64, None, config)

    before = digests()
    for place, revision in enumerate(("TRAINING_REVISION", "MEASURING_REVISION")):
        with monkeypatch.context() as patch:
            patch.setattr(identity, revision, 10**6)
            changed = [old != new for old, new in zip(before, digests(), strict=True)]
        assert changed == [place == 0, place == 1]


def test_a_split_that_follows_the_seed_is_that_number(toy_config: Config, tmp_path: Path) -> None:
    follows = toy_config({"data.split_seed": "seed"})
    assert follows.follows_seed
    assert follows.for_seed(3) == toy_config({"data.split_seed": 3})
    assert toy_config().for_seed(3) == toy_config()
    assert identify(follows, 3) == identify(follows.for_seed(3), 3)
    with pytest.raises(ValueError, match="see for_seed"):
        open_data(follows.data)
    config = toy_config({**ZERO_SHOT, "data.split_seed": "seed"})
    result = trained(config, tmp_path, 4)
    assert RunFolder(tmp_path).claimed()["config"]["data"]["split_seed"] == 4
    assert finish(tmp_path, config, 4).metrics == result.metrics
    assert is_complete(tmp_path, config)


def test_what_trains_depends_on_a_seed_and_else_a_split_may(toy_config: Config) -> None:
    assert identify(toy_config(), 0).digest != identify(toy_config(), 1).digest
    assert identify(toy_config(ZERO_SHOT), 0) == identify(toy_config(ZERO_SHOT), 1)
    follows = toy_config({**ZERO_SHOT, "data.split_seed": "seed"})
    assert identify(follows, 0).digest != identify(follows, 1).digest
    assert "seed" not in identify(follows, 1).parts


def test_a_field_that_is_none_or_false_stands_in_no_identity(toy_config: Config) -> None:
    """So that one which comes later makes no old run another."""
    parts = identify(toy_config({"optim.decay_norms_and_biases": False}), 0).parts
    assert "test_domain" not in parts["data"]
    assert {"steps", "steps_per_epoch", "decay_norms_and_biases"}.isdisjoint(parts["optim"])
    assert "balanced" not in parts
    assert parts["data"]["split_seed"] == parts["optim"]["label_smoothing"] == 0
    steps = {"optim.epochs": None, "optim.steps": 6}
    plain, by_step = (toy_config({**steps, "optim.steps_per_epoch": n}) for n in (None, 2))
    assert identify(plain, 0).digest != identify(by_step, 0).digest


def test_moving_data_changes_nothing(toy_config: Config, toy_root: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_root, tmp_path / "elsewhere")
    moved = toy_config({"data.root": str(tmp_path / "elsewhere")})
    assert identify(moved, 0).digest == identify(toy_config(), 0).digest


def test_an_evaluation_is_named_by_run_model_and_what_is_measured(toy_config: Config) -> None:
    def digest(model: Model = HALF, training: str = "a" * 64, **changes: Any) -> str:
        named = {name.replace("__", "."): value for name, value in changes.items()}
        return evaluation_digest(training, model, toy_config(named))

    usual = digest()
    assert digest(eval={"batch_size": 2}) == digest(data__shifts=["dark", "pale"]) == usual
    assert digest(wise_ft(0.5, 0.9)) == usual, "another point of the merge is another evaluation"
    changed = [
        digest(wise_ft(0.6)),
        digest(None),
        digest(training="b" * 64),
        digest(keep={"result": "best_val"}),
        digest(eval={"logits": "always"}),
        digest(data__shifts=["pale"]),
        digest(prompts__contexts="openai"),
        digest(eval={"context_probe": False}),
    ]
    assert len({usual, *changed}) == 1 + len(changed)
    openai = digest(eval={"context_probe": False}, prompts__contexts="openai")
    assert openai == changed[-1], "contexts are in an evaluation that probes them"


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    data = {"b": 1, "a": {"z": [0.5], "é": None}, "": -0.0, "A": 10**20}
    turned = {"A": 10**20, "": -0.0, "a": {"é": None, "z": [0.5]}, "b": 1}
    assert digest_of(data) == digest_of(turned) != digest_of({**data, "b": 2})


SHIFT_DEV = {"data": {"family": "icon_shift_dev"}}


def test_a_split_seed_that_draws_nothing_makes_no_other_run(toy_config: Config) -> None:
    digests = {
        identify(toy_config({"data": {"family": "icon_shift_dev", "split_seed": seed}}), 0).digest
        for seed in (0, 1)
    }
    assert digests == {identify(toy_config(SHIFT_DEV), 0).digest}


@pytest.mark.parametrize("cut", [{"shots": 2}, {"train_fraction": 0.5}], ids=str)
def test_a_split_seed_that_draws_the_training_images_makes_another_run(
    toy_config: Config, cut: Changes
) -> None:
    digests = {
        identify(
            toy_config({"data": {"family": "icon_shift_dev", "split_seed": seed, **cut}}), 0
        ).digest
        for seed in (0, 1)
    }
    assert len(digests) == 2
