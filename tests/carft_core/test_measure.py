"""A model measured unit after unit: the numbers of a straightforward evaluation, in less memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from carft_core import evaluate as measuring
from carft_core.clip import ImageClassifier
from carft_core.config import TrialConfig
from carft_core.evaluate import (
    ZeroShotStore,
    context_probe,
    measure,
    part,
    predict,
    split_metrics,
    summary,
    together,
)
from carft_core.metrics import top1
from carft_core.predictions import Predictions, read_predictions, write_predictions
from carft_core.prepare import Bench
from tests.carft_core.measured_bench import measured_bench, moved_classifier, other_task

Config = Callable[..., TrialConfig]


def everything(classifier: ImageClassifier, bench: Bench) -> dict[str, Predictions]:
    """All splits at once, each by `predict`."""
    how: dict[str, Any] = {"transform": bench.transform, "device": bench.device}
    how |= {"precision": bench.precision, "batch_size": 256}
    predicted = {
        name: predict(classifier, split, name, **how)
        for name, split in bench.evaluated_splits().items()
    }
    other = other_task(bench)
    elsewhere = ImageClassifier(classifier.visual, other.head)
    return {
        **predicted,
        "id/test_ends": part(predicted["id/test"], "id/test_ends", (0, 2)),
        "ood/both": together([predicted["ood/dark"], predicted["ood/pale"]], "ood/both"),
        other.name: predict(elsewhere, other.test, other.name, **how),
    }


@pytest.mark.parametrize("limit", [0, 10**9])
@pytest.mark.parametrize("moved", [True, False])
def test_metrics_and_table_are_those_of_all_splits_at_once_to_the_bit(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, moved: bool
) -> None:
    monkeypatch.setattr(measuring, "ZERO_SHOT", ZeroShotStore(limit))
    bench = measured_bench(toy_config())
    classifier = moved_classifier(bench) if moved else bench.teacher.classifier
    ours, theirs = everything(classifier, bench), everything(bench.teacher.classifier, bench)
    own = [name for name in ours if not name.startswith("retention/")]
    expected = summary(
        {name: split_metrics(ours[name]) for name in own},
        {name: split_metrics(theirs[name]) for name in own},
        outside={"ood/again", "ood/both"},
    )
    teacher = bench.teacher
    for name in own:
        features = theirs[name].features, ours[name].features
        probe = context_probe(*features, teacher.w_ctx, teacher.scale)
        expected |= {f"context/{name}/{key}": value for key, value in probe.items()}
    kept, before = (
        top1(of["retention/dark"].logits, of["retention/dark"].labels) for of in (ours, theirs)
    )
    expected |= {"retention/dark/top1": kept, "retention/mean/top1": kept}
    expected["retention/gain/top1"] = kept - before
    write_predictions(tmp_path / "expected.parquet", list(ours.values()))

    found = measure(
        classifier if moved else None, bench, [other_task(bench)], toy_config(), tmp_path / "found"
    )
    assert list(found.items()) == list(expected.items())
    table = read_predictions(tmp_path / "found")
    assert table.equals(read_predictions(tmp_path / "expected.parquet"), check_metadata=True)
    assert list(dict.fromkeys(table["split"].to_pylist())) == list(ours)


@pytest.mark.parametrize("probe", [True, False])
def test_only_the_predictions_of_one_unit_are_in_memory(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, probe: bool
) -> None:
    """Of the model's and the zero-shot model's; besides what the store keeps."""
    alive: WeakSet[Predictions] = WeakSet()
    most: list[int] = []
    made = Predictions.__init__

    def counted(self: Predictions, *args: Any, **fields: Any) -> None:
        made(self, *args, **fields)
        alive.add(self)
        most.append(len(alive))

    monkeypatch.setattr(Predictions, "__init__", counted)
    config = toy_config({"eval": {"context_probe": probe}})
    bench = measured_bench(config, copies=6)
    others = [other_task(bench)]
    greatest = 3  # two shifts and their union
    for limit, kept in ((0, 0), (10**9, 14)):
        monkeypatch.setattr(measuring, "ZERO_SHOT", ZeroShotStore(limit))
        for classifier in (moved_classifier(bench), None):
            most.clear()
            measure(classifier, bench, others, config, tmp_path / "kept")
            assert max(most, default=0) <= 2 * greatest + kept
            assert len(alive) == kept


def test_without_a_file_nothing_is_written(toy_config: Config, tmp_path: Path) -> None:
    bench = measured_bench(toy_config())
    kept = measure(None, bench, (), toy_config(), tmp_path / "kept")
    (tmp_path / "kept").unlink()
    assert measure(None, bench, (), toy_config(), None) == kept
    assert not list(tmp_path.iterdir())
