"""What authors of methods write first: integers for defaults, bare groups, numbers for terms,
optimisers that keep state in their groups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field
from torch import nn

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm, Batch, Loss
from carft_sweep.carft_core.algorithms.fine_tune import FineTune
from carft_sweep.carft_core.config.trial import trial_config
from carft_sweep.carft_core.config.user_code import own_code
from carft_sweep.carft_core.merges import MERGES
from carft_sweep.carft_core.merges.wise_ft import WiseFt
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import evaluation_digest, identify, own_code_of
from carft_sweep.carft_core.runs.models import models_of
from carft_sweep.carft_core.testing import BrokenContract, check_algorithm
from carft_sweep.carft_core.training.loop import epochs, train
from carft_sweep.carft_core.training.optim import Group, OptimConfig
from tests.carft_core.refusals import refused
from tests.carft_core.trained import Config, same, stopped, trained, weights

pytestmark = pytest.mark.usefixtures("registries")


class IntegerDefault(FineTune):
    name: ClassVar[str] = "integer_default"
    summary: ClassVar[str] = "An integer where a float is meant"
    alpha: float = 1
    pairs: tuple[tuple[float, float], ...] = ((0, 1),)


class IntegerStrength(WiseFt):
    name: ClassVar[str] = "integer_strength"
    summary: ClassVar[str] = "An integer where a float is meant"
    strength: float = 1


def test_an_integer_default_of_a_float_is_the_same_run_in_the_worker(toy_config: Config) -> None:
    ALGORITHMS.register(IntegerDefault)
    MERGES.register(IntegerStrength)
    config = toy_config({"algorithm": "integer_default", "merges": ["integer_strength"]})
    text = json.dumps(config.as_dict())
    again = trial_config(json.loads(text))  # as a worker gets it
    assert (config.as_dict(), json.dumps(again.as_dict())) == (again.as_dict(), text)
    digest = identify(config, 0).digest
    assert identify(again, 0).digest == digest
    digests, digests_again = (
        [evaluation_digest(digest, model, each) for model in models_of(each).values()]
        for each in (config, again)
    )
    assert digests == digests_again
    config = toy_config({"algorithm": {"name": "integer_default", "pairs": [[0.5, 2]]}})
    assert config.algorithm.model_dump()["pairs"] == ((0.5, 2.0),)
    with_a_text = {"algorithm": {"name": "integer_default", "pairs": [[0.5, "2"]]}}
    refused(r"algorithm\.pairs\[0\]\[1\]: must be a valid number", toy_config, with_a_text)


class CountingSgd(torch.optim.SGD):
    """Counts its steps in its groups, as ScheduleFree and Prodigy do."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            group["k"] += 1
        return super().step(closure)


class Stateful(FineTune):
    name: ClassVar[str] = "stateful"
    summary: ClassVar[str] = "State in an optimiser's groups, and a buffer infinite at first"

    def build(self, teacher: Teacher) -> nn.Module:
        model = super().build(teacher)
        model.register_buffer("best", torch.tensor(torch.inf))
        return model

    def optimiser(self, groups: list[Group], optim: OptimConfig) -> torch.optim.Optimizer:
        return CountingSgd([{**group, "k": 0} for group in groups], lr=optim.lr)


def test_state_in_groups_and_buffers_is_resumed(toy_config: Config, tmp_path: Path) -> None:
    ALGORITHMS.register(Stateful)
    config, folder = toy_config({"algorithm": "stateful"}), tmp_path / "stopped"
    stopped(config, folder, after=1)
    assert [report.epoch for report in epochs(config, 0, workdir=folder)] == [2]
    trained(config, tmp_path / "whole")
    assert same(weights(folder), weights(tmp_path / "whole"))


class BareGroups(FineTune):
    name: ClassVar[str] = "bare_groups"
    summary: ClassVar[str] = "Groups as torch wants them, and a term that is a number"

    def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
        del optim
        assert isinstance(model, ImageClassifier)
        return [{"params": list(model.head.parameters())}]

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        loss, terms = super().loss(model, batch, teacher)
        return loss, {**terms, "constant": 2.5}  # type: ignore[dict-item]


def test_bare_groups_and_terms_that_are_numbers_train(
    toy_config: Config, teacher: Teacher, tmp_path: Path
) -> None:
    ALGORITHMS.register(BareGroups)
    check_algorithm(BareGroups, teacher)
    trained(toy_config({"algorithm": "bare_groups", "optim.epochs": 1}), tmp_path)
    assert RunFolder(tmp_path).history()[-1]["metrics"]["train/constant"] == 2.5


@pytest.mark.parametrize("method", ["build", "loss", "after_step", "classifier"])
def test_a_mistake_in_an_own_method_is_told_with_its_line(
    method: str, toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Mistaken(FineTune):
        name: ClassVar[str] = "mistaken"
        summary: ClassVar[str] = "It takes what is not there, or more than there is"

    def fail(*_: object, **__: object) -> None:
        raise errors.pop()

    errors: list[Exception] = [torch.OutOfMemoryError("out of memory"), KeyError("missing")]
    monkeypatch.setattr(Mistaken, method, fail)
    ALGORITHMS.register(Mistaken)
    config = toy_config({"algorithm": "mistaken", "optim.epochs": 1})
    words = r"algorithm\.name: mistaken: KeyError: 'missing' \(at .*steps\.py:\d+\)"
    refused(words, train, config, 0)
    with pytest.raises(torch.OutOfMemoryError):  # is no mistake in it
        train(config, 0)


class Grows(FineTune):
    name: ClassVar[str] = "grows"
    summary: ClassVar[str] = "A buffer whose shape follows the steps"

    def build(self, teacher: Teacher) -> nn.Module:
        model = super().build(teacher)
        model.register_buffer("seen", torch.zeros(0))
        return model

    def after_step(self, model: nn.Module, step: int, steps: int) -> None:
        del steps
        model.register_buffer("seen", torch.zeros(step + 1))


def test_the_laws_find_a_checkpoint_that_does_not_fit(teacher: Teacher) -> None:
    ALGORITHMS.register(Grows)
    with pytest.raises(BrokenContract, match=r"grows: .*must be loaded again"):
        check_algorithm(Grows, teacher)


class Partnered(FineTune):
    name: ClassVar[str] = "partnered"
    summary: ClassVar[str] = "Another algorithm in a field, which it does not wrap"
    partner: Algorithm = Field(default="fine_tune")  # type: ignore[assignment]
    more: tuple[Algorithm, ...] = ()


def test_the_code_of_an_algorithm_in_any_field_is_in_the_digest(toy_config: Config) -> None:
    ALGORITHMS.register(Partnered)
    ALGORITHMS.register(Grows)
    for fields in ({"partner": "grows"}, {"more": ["fine_tune", "grows"]}):
        config = toy_config({"algorithm": {"name": "partnered", **fields}})
        assert own_code_of(config) == own_code(Partnered, Grows)
    assert own_code_of(toy_config({"algorithm": "partnered"})) == own_code(Partnered)
