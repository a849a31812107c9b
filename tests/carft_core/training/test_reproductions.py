"""Bugs of the core's first edition, each with a run that shows it; red at 695e0e9."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar
from weakref import WeakSet

import pytest
import torch
from torch import Tensor, nn

from carft_sweep.carft_core.algorithms import ALGORITHMS, Batch, Loss
from carft_sweep.carft_core.algorithms.fine_tune import FineTune
from carft_sweep.carft_core.errors import RequestError
from carft_sweep.carft_core.merges import MERGES, Merge, MergePoint
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.evaluations import finish
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import evaluation_digest
from carft_sweep.carft_core.training.loop import epochs, train
from carft_sweep.carft_core.training.optim import Group, OptimConfig, decay_groups
from tests.carft_core.merges.test_interpolation import Narrow
from tests.carft_core.stand_ins import failing, watched
from tests.carft_core.trained import Config, same, stopped, trained, weights

pytestmark = pytest.mark.usefixtures("registries")


class Activation:
    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def test_b2_no_graph_outlives_its_micro_batch(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B2: the terms of a micro-batch lived while the next one was computed, and the last ones
    through validation, so that `micro_batch` saved half of what it should."""
    alive: WeakSet[Activation] = WeakSet()
    at_loss, loss = list[int](), FineTune.loss

    def packed(tensor: Tensor) -> Activation:
        activation = Activation(tensor)
        alive.add(activation)
        return activation

    def hooked(self: FineTune, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        at_loss.append(len(alive))
        with torch.autograd.graph.saved_tensors_hooks(packed, lambda activation: activation.tensor):
            made = loss(self, model, batch, teacher)
        assert alive, "the hooks see what a graph keeps"
        return made

    monkeypatch.setattr(FineTune, "loss", hooked)
    at_encoding = watched(monkeypatch, Teacher, "encode", lambda *_: len(alive))
    train(toy_config({"algorithm": "fine_tune", "optim.micro_batch": 3}), 0, workdir=tmp_path)
    assert len(at_loss) > 2 * 6
    assert {*at_loss, *at_encoding} == {0}


def test_b3_all_fields_of_a_merge_are_in_its_evaluations_digest(toy_config: Config) -> None:
    """B3: two strengths of one label had one digest, so the first's numbers stood for both."""

    @MERGES.register
    class Mine(Merge):
        name: ClassVar[str] = "mine"
        summary: ClassVar[str] = "Mine"
        strength: float = 1.0

        def points(self) -> Sequence[MergePoint]:
            return (MergePoint("mine", 0, {}),)

    def digest(strength: float) -> str:
        merge = Mine(strength=strength)
        return evaluation_digest("a" * 64, (merge, merge.points()[0]), toy_config())

    assert digest(1.0) == digest(1.0)
    assert digest(1.0) != digest(0.1)


def test_b6_a_classifier_of_another_shape_is_evaluated(toy_config: Config, tmp_path: Path) -> None:
    """B6: an algorithm whose classifier is another module trained to its end, and then failed."""

    @ALGORITHMS.register
    class Foreign(FineTune):
        name: ClassVar[str] = "foreign"
        summary: ClassVar[str] = "Two layers"
        starts_at_zero_shot: ClassVar[bool] = False
        keeps_shape: ClassVar[bool] = False

        def build(self, teacher: Teacher) -> nn.Module:
            del teacher
            return Narrow()

    result = trained(toy_config({"algorithm": "foreign"}), tmp_path)
    last = RunFolder(tmp_path).history()[-1]["metrics"]
    assert result.metrics["id/val/top1"] == last["id/val/top1"]
    assert result.metrics["id/val/nll"] == pytest.approx(last["id/val/nll"])
    assert "ood/mean/top1" in result.metrics
    with pytest.raises(RequestError, match=r"wise_ft cannot be made of foreign: .* another shape"):
        toy_config({"algorithm": "foreign", "merges": [{"name": "wise_ft"}]})


def test_b7_a_run_computes_in_its_own_precision_whatever_ran_before(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B7: the flag for TF32 was set when model and data were opened, which a process keeps, so a
    run in fp32 behind one in bf16 convolved in TF32 under the digest of fp32."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def flags(classifier: ImageClassifier, _: Tensor) -> tuple[bool, bool, bool]:
        return classifier.training, matmul.allow_tf32, cudnn.allow_tf32

    seen = watched(monkeypatch, ImageClassifier, "features", flags)
    monkeypatch.setattr(matmul, "allow_tf32", True)
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    for number in range(2):  # the second time with what the process keeps
        train(toy_config({"algorithm": "fine_tune"}), number, workdir=tmp_path / str(number))
    assert {*seen} == {(True, False, False), (False, False, False)}, "in steps and in evaluations"
    assert (matmul.allow_tf32, cudnn.allow_tf32) == (True, True), "others' flags stay as they are"


def test_b8_a_checkpoint_that_the_disk_does_not_give_is_not_given_up(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B8: so it did after a hiccup of a network's file system, and hours were lost."""
    trained(toy_config(), tmp_path / "whole")
    folder = tmp_path / "hiccup"
    stopped(toy_config(), folder, after=1)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "load", failing(OSError(116, "Stale file handle")))
        with pytest.raises(OSError, match="Stale"):
            list(epochs(toy_config(), 0, workdir=folder))
    assert [report.epoch for report in epochs(toy_config(), 0, workdir=folder)] == [2]
    assert same(weights(folder), weights(tmp_path / "whole"))


def test_b10_each_group_has_its_own_learning_rate(toy_config: Config, tmp_path: Path) -> None:
    """B10: the loop set one rate for all groups, whatever the algorithm had given them."""
    optimisers: list[torch.optim.Optimizer] = []
    rates: list[list[float]] = []

    @ALGORITHMS.register
    class TwoRates(FineTune):
        name: ClassVar[str] = "two_rates"
        summary: ClassVar[str] = "Two rates"

        def groups(self, model: nn.Module, optim: OptimConfig) -> list[Group]:
            assert isinstance(model, ImageClassifier)
            tower = decay_groups(model.visual.named_parameters(), optim)
            return tower + decay_groups(model.head.named_parameters(), optim, lr_scale=10)

        def optimiser(self, groups: list[Group], optim: OptimConfig) -> torch.optim.Optimizer:
            optimisers.append(super().optimiser(groups, optim))
            return optimisers[-1]

        def after_step(self, model: nn.Module, step: int, steps: int) -> None:
            del model, step, steps
            rates.append([group["lr"] for group in optimisers[-1].param_groups])

    trained(toy_config({"algorithm": "two_rates", "optim.lr": 1e-4}), tmp_path)
    assert len(rates) == 6
    assert all(head == pytest.approx(10 * tower) for tower, head in rates)
    assert max(tower for tower, _ in rates) == pytest.approx(1e-4)


def test_b15_the_classifier_is_made_once_an_epoch(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """B15: it was made twice, for validation and for weights; FLYP encodes all prompts for it."""
    made = watched(monkeypatch, FineTune, "classifier", lambda *_: "classifier")
    config = toy_config({"algorithm": "fine_tune", "optim.epochs": 3})
    counts = [len(made) for _ in epochs(config, 0, workdir=tmp_path)]
    assert counts == [0, 1, 2, 3], "before training it is the teacher's"
    made.clear()
    finish(tmp_path, config, 0)
    assert len(made) == 1
