"""Soups: runs made of other runs, by the formulas of their papers, from end to end."""

from __future__ import annotations

import copy
import math
import shutil
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from carft_sweep.carft_core.algorithms import ALGORITHMS, greedy_soup
from carft_sweep.carft_core.algorithms.greedy_soup import GreedySoup
from carft_sweep.carft_core.algorithms.model_stock import ModelStock
from carft_sweep.carft_core.algorithms.uniform_soup import UniformSoup
from carft_sweep.carft_core.config.trial import TrialConfig
from carft_sweep.carft_core.errors import InvalidConfig, RequestError
from carft_sweep.carft_core.export.export import export
from carft_sweep.carft_core.export.predictor import Predictor
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.models.teacher import Teacher
from carft_sweep.carft_core.runs import models as models_module
from carft_sweep.carft_core.runs.evaluations import finish, is_complete, read_result
from carft_sweep.carft_core.runs.folder import RunFolder
from carft_sweep.carft_core.runs.identity import identify
from carft_sweep.carft_core.training.loop import train
from carft_sweep.carft_core.training.setup import open_setup
from tests.carft_core.refusals import refused
from tests.carft_core.trained import Config, same, trained, weights

DIGESTS = tuple(f"{number:064x}" for number in range(1, 4))
SOUPS = ("uniform_soup", "greedy_soup", "model_stock")
Runs = tuple[Path, list[str]]


def random_states(count: int) -> list[dict[str, Tensor]]:
    """Of a matrix, a vector in half precision, and a batch count."""
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "w": torch.randn(4, 3, generator=generator),
            "h": torch.randn(5, generator=generator).half(),
            "n": torch.tensor(number),
        }
        for number in range(count)
    ]


def plain_stock(start: Sequence[float], tuned: Sequence[Sequence[float]]) -> list[float]:
    """Model Stock of one layer in plain Python: the angle by arccos, then the paper's ratio."""
    count = len(tuned)
    offsets = [[a - b for a, b in zip(layer, start, strict=True)] for layer in tuned]
    angles = [
        math.acos(
            sum(a * b for a, b in zip(offsets[i], offsets[j], strict=True))
            / (math.hypot(*offsets[i]) * math.hypot(*offsets[j]))
        )
        for i in range(count)
        for j in range(i)
    ]
    cosine = sum(map(math.cos, angles)) / len(angles)
    ratio = count * cosine / (1 + (count - 1) * cosine)
    means = [sum(column) / count for column in zip(*tuned, strict=True)]
    return [ratio * mean + (1 - ratio) * a for mean, a in zip(means, start, strict=True)]


def test_a_uniform_soup_is_the_mean_in_fp32_with_the_firsts_counts() -> None:
    zero_shot, *members = random_states(4)
    soup = UniformSoup().state(zero_shot, members)
    for name in ("w", "h"):
        columns = zip(*(member[name].flatten().tolist() for member in members), strict=True)
        expected = torch.tensor([math.fsum(column) / 3 for column in columns])
        assert torch.allclose(soup[name].flatten().float(), expected.to(soup[name].dtype).float())
    assert (soup["h"].dtype, int(soup["n"])) == (torch.float16, 1)


def test_model_stock_is_the_papers_formula_layer_by_layer() -> None:
    for count in (2, 3):
        zero_shot, *members = random_states(1 + count)
        for member in members:  # Runs of one recipe move alike.
            member["w"] += 2
            member["h"] += 2
        soup = ModelStock().state(zero_shot, members)
        for name, tolerance in (("w", 1e-6), ("h", 2e-3)):
            start, *tuned = (state[name].flatten().tolist() for state in (zero_shot, *members))
            expected = torch.tensor(plain_stock(start, tuned))
            assert torch.allclose(soup[name].flatten().float(), expected, atol=tolerance)


def test_a_greedy_soup_is_the_papers_one(teacher: Teacher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs 2, 0, 3, 1 by accuracy; with 0 it falls, with 3 it stays, with 1 it rises."""
    members = [teacher.new_classifier() for _ in range(4)]
    for number, member in enumerate(members):
        torch.nn.init.constant_(member.head.weight, 10.0**number)
    alone = {1: 0.7, 10: 0.5, 100: 0.8, 1000: 0.6}
    accuracies = {**alone, 50: 0.7, 550: 0.8, 370: 0.9}

    def accuracy(classifier: ImageClassifier, _: Teacher) -> float:
        return accuracies[round(classifier.head.weight[0, 0].item())]

    monkeypatch.setattr(greedy_soup, "accuracy", accuracy)
    digests = tuple(f"{number:064x}" for number in range(4))
    soup = GreedySoup(members=digests).combine(teacher, members).state_dict()
    assert soup["head.weight"][0, 0].item() == pytest.approx((100 + 1000 + 10) / 3)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ([[3.0, 1.0], [3.0, 1.0]], [3.0, 1.0]),
        ([[3.0, 1.0], [1.0, 3.0]], [1.0, 1.0]),
        ([[3.0, 1.0], [-1.0, 1.5]], [1.0, 1.0]),
        ([[1.0, 1.0], [1.0, 1.0]], [1.0, 1.0]),
        # 2 cos 60 / (1 + cos 60) = 2 / 3 of the way to the mean
        ([[3.0, 1.0], [2.0, 1 + 3**0.5]], [2.0, 1 + 3**0.5 / 3]),
    ],
    ids=["agree", "orthogonal", "opposed", "unmoved", "60 degrees"],
)
def test_model_stock_stays_between_the_zero_shot_weights_and_the_mean(
    members: list[list[float]], expected: list[float]
) -> None:
    states = [{"w": torch.tensor(member)} for member in members]
    soup = ModelStock().state({"w": torch.tensor([1.0, 1.0])}, states)["w"]
    assert torch.allclose(soup, torch.tensor(expected))


def test_members_that_make_no_soup_are_refused_and_have_no_order(toy_config: Config) -> None:
    cases: list[tuple[str, list[str], str]] = [
        ("uniform_soup", ["fine_tune"], "'fine_tune' is no digest of a run"),
        ("uniform_soup", [DIGESTS[0], DIGESTS[0]], "a run is in the list twice"),
        ("model_stock", [DIGESTS[0]], "model_stock is made of 2 runs or more"),
    ]
    for name, members, message in cases:
        with pytest.raises(InvalidConfig, match=rf"algorithm\.members.*{message}"):
            toy_config({"algorithm": {"name": name, "members": members}})
    soup, turned = (UniformSoup(members=order) for order in (DIGESTS, DIGESTS[::-1]))
    assert (soup, soup.members) == (turned, DIGESTS)


@pytest.mark.parametrize("name", SOUPS)
def test_a_soup_leaves_its_members_and_has_their_shape(name: str, teacher: Teacher) -> None:
    soup: Any = ALGORITHMS[name].model_validate({"members": DIGESTS[:2]})
    members = [teacher.new_classifier() for _ in range(2)]
    with torch.no_grad():
        for factor, member in enumerate(members, start=2):
            for parameter in member.parameters():
                parameter.mul_(1 + factor / 1000)
    before = copy.deepcopy([member.state_dict() for member in members])
    made = soup.combine(teacher, members).state_dict()
    assert not torch.equal(made["head.weight"], before[0]["head.weight"])
    for member, state in zip(members, before, strict=True):
        assert same(member.state_dict(), state)
    fitting, other = teacher.new_classifier(), teacher.new_classifier()
    other.head.bias = torch.nn.Parameter(torch.zeros(3))
    for place, mixed in enumerate(([other, fitting], [fitting, other])):
        words = rf"run {soup.members[place][:12]} has another; .*differ: head\.bias"
        refused(words, soup.combine, teacher, mixed)


@pytest.fixture(scope="module")
def two_runs(toy_config: Config, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Two seeds of fine_tune under `runs/`, and their digests."""
    runs = tmp_path_factory.mktemp("home") / "runs"
    config = toy_config({"algorithm": "fine_tune", "optim.epochs": 1})
    digests = []
    for seed in (0, 1):
        digest = identify(config, seed).digest
        train(config, seed, workdir=runs / digest)
        digests.append(digest)
    return runs, digests


def test_a_uniform_soup_is_of_its_members_classifiers_and_holds_one_at_a_time(
    two_runs: Runs, toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """72 members of a large model would not fit on a GPU together."""
    runs, digests = two_runs
    config = soup_config(toy_config, "uniform_soup", digests)
    folder = claimed(runs, config)
    members: list[weakref.ref[torch.nn.Module]] = []
    load = models_module.load_classifier

    def counting(*args: Any) -> Any:
        assert not any(member() is not None for member in members)
        member = load(*args)
        members.append(weakref.ref(member))
        return member

    monkeypatch.setattr(models_module, "load_classifier", counting)
    soup = load(folder, config, open_setup(config)).state_dict()
    assert len(members) > 1
    first, second = (weights(runs / digest) for digest in digests)
    for key, value in soup.items():
        assert torch.allclose(value, (first[key] + second[key]) / 2, atol=1e-7)
    shutil.rmtree(folder.path)


def claimed(runs: Path, config: TrialConfig) -> RunFolder:
    folder = RunFolder(runs / identify(config, 0).digest)
    folder.claim(config, 0, identify(config, 0))
    return folder


def soup_config(toy_config: Config, name: str, members: Sequence[str], **more: Any) -> TrialConfig:
    return toy_config({"algorithm": {"name": name, "members": members}, **more})


@pytest.mark.parametrize("name", SOUPS)
def test_a_soup_is_a_run(name: str, two_runs: Runs, toy_config: Config, tmp_path: Path) -> None:
    runs, digests = two_runs
    merges = {"merges": [{"name": "wise_ft", "alphas": [0.5]}, {"name": "logit_ensemble"}]}
    config = soup_config(toy_config, name, digests, **merges)
    identity = identify(config, 0)
    assert identity.parts["algorithm"]["members"] == sorted(digests)
    assert identify(config, 7).digest == identity.digest
    assert identify(soup_config(toy_config, name, digests[::-1]), 0).digest == identity.digest
    folder = runs / identity.digest
    result = trained(config, folder)
    assert (result.seed, result.facts["members"]) == (None, sorted(digests))
    assert {"id/test/top1", "ood/mean/top1", "context/id/val/kl"} <= result.metrics.keys()
    assert result.merges.keys() == {"wise_ft@0.5", "logit_ensemble@0.5"}
    assert (result.facts["budget"], result.facts["own_weights"]) == (None, True)
    assert is_complete(folder, config)
    assert finish(folder, config, 0) == read_result(folder, config) == result
    export(folder, config, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"tuned by `{name}`" in card
    assert "One run with one seed" not in card
    assert Predictor.load(tmp_path / "out").facts["config"]["algorithm"]["name"] == name


def test_a_soup_of_one_is_that_run(two_runs: Runs, toy_config: Config) -> None:
    runs, digests = two_runs
    config = soup_config(toy_config, "uniform_soup", digests[:1])
    result = trained(config, runs / identify(config, 0).digest)
    member = read_result(runs / digests[0], toy_config({"algorithm": "fine_tune"}))
    assert result.metrics == pytest.approx(dict(member.metrics), abs=1e-6)


def test_members_that_cannot_be_used_are_refused(two_runs: Runs, toy_config: Config) -> None:
    runs, digests = two_runs
    waiting = claimed(runs, toy_config({"algorithm": "fine_tune", "optim.epochs": 3})).path.name
    best: dict[str, Any] = {"keep": {"result": "best_val"}}
    classes, split = {"prompts.classes": "openai"}, {"data.split_seed": 3}
    cases: list[tuple[dict[str, Any], list[str], str]] = [
        ({}, [], "which runs is uniform_soup made of"),
        ({}, ["ab" * 32], "run abababababab is not in this home"),
        (classes, digests, r"differs from the uniform_soup in prompts\.classes"),
        (split, digests, "differs from the uniform_soup in data"),
        (best, digests, "are not kept"),
        ({}, [waiting], "is not trained to its end"),
    ]
    for changes, members, message in cases:
        config = soup_config(toy_config, "uniform_soup", members, **changes)
        with pytest.raises(RequestError, match=message):
            train(config, 0, workdir=runs / identify(config, 0).digest)
