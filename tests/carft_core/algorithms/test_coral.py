"""CORAL against numpy and DomainBed's numbers, and runs on domains."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from carft_sweep.carft_core.algorithms import coral
from carft_sweep.carft_core.algorithms.coral import Coral, distance_of_domains
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import coupling, identify
from carft_sweep.carft_core.testing import batch_for, started
from carft_sweep.carft_core.training.loop import train
from tests.carft_core.refusals import refused
from tests.carft_core.stand_ins import watched
from tests.carft_core.trained import Config, trained

CORAL = {"algorithm": "coral"}


def waves(count: int, frequency: float) -> Tensor:
    numbers = torch.arange(count * 3, dtype=torch.float64)
    return torch.sin(numbers * frequency).reshape(count, 3)


def test_the_distance_is_that_of_domainbeds_code() -> None:
    """`AbstractMMD.mmd` with `mean_cov` of facebookresearch/DomainBed at b93c22a, run on these
    features, gave 0.2080437112798335, 0.37658715008284194 and 0.11289776005756871 for the pairs."""
    domains = [waves(4, 1.0), waves(5, 0.7), waves(3, 1.3)]
    features = torch.cat(domains)
    numbers = torch.tensor([3] * 4 + [0] * 5 + [1] * 3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    distance = distance_of_domains(features[order], numbers[order])
    assert float(distance) == pytest.approx(0.23250954047341468, rel=1e-12)
    two = distance_of_domains(features[:9], numbers[:9])
    assert float(two) == pytest.approx(0.2080437112798335, rel=1e-12)


def test_the_loss_is_cross_entropy_and_the_distance_of_the_towers_outputs(teacher: Teacher) -> None:
    model = started(Coral(), teacher)
    assert isinstance(model, ImageClassifier)
    batch = replace(batch_for(teacher), label_smoothing=0.1)
    loss, logs = Coral(coral_weight=3.0).loss(model, batch, teacher)
    with torch.no_grad():
        outputs = model.visual(batch.images).double().numpy()
        cross_entropy = float(batch.cross_entropy(model(batch.images)))
    assert np.linalg.norm(outputs, axis=1).max() > 1.5  # not the unit-norm features
    assert batch.domain is not None
    parts = [outputs[batch.domain.numpy() == number] for number in (0, 1)]
    means = parts[0].mean(axis=0) - parts[1].mean(axis=0)
    covariances = np.cov(parts[0], rowvar=False) - np.cov(parts[1], rowvar=False)
    expected = (means**2).mean() + (covariances**2).mean()
    assert float(logs["coral"].detach()) == pytest.approx(expected, rel=1e-4)
    assert float(logs["cross_entropy"].detach()) == pytest.approx(cross_entropy, rel=1e-5)
    assert float(loss.detach()) == pytest.approx(cross_entropy + 3 * expected, rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, logs = Coral().loss(model, batch, teacher)
    assert logs["coral"].dtype == torch.float32
    logs["coral"].backward()
    assert any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())


def test_domains_of_one_image_have_no_covariance_and_are_left_out() -> None:
    features = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    numbers = torch.tensor([0, 0, 0, 1, 2, 2, 2])
    in_several = torch.cat([features[:3], features[4:]])
    expected = distance_of_domains(in_several, torch.tensor([0, 0, 0, 2, 2, 2]))
    assert torch.equal(distance_of_domains(features, numbers), expected)
    for alone in ([0] * 7, [0, 0, 0, 0, 0, 0, 1], list(range(7))):
        distance = distance_of_domains(features, torch.tensor(alone))
        (0 * features.sum() + distance).backward()
        assert float(distance) == 0


def test_it_needs_a_tower_and_domains(teacher: Teacher) -> None:
    model = started(Coral(), teacher)
    with pytest.raises(ValueError, match="domain of each image"):
        Coral().loss(model, replace(batch_for(teacher), domain=None), teacher)
    with pytest.raises(TypeError, match="trains ImageClassifier, not Linear"):
        Coral().loss(torch.nn.Linear(2, 2), batch_for(teacher), teacher)


def test_a_run_sees_the_domains(
    pacs_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = watched(monkeypatch, coral, "distance_of_domains", lambda _, domain: domain.bincount())
    assert trained(pacs_config(CORAL), tmp_path).warnings == []
    assert [counts.tolist() for counts in seen] == [[4, 4, 4]] * 4
    assert RunFolder(tmp_path).history()[1]["metrics"]["train/coral"] > 0


def test_micro_batches_give_the_same_in_another_run(pacs_config: Config, tmp_path: Path) -> None:
    whole, parts = pacs_config(CORAL), pacs_config({**CORAL, "optim.micro_batch": 5})
    assert coupling(whole)
    assert identify(whole, 0).digest != identify(parts, 0).digest
    first = []
    for name, asked in (("whole", whole), ("parts", parts)):
        trained(asked, tmp_path / name)
        first.append(RunFolder(tmp_path / name).history()[1]["metrics"]["train/first/coral"])
    assert first[0] == pytest.approx(first[1], rel=1e-4)


def test_a_run_of_batches_of_one_domain_says_so(pacs_config: Config, tmp_path: Path) -> None:
    alone = {**CORAL, "data.balanced": False, "optim.batch_size": 1}
    assert "data.balanced: true" in trained(pacs_config(alone), tmp_path).warnings[0]


@pytest.mark.parametrize("algorithm", ["coral", {"name": "ema", "of": "coral"}])
def test_a_family_without_domains_is_refused_before_anything_trains(
    toy_config: Config, tmp_path: Path, algorithm: Any
) -> None:
    asked = toy_config({"algorithm": algorithm})
    message = r"algorithm\.name: coral needs two domains that train or more.*image_folder"
    refused(message, identify, asked, 0)
    refused("needs two domains", train, asked, 0, workdir=tmp_path)
    assert not any(tmp_path.iterdir())
