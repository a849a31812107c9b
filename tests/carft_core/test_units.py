"""What is predicted together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from carft_core.config import TrialConfig
from carft_core.data.base import Derived
from carft_core.evaluate import names_of, units_of
from carft_core.prepare import Bench
from tests.carft_core.measured_bench import measured_bench, moved_classifier, other_task

Config = Callable[..., TrialConfig]


@pytest.fixture(scope="module")
def bench(toy_config: Config) -> Bench:
    return measured_bench(toy_config(), copies=2)


def test_a_unit_is_no_greater_than_what_is_measured_over_it(bench: Bench) -> None:
    found = [(set(unit.splits), set(unit.derived)) for unit in units_of(bench, [other_task(bench)])]
    none: set[str] = set()
    assert len(found) == 7
    for expected in (
        ({"id/val"}, none),
        ({"id/test"}, {"id/test_ends"}),
        ({"ood/copy-0"}, none),
        ({"ood/copy-1"}, none),
        ({"ood/again"}, none),
        ({"ood/dark", "ood/pale"}, {"ood/both"}),
        ({"retention/dark"}, none),
    ):
        assert expected in found


def test_unions_that_share_a_split_are_one_unit(bench: Bench) -> None:
    derived = {
        "ood/a": Derived(("ood/dark", "ood/copy-0")),
        "ood/b": Derived(("ood/copy-1", "ood/pale")),
        "ood/c": Derived(("ood/copy-0", "ood/copy-1")),
    }
    units = units_of(replace(bench, data=replace(bench.data, derived=derived)), ())
    (joined,) = [unit for unit in units if unit.derived]
    assert list(joined.splits) == ["ood/dark", "ood/copy-0", "ood/copy-1", "ood/pale"]
    assert list(joined.derived) == ["ood/a", "ood/b", "ood/c"]


def test_what_is_predicted_has_the_names_and_shapes_that_were_told(bench: Bench) -> None:
    classifier, others = moved_classifier(bench), [other_task(bench)]
    told: dict[str, tuple[int, ...]] = {}
    names: list[str] = []
    for unit in units_of(bench, others):
        predicted = unit.predict(classifier, bench, batch_size=5, workers=0)
        shapes = {name: tuple(item.logits.shape) for name, item in predicted.items()}
        assert shapes == unit.shapes(3)
        assert all(item.split == name for name, item in predicted.items())
        told |= shapes
        names += predicted
    assert sorted(names) == sorted(names_of(bench, others))
    assert told["id/test_ends"] == (8, 3)
    assert told["ood/both"] == (15, 3)
    assert told["retention/dark"] == (9, 5)


def test_another_tasks_head_sees_the_classifiers_own_features(bench: Bench) -> None:
    other, classifier = other_task(bench), moved_classifier(bench)
    *_, unit = units_of(bench, [other])
    predicted = unit.predict(classifier, bench, batch_size=5, workers=0)["retention/dark"]
    torch.testing.assert_close(predicted.logits, other.head(predicted.features))
    images = bench.transform.normalise(
        other.test.views(range(len(other.test)), transform=bench.transform, seed=None, epoch=0)
    )
    with torch.no_grad():
        torch.testing.assert_close(predicted.features, classifier.eval().features(images))
