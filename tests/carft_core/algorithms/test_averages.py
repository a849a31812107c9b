"""EMA and SWAD: their averages by formulas and the authors' code, and what a wrapper claims."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from carft_sweep.carft_core.algorithms import ALGORITHMS, Algorithm, Batch, Loss, Wrapper
from carft_sweep.carft_core.algorithms.ema import Ema
from carft_sweep.carft_core.algorithms.swad import Swad, Valley
from carft_sweep.carft_core.errors import InvalidConfig
from carft_sweep.carft_core.models.averages import Averaged
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.testing import batch_for, started
from carft_sweep.carft_core.training.optim import OptimConfig
from tests.carft_core.trained import Config, trained, weights


class Toy(nn.Module):
    mean: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("mean", torch.zeros(1))
        self.register_buffer("count", torch.tensor(0))


@pytest.mark.parametrize("name", ["ema", "swad"])
def test_the_average_is_finite_beside_the_mask_of_an_attention(teacher: Teacher, name: str) -> None:
    wrapper = ALGORITHMS[name].model_validate({"of": {"name": "flyp"}})
    model = wrapper.build(teacher)
    with torch.no_grad():
        wrapper.after_step(model, 0, 1)
        wrapper.after_epoch(model, {"id/val/nll": 1.0})
        logits = wrapper.classifier(model, teacher).eval()(batch_for(teacher).images)
    assert torch.isfinite(logits).all()


def test_the_average_is_the_sum_of_the_weights_with_the_papers_coefficients() -> None:
    """Unrolled: step t weighs (1 - d_t) times all later d, and the start what is left."""
    toy, ema, steps = Toy(), Ema(decay=0.6), 12
    model = Averaged(toy)
    average = model.average
    assert isinstance(average, Toy)
    walk = torch.randn(steps, 2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for step, values in enumerate(walk):
            toy.weight.copy_(values)
            toy.mean.fill_(float(step))
            toy.count.fill_(step)
            ema.after_step(model, step, steps)
    decays = [min(0.6, (1 + t) / (10 + t)) for t in range(1, steps + 1)]
    assert (decays[0], decays[-1]) == (2 / 11, 13 / 22)
    shares = [(1 - d) * torch.tensor(decays[t + 1 :]).prod() for t, d in enumerate(decays)]
    expected = sum(share * values for share, values in zip(shares, walk, strict=True))
    torch.testing.assert_close(average.weight, expected)
    mean = sum(share * step for step, share in enumerate(shares))
    torch.testing.assert_close(average.mean, torch.tensor([float(mean)]))
    assert int(average.count) == steps - 1
    with torch.no_grad():  # it is the field's once the start is over
        average.weight.zero_()
        toy.weight.fill_(1.0)
        ema.after_step(model, 1000, 2000)
    torch.testing.assert_close(average.weight.detach(), torch.full((2,), 0.4))


def test_the_loss_sees_what_trains_and_the_classifier_is_the_average(teacher: Teacher) -> None:
    ema = Ema(of=ALGORITHMS["fine_tune"]())
    model = started(ema, teacher)
    assert isinstance(model, Averaged)
    assert [p.requires_grad for p in model.average.parameters()].count(True) == 0
    loss, _ = ema.loss(model, batch_for(teacher), teacher)
    alone, _ = ema.of.loss(teacher.new_classifier(), batch_for(teacher), teacher)
    assert torch.equal(loss, alone)
    with torch.no_grad():
        for parameter in model.model.parameters():
            parameter.mul_(1.1)
    classifier = ema.classifier(model, teacher)
    assert classifier is model.average
    images = batch_for(teacher).images
    assert torch.equal(classifier(images), teacher.classifier(images))


def test_a_decay_of_zero_gives_the_inner_to_the_bit(toy_config: Config, tmp_path: Path) -> None:
    inner = {"name": "car_ft", "kl_weight": 3.0}
    ema = {"name": "ema", "decay": 0.0, "of": inner}
    alone = trained(toy_config({"algorithm": inner}), tmp_path / "plain")
    result = trained(toy_config({"algorithm": ema}), tmp_path / "ema")
    plain, averaged = weights(tmp_path / "plain"), weights(tmp_path / "ema")
    assert averaged.keys() == {f"{part}.{key}" for part in ("model", "average") for key in plain}
    for key, value in plain.items():
        assert torch.equal(averaged[f"model.{key}"], value)
        assert torch.equal(averaged[f"average.{key}"], value)
    assert alone.metrics["ood/mean/nll"] == result.metrics["ood/mean/nll"]


class Coupled(Algorithm):
    name = "coupled"
    summary = "For a test"
    couples_items = True
    uses = frozenset({"text", "contexts"})
    starts_at_zero_shot = False
    keeps_shape = False

    def loss(self, model: nn.Module, batch: Batch, teacher: Teacher) -> Loss:
        del teacher
        return batch.cross_entropy(model(batch.images)), {}

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "file": "digest"}


class Plain(Wrapper):
    name = "plain"
    summary = "For a test"


@pytest.mark.usefixtures("registries")
def test_a_wrapper_claims_and_does_what_its_inner_algorithm_does(teacher: Teacher) -> None:
    ALGORITHMS.register(Coupled)
    wrapper = Plain(of=Coupled())
    claims = (wrapper.couples_items, wrapper.starts_at_zero_shot, wrapper.keeps_shape)
    assert claims == (True, False, False)
    assert wrapper.uses == {"text", "contexts"}
    assert wrapper.identity() == {"name": "plain", "of": {"name": "coupled", "file": "digest"}}
    assert Plain().uses == frozenset()
    assert Plain().keeps_shape
    inner = ALGORITHMS["car_ft"](kl_weight=2.0)  # type: ignore[call-arg]
    history = [{"train/context_kl": 0.0}] * 2
    assert Plain(of=inner).warnings(history) == inner.warnings(history) != []
    model = started(Plain(of=inner), teacher)
    optim = OptimConfig(lr=1e-3)
    assert len(Plain(of=inner).groups(model, optim)) == len(inner.groups(model, optim))


SHARP = [9, 8, 7, 6, 5, 4, 3, 2, 2.2, 2.3, 2.1, 2.4, 3, 4, 5, 6, 7, 8, 9, 10, 11, 2]
"""A valley from 7 on, whose last epoch below the threshold 2.82 is 11."""


def shares(losses: Sequence[float], **fields: float) -> list[float]:
    """How much of the result is of each epoch: the weights of an epoch's two steps have the mean 1
    at its own place."""
    swad = Swad.model_validate(fields)
    model = Valley(nn.Linear(len(losses), 1, bias=False), max(swad.converge, swad.tolerance))
    weight = model.model.get_parameter("weight")
    for epoch, loss in enumerate(losses):
        with torch.no_grad():
            for step, value in ((2 * epoch, 0.5), (2 * epoch + 1, 1.5)):
                weight.zero_()
                weight[0, epoch] = value
                swad.after_step(model, step, 2 * len(losses))
        swad.after_epoch(model, {"id/val/nll": loss})
    assert model.is_done
    return model.average.get_parameter("weight").flatten().tolist()


def papers(losses: Sequence[float], converge: int, tolerance: int, ratio: float) -> list[float]:
    """Algorithm 1 as it is written, over a list of all losses."""
    first, end, threshold = None, len(losses) - 1, 0.0
    for i in range(len(losses)):
        window = losses[max(0, i - converge + 1) : i + 1]
        if first is None:
            if len(window) == converge and window[0] == min(window):
                first, threshold = i - converge + 1, (1 + ratio) * sum(window) / converge
        elif threshold < min(losses[max(0, i - tolerance + 1) : i + 1]):
            end = i - tolerance
            break
    first = len(losses) - 1 if first is None else first
    return [(first <= i <= end) / (end + 1 - first) for i in range(len(losses))]


def test_the_epochs_of_the_papers_algorithm_are_averaged() -> None:
    # Numbers that khanrc/swad gives for the same losses.
    assert shares(SHARP) == pytest.approx([0.0] * 7 + [0.2] * 5 + [0.0] * 10)
    generator = torch.Generator().manual_seed(0)
    curves = [SHARP, SHARP[:10], SHARP[:7]]
    curves += [(3 * torch.rand(12, generator=generator)).tolist() for _ in range(6)]
    for losses, converge, tolerance in itertools.product(curves, (1, 3, 5), (1, 2, 6)):
        expected = papers(losses, converge, tolerance, 0.3)
        assert shares(losses, converge=converge, tolerance=tolerance) == pytest.approx(expected)


def test_a_run_validates_what_trains(toy_config: Config, tmp_path: Path) -> None:
    algorithm = {"name": "swad", "converge": 1, "of": {"name": "car_ft"}}
    merges = [{"name": "wise_ft", "alphas": [0.5]}]
    config = toy_config({"algorithm": algorithm, "optim.epochs": 3, "merges": merges})

    whole = trained(config, tmp_path / "whole")
    assert whole.metrics != trained(toy_config({"optim.epochs": 3}), tmp_path / "plain").metrics
    state = weights(tmp_path / "whole")
    for key, value in weights(tmp_path / "plain").items():
        assert torch.equal(state[f"model.{key}"], value)
    histories = (RunFolder(tmp_path / name).history() for name in ("whole", "plain"))
    losses = [[report["metrics"]["id/val/nll"] for report in history] for history in histories]
    assert losses[0] == losses[1]


def test_the_best_epoch_cannot_be_its_result(toy_config: Config) -> None:
    for algorithm in ("swad", {"name": "ema", "of": "swad"}):
        with pytest.raises(InvalidConfig, match=r"keep\.result: .* behind the last epoch"):
            toy_config({"algorithm": algorithm, "keep": {"result": "best_val"}})
    assert not ALGORITHMS["ema"]().needs_last_epoch
