"""Metrics against hand computation, naive loops and laws, and on a device without float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score
from torch import Tensor

from carft_sweep.carft_core.evaluation import metrics
from carft_sweep.carft_core.evaluation.measure import context_probe, split_metrics
from carft_sweep.carft_core.evaluation.predictions import Predictions

LABELLED = (metrics.top1, metrics.nll, metrics.ece, metrics.brier)
EVEN = torch.zeros(1, 4)


def logits_of(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64).log()


@st.composite
def predictions(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Random logits, some of them with classes that cannot occur, and possible labels."""
    items, classes = draw(st.integers(1, 40)), draw(st.integers(1, 7))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(items, classes, generator=generator) * draw(st.sampled_from([0.1, 3, 30]))
    possible = draw(st.integers(1, classes))
    logits[:, possible:] = -torch.inf
    return logits, torch.randint(possible, (items,), generator=generator)


def naive_softmax(row: np.ndarray) -> Any:
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def naive_ece(logits: np.ndarray, labels: np.ndarray, bins: int) -> float:
    total = 0.0
    for number in range(bins):
        hits, confidences = [], []
        for row, label in zip(logits, labels, strict=True):
            p = naive_softmax(row)
            if number / bins < p.max() <= (number + 1) / bins:
                hits.append(p.argmax() == label)
                confidences.append(p.max())
        if hits:
            total += len(hits) / len(labels) * abs(np.mean(hits) - np.mean(confidences))
    return total


def test_metrics_of_two_items_are_those_computed_by_hand() -> None:
    logits = logits_of([0.7, 0.2, 0.1], [0.5, 0.3, 0.2])
    labels = torch.tensor([0, 1])
    assert metrics.top1(logits, labels) == 0.5
    assert metrics.nll(logits, labels) == pytest.approx(-math.log(0.7 * 0.3) / 2, rel=1e-12)
    # Confidences 0.7 (right) and 0.5 (wrong) lie in bins of their own: (0.3 + 0.5) / 2.
    assert metrics.ece(logits, labels) == pytest.approx(0.4, rel=1e-12)
    by_hand = (0.3**2 + 0.2**2 + 0.1**2 + 0.5**2 + 0.7**2 + 0.2**2) / 2
    assert metrics.brier(logits, labels) == pytest.approx(by_hand, rel=1e-12)


@given(predictions())
def test_every_metric_equals_its_definition_computed_in_a_loop(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = (part.numpy() for part in case)
    rows = [naive_softmax(row.astype(np.float64)) for row in logits]
    pairs = list(zip(rows, labels, strict=True))
    assert metrics.top1(*case) == pytest.approx(np.mean([p.argmax() == y for p, y in pairs]))
    assert metrics.nll(*case) == pytest.approx(np.mean([-np.log(p[y]) for p, y in pairs]), rel=1e-9)
    squares = [sum((p[c] - (c == y)) ** 2 for c in range(len(p))) for p, y in pairs]
    assert metrics.brier(*case) == pytest.approx(np.mean(squares), abs=1e-9)
    binned = naive_ece(logits.astype(np.float64), labels, 15)
    assert metrics.ece(*case) == pytest.approx(binned, abs=1e-9)


@given(predictions())
def test_classes_that_cannot_occur_count_as_if_not_there(case: tuple[Tensor, Tensor]) -> None:
    logits, labels = case
    wider = torch.cat([logits, torch.full((len(logits), 3), -torch.inf)], dim=1)
    for metric in LABELLED:
        assert metric(wider, labels) == pytest.approx(metric(logits, labels), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("confidence", [0.5, 0.75])
def test_a_confidence_on_the_edge_of_a_bin_belongs_to_the_lower_bin(confidence: float) -> None:
    edge = logits_of([confidence, 1 - confidence])
    above = logits_of([confidence + 1e-6, 1 - confidence - 1e-6])
    below = logits_of([confidence - 1e-6, 1 - confidence + 1e-6])
    labels = torch.tensor([0, 1])
    # One item right and one wrong: in one bin they make up for each other, in two they do not.
    if confidence > 0.5:
        together = metrics.ece(torch.cat([below, edge]), labels, bins=4)
        assert together == pytest.approx(abs(0.5 - confidence), abs=1e-5)
    assert metrics.ece(torch.cat([edge, above]), labels, bins=4) == pytest.approx(0.5, abs=1e-5)


def test_among_equal_logits_the_first_class_is_the_prediction() -> None:
    assert [metrics.top1(EVEN, torch.tensor([label])) for label in (0, 1)] == [1.0, 0.0]
    impossible = torch.tensor([[0.0, -torch.inf]])
    assert metrics.nll(impossible, torch.tensor([1])) == math.inf, "it was held impossible"


@pytest.mark.parametrize("metric", LABELLED)
def test_what_has_no_metric_is_refused(metric: Callable[[Tensor, Tensor], float]) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        metric(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="do not fit"):
        metric(EVEN, torch.tensor([0, 1]))
    for diverged in (torch.nan, torch.inf):
        with pytest.raises(FloatingPointError, match="not finite"):
            metric(torch.tensor([[0.0, diverged]]), torch.tensor([0]))


def test_kl_of_two_coins_is_that_computed_by_hand_on_average_over_items() -> None:
    p, q = logits_of([0.5, 0.5]), logits_of([0.9, 0.1])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    assert metrics.kl_divergence(p, q) == pytest.approx(expected, rel=1e-12)
    assert metrics.kl_divergence(q, p) != pytest.approx(expected, rel=1e-2)
    mean = metrics.kl_divergence(torch.cat([p, q]), torch.cat([q, q]))
    assert mean == pytest.approx(expected / 2, rel=1e-12)


def test_kl_adds_nothing_where_p_is_zero_and_everything_where_only_q_is() -> None:
    corner, middle = logits_of([1.0, 0.0]), logits_of([0.5, 0.5])
    assert metrics.kl_divergence(corner, middle) == pytest.approx(math.log(2), rel=1e-12)
    assert metrics.kl_divergence(corner, corner) == 0.0
    assert metrics.kl_divergence(middle, corner) == math.inf
    assert math.isnan(metrics.kl_divergence(torch.full((1, 2), torch.nan), middle))
    assert metrics.entropy(corner) == 0.0
    assert metrics.entropy(torch.full((5, 8), -math.log(8))) == pytest.approx(math.log(8), rel=1e-6)
    with pytest.raises(ValueError, match="shape"):
        metrics.kl_divergence(torch.zeros(2, 3), torch.zeros(2, 4))


@given(st.integers(0, 2**32), st.integers(1, 9), st.floats(0.01, 50))
def test_kl_is_never_negative_and_zero_for_equals(seed: int, contexts: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, 6, contexts, generator=generator)
    p, q = torch.log_softmax(logits, dim=2)
    assert metrics.kl_divergence(p, q) >= 0
    assert metrics.kl_divergence(p, p) == 0
    assert 0 <= metrics.entropy(p) <= math.log(contexts) + 1e-6


def certain(*classes: int) -> Tensor:
    """Logits that predict these of four classes."""
    return torch.eye(4)[list(classes)]


def test_accuracies_by_class_and_by_group_of_five_items() -> None:
    labels = torch.tensor([0, 0, 0, 1, 2])
    logits = certain(0, 0, 1, 1, 3)
    assert metrics.mean_per_class_top1(logits, labels) == pytest.approx((2 / 3 + 1 + 0) / 3)
    groups = ("sea", "land", "sea", "land", "land")
    assert metrics.mean_group_top1(logits, labels, groups) == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert metrics.worst_group_top1(logits, labels, groups) == 0.5
    # Where it is empty, an item belongs to none.
    for of in (metrics.mean_group_top1, metrics.worst_group_top1):
        assert of(logits, labels, ("sea", "land", "", "land", "")) == 1.0
    with pytest.raises(ValueError, match="no item belongs to a group"):
        metrics.worst_group_top1(logits, labels, ("",) * 5)
    with pytest.raises(ValueError, match="4 groups do not fit 5 items"):
        metrics.worst_group_top1(logits, labels, groups[:4])


@given(data=predictions(), number=st.integers(1, 5), seed=st.integers(0, 99))
def test_others_are_those_of_sklearn(data: tuple[Tensor, Tensor], number: int, seed: int) -> None:
    logits, labels = data
    predicted, true = logits.argmax(dim=1).numpy(), labels.numpy()
    of: dict[str, Any] = {"average": "macro", "labels": np.unique(true), "zero_division": 0}
    f1, recall = (score(true, predicted, **of) for score in (f1_score, recall_score))
    assert metrics.macro_f1(logits, labels) == pytest.approx(f1)
    assert metrics.mean_per_class_top1(logits, labels) == pytest.approx(recall)
    group = np.random.default_rng(seed).integers(number, size=len(true))
    accuracies = [(predicted == true)[group == member].mean() for member in np.unique(group)]
    names = [f"group {member}" for member in group]
    assert metrics.mean_group_top1(logits, labels, names) == pytest.approx(np.mean(accuracies))
    assert metrics.worst_group_top1(logits, labels, names) == pytest.approx(min(accuracies))


class MacTensor(Tensor):
    """Says that it lies on MPS; `cpu` gives what does not. Nothing of it is ever in float64."""

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function == Tensor.device.__get__:
            return torch.device("mps")
        if function is Tensor.cpu:
            return args[0].as_subclass(Tensor)
        # A tensor that is made beside it lies on MPS too.
        kwargs = {key: value for key, value in (kwargs or {}).items() if key != "device"}
        out = super().__torch_function__(function, types, args, kwargs)
        if isinstance(out, Tensor) and out.dtype == torch.float64:
            raise TypeError("the MPS framework doesn't support float64")
        return out


def on_mac(tensor: Tensor) -> Tensor:
    return tensor.as_subclass(MacTensor)


def placed(place: Callable[[Tensor], Tensor]) -> Predictions:
    generator = torch.Generator().manual_seed(0)
    names = [str(number) for number in range(6)]
    return Predictions(
        split="id/test",
        ids=names,
        units=names,
        labels=place(torch.tensor([0, 1, 2, 0, 1, 2])),
        logits=place(torch.randn(6, 3, generator=generator)),
        features=place(torch.zeros(6, 1)),
        groups=list("aabbcc"),
    )


def test_every_metric_of_a_mac_is_that_of_the_cpu() -> None:
    further = ("macro_f1", "mean_per_class_top1", "mean_group_top1", "worst_group_top1")
    expected = split_metrics(placed(lambda tensor: tensor), further)
    assert len(expected) == 8
    assert split_metrics(placed(on_mac), further) == expected
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(4, 8, generator=generator) for _ in range(3))
    assert context_probe(on_mac(a), on_mac(b), on_mac(c), 100.0) == context_probe(a, b, c, 100.0)
    with pytest.raises(TypeError, match="float64"):
        on_mac(torch.ones(2)).double()
