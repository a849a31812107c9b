"""The zero-shot predictions that a process keeps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from carft_core import evaluate
from carft_core.config import TrialConfig
from carft_core.evaluate import ZeroShotStore, predict, units_of
from carft_core.metrics import top1
from carft_core.predictions import Predictions
from carft_core.prepare import Bench
from tests.carft_core.measured_bench import measured_bench, other_task

Config = Callable[..., TrialConfig]
HOW = {"batch_size": 5, "workers": 0}
ROW = 4 * (3 + 32)
"""Bytes of an item: its logits and its features."""
VAL, TEST = 6 * ROW, (12 + 8) * ROW
"""Bytes of `id/val`, and of `id/test` with its part."""


@pytest.fixture
def bench(toy_config: Config) -> Bench:
    return measured_bench(toy_config())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every split that was predicted, in order."""
    names: list[str] = []

    def counted(classifier: object, split: object, name: str, **how: object) -> Predictions:
        names.append(name)
        return predict(classifier, split, name, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(evaluate, "predict", counted)
    return names


def test_what_fits_is_predicted_once_and_the_rest_anew(bench: Bench, asked: list[str]) -> None:
    store = ZeroShotStore(limit=VAL + TEST)
    val, test, further, *_ = units_of(bench, ())
    for _ in range(2):
        for unit in (val, test, further):
            store.predictions(unit, bench, **HOW)
    assert asked == ["id/val", "id/test", *further.splits, *further.splits]
    again = store.predictions(test, bench, **HOW)
    assert again is store.predictions(units_of(bench, ())[1], bench, **HOW)
    store.predictions(val, bench, batch_size=2, workers=0)
    assert asked[-1] == "id/val", "a batch size may round differently"


def test_accuracies_are_known_where_predictions_are_not(bench: Bench, asked: list[str]) -> None:
    store, (_, test, *_) = ZeroShotStore(limit=0), units_of(bench, ())
    values = store.top1(test, bench, **HOW)
    assert store.top1(test, bench, **HOW) == values
    assert asked == ["id/test"]
    made = store.predictions(test, bench, **HOW)
    assert asked == ["id/test", "id/test"]
    assert values == {name: top1(item.logits, item.labels) for name, item in made.items()}
    assert store.top1(test, bench, **HOW) == values


def test_other_tasks_are_told_apart_by_their_heads(bench: Bench) -> None:
    store = ZeroShotStore()
    one, two = other_task(bench), other_task(bench)
    with torch.no_grad():
        two.head.weight.neg_()
    (first,), (second,) = (
        store.predictions(units_of(bench, [task])[-1], bench, **HOW).values() for task in (one, two)
    )
    assert torch.equal(first.logits, -second.logits)


def test_another_bench_gets_the_room_and_a_lost_bench_gives_it_back(
    bench: Bench, asked: list[str]
) -> None:
    store, other = ZeroShotStore(limit=VAL + TEST), replace(bench)
    val, test, *_ = units_of(bench, ())
    store.predictions(val, bench, **HOW)
    store.predictions(test, other, **HOW)
    store.predictions(val, bench, **HOW)
    assert asked == ["id/val", "id/test"], "both fit"
    store.predictions(val, other, **HOW)
    store.predictions(test, other, **HOW)
    store.predictions(val, other, **HOW)
    assert asked == ["id/val", "id/test", "id/val"], "the other bench's are kept"
    store.top1(val, bench, **HOW)
    assert len(asked) == 3, "its accuracies are still known"
    held = weakref.ref(store.predictions(val, other, **HOW)["id/val"])
    del other
    gc.collect()
    assert held() is None
    store.predictions(val, bench, **HOW)
    assert len(asked) == 4
