"""Predictions of a small classifier, their metrics, and the table in which they are kept."""

from __future__ import annotations

import math
import multiprocessing
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from carft_sweep.carft_core.data.base import Source, Split
from carft_sweep.carft_core.data.transforms import Transform
from carft_sweep.carft_core.evaluation import measure, predictions
from carft_sweep.carft_core.evaluation.metrics import macro_f1, worst_group_top1
from carft_sweep.carft_core.evaluation.predictions import Predictions
from carft_sweep.carft_core.models.classifier import ImageClassifier
from carft_sweep.carft_core.training.numerics import Precision
from tests.carft_core.bare_teacher import bare_teacher
from tests.carft_core.random_predictions import CLASSES, random_predictions, write_predictions
from tests.carft_core.stand_ins import failing
from tests.carft_core.trained import same

TRANSFORM = Transform(size=4, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
WIDTH = 8


class Noise(Source):
    """Images of noise, a pure function of the row; only evaluation views."""

    def views(self, rows: Sequence[int], *, seed: int | None, **_: Any) -> Tensor:
        assert seed is None, "an evaluation asked for training views"
        shape = (3, TRANSFORM.size, TRANSFORM.size)
        generators = [torch.Generator().manual_seed(row) for row in rows]
        return torch.stack(
            [
                torch.randint(256, shape, dtype=torch.uint8, generator=generator)
                for generator in generators
            ]
        )


def noise_split(labels: Sequence[int], **more: Any) -> Split:
    return Split(
        ids=tuple(f"image {index}" for index in range(len(labels))),
        units=tuple(f"drawing {index // 2}" for index in range(len(labels))),
        labels=torch.tensor(labels, dtype=torch.int64),
        source=Noise(),
        **more,
    )


@pytest.fixture
def classifier() -> ImageClassifier:
    """Batch norm with statistics of its own, and dropout: a wrong mode would show."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        norm = nn.BatchNorm2d(3)
        norm.running_mean = torch.randn(3)
        visual = nn.Sequential(norm, nn.Flatten(), nn.Linear(48, WIDTH), nn.Dropout(0.5))
        head = nn.Linear(WIDTH, CLASSES, bias=False)
    return ImageClassifier(visual, head)


SPLIT = noise_split([0, 1, 2, 3, 4, 5, 0, 1, 2])


def predicted(classifier: ImageClassifier, split: Split = SPLIT, **settings: Any) -> Predictions:
    teacher = bare_teacher(split, TRANSFORM, **{"batch_size": 4, **settings})
    (made,) = measure.predict([classifier], "id/test", teacher)
    return made


def encoded(classifier: ImageClassifier, precision: Precision = "fp32") -> Tensor:
    teacher = bare_teacher(SPLIT, TRANSFORM, precision=precision, batch_size=4)
    (features,) = teacher.encode([classifier], "id/test")
    return features


def test_predictions_are_those_of_the_classifier_evaluated(classifier: ImageClassifier) -> None:
    made, features = predicted(classifier), encoded(classifier)
    views = SPLIT.views(range(len(SPLIT)), transform=TRANSFORM, seed=None, epoch=0)
    images = TRANSFORM.normalise(views)
    classifier.eval()
    with torch.no_grad():
        torch.testing.assert_close(made.logits, classifier(images), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(features, classifier.features(images), rtol=1e-5, atol=1e-6)
    assert (made.ids, made.units, made.split) == (SPLIT.ids, SPLIT.units, "id/test")
    assert torch.equal(made.labels, SPLIT.labels)
    weight = torch.ones(CLASSES, requires_grad=True)
    (made.logits @ weight).sum().backward()  # ordinary tensors, not those of an inference mode
    assert not made.logits.requires_grad


def test_bf16_is_for_the_tower_and_not_for_features_and_head(classifier: ImageClassifier) -> None:
    half, full = encoded(classifier, "bf16"), encoded(classifier)
    assert not torch.equal(half, full)
    for features in (half, full):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=1), torch.ones(len(SPLIT)))
    logits = predicted(classifier, precision="bf16").logits
    assert logits.dtype == torch.float32
    head = classifier.head.weight.detach()
    torch.testing.assert_close(logits, half @ head.T, rtol=1e-6, atol=1e-6)


def test_classes_that_cannot_occur_or_are_alike_are_not_told(classifier: ImageClassifier) -> None:
    labels = [1, 3, 4, 1]
    plain = predicted(classifier, noise_split(labels)).logits
    assert torch.equal(measure.mask_logits(plain, None), plain)
    part = predicted(classifier, noise_split(labels, classes=(1, 3, 4))).logits
    assert torch.equal(part[:, [1, 3, 4]], plain[:, [1, 3, 4]])
    alike = {3: (3, 5), 1: (0, 1, 2)}
    made = predicted(classifier, noise_split(labels, classes=(1, 3, 4), alike=alike)).logits
    assert torch.equal(made[:, 1], plain[:, :3].amax(dim=1))
    assert torch.equal(made[:, 3], plain[:, [3, 5]].amax(dim=1))
    assert torch.equal(made[:, 4], plain[:, 4])
    assert torch.isneginf(torch.cat([part, made])[:, [0, 2, 5]]).all()


def test_a_part_is_the_items_of_its_classes_among_these_alone() -> None:
    whole = random_predictions(items=40)
    part = measure.joined("id/test_r", [whole], (1, 4))
    rows = [index for index, label in enumerate(whole.labels.tolist()) if label in (1, 4)]
    assert (part.split, part.ids) == ("id/test_r", [whole.ids[index] for index in rows])
    assert part.units == [whole.units[index] for index in rows]
    assert torch.equal(part.features, whole.features[rows])
    assert torch.equal(part.logits[:, [1, 4]], whole.logits[rows][:, [1, 4]])
    assert torch.isneginf(part.logits[:, [0, 2, 3, 5]]).all()
    accurate = (whole.logits[rows][:, 4] > whole.logits[rows][:, 1]) == (part.labels == 4)
    assert measure.split_metrics(part)["top1"] == float(accurate.double().mean())


def test_a_set_of_corruptions_has_a_mean_of_its_own_and_is_in_no_other() -> None:
    tuned = {
        "id/test": {"top1": 0.9},
        "ood/v2": {"top1": 0.6, "macro_f1": 0.2},
        "ood/c-fog-1": {"top1": 0.5, "nll": 2.0},
        "ood/c-fog-2": {"top1": 0.1, "nll": 4.0},
    }
    corruptions = ("ood/c-fog-1", "ood/c-fog-2")
    outside, own_means = {*corruptions, "ood/c"}, {"ood/c": corruptions}
    zero_shot = {name: {"top1": 0.4 if name == "ood/v2" else 0.9} for name in tuned}
    metrics = measure.summary(tuned, zero_shot, outside=outside, own_means=own_means)
    assert metrics["ood/c-fog-2/top1"] == 0.1
    assert (metrics["ood/c/top1"], metrics["ood/c/nll"]) == pytest.approx((0.3, 3.0))
    assert (metrics["ood/mean/top1"], metrics["ood/mean/macro_f1"]) == (0.6, 0.2)
    assert metrics["gap/top1"] == pytest.approx(0.3)
    assert metrics["gain/ood/top1"] == pytest.approx(0.2)
    assert "ood/mean/nll" not in metrics
    del tuned["ood/v2"]
    alone = measure.summary(tuned, tuned, outside=corruptions)
    assert not any(name.startswith(("ood/mean", "gap", "gain")) for name in alone)


def test_further_metrics_are_told_when_asked_for_those_of_groups_where_there_are_groups() -> None:
    plain, groups = random_predictions(items=12), ("a", "b", "c") * 4
    four = measure.split_metrics(plain)
    assert list(four) == ["top1", "nll", "ece", "brier"]
    assert four["nll"] == pytest.approx(float(F.cross_entropy(plain.logits, plain.labels)))
    assert four["top1"] == float((plain.logits.argmax(1) == plain.labels).double().mean())
    asked = ("macro_f1", "worst_group_top1")
    assert measure.split_metrics(plain, asked).keys() == {*four, "macro_f1"}
    measured = measure.split_metrics(replace(plain, groups=groups), asked)
    assert measured["worst_group_top1"] == worst_group_top1(plain.logits, plain.labels, groups)
    assert measured["macro_f1"] == macro_f1(plain.logits, plain.labels)
    of_none = replace(plain, groups=("",) * 12)
    assert measure.split_metrics(of_none, asked).keys() == {*four, "macro_f1"}


def test_splits_taken_together_are_all_their_items_with_their_groups() -> None:
    first = replace(random_predictions("ood/x", items=4), groups=("a",) * 4)
    second = replace(random_predictions("ood/y", items=3), groups=("b",) * 3)
    union = measure.joined("ood/all", [first, second], None)
    assert (union.split, union.ids) == ("ood/all", [*first.ids, *second.ids])
    assert (union.units, union.groups) == ([*first.units, *second.units], ["a"] * 4 + ["b"] * 3)
    for name in ("labels", "logits", "features"):
        parts = [getattr(part, name) for part in (first, second)]
        assert torch.equal(getattr(union, name), torch.cat(parts))
    assert measure.joined("ood/all", [first, replace(second, groups=None)], None).groups is None
    hits = 4 * measure.split_metrics(first)["top1"] + 3 * measure.split_metrics(second)["top1"]
    assert measure.split_metrics(union)["top1"] == pytest.approx(hits / 7)


def test_neither_batch_size_nor_workers_change_anything(classifier: ImageClassifier) -> None:
    first = predicted(classifier)
    for batch_size, workers in ((1, 0), (5, 0), (100, 0), (2, 2)):
        again = predicted(classifier, batch_size=batch_size, workers=workers)
        torch.testing.assert_close(again.logits, first.logits, rtol=1e-5, atol=1e-6)
        assert torch.equal(again.labels, first.labels)


def test_what_cannot_be_predicted_is_refused_and_leaves_no_worker(
    classifier: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = {"has no items": ([], None), "has labels outside the classes": ([1, 2], (1, 4))}
    for words, (labels, classes) in wrong.items():
        with pytest.raises(ValueError, match=f"id/test {words}"):
            predicted(classifier, noise_split(labels, classes=classes))

    def fail(images: Tensor) -> Tensor:
        raise ValueError(f"{len(images)} images")

    monkeypatch.setattr(classifier, "features", fail)
    with pytest.raises(ValueError, match="4 images") as caught:
        predicted(classifier, workers=1)
    assert caught.traceback  # which holds the frames
    assert not multiprocessing.active_children()


def test_modules_keep_their_modes_and_statistics(classifier: ImageClassifier) -> None:
    classifier.train()
    norm = classifier.get_submodule("visual.0")
    norm.eval()
    before = {name: value.clone() for name, value in classifier.state_dict().items()}
    predicted(classifier)
    modes = [part.training for part in (classifier, norm, classifier.get_submodule("visual.3"))]
    assert modes == [True, False, True]
    assert same(before, classifier.state_dict())


def four(value: float) -> dict[str, float]:
    return {"top1": value, "nll": 2 * value, "ece": value / 10, "brier": value / 2}


def test_a_summary_has_exactly_the_names_of_the_design() -> None:
    def names(*splits: str) -> set[str]:
        return {f"{split}/{metric}" for split in splits for metric in four(0)}

    inside, shifts = ("id/val", "id/test"), ("ood/outline", "ood/3d")
    measured = {name: four(0.0) for name in (*inside, *shifts)}
    of_shifts = names(*inside, *shifts, "ood/mean") | {"gap/top1", "hmean/top1"}
    flat = measure.summary(measured, {"ood/outline": four(0.4)})
    assert set(flat) == of_shifts | {"gain/ood/top1"}
    assert flat["hmean/top1"] == 0.0, "of two zeros"
    assert set(measure.summary(measured)) == of_shifts, "there is no zero-shot row"
    alone = {name: measured[name] for name in inside}
    assert set(measure.summary(alone, {"id/test": four(0.4)})) == names(*inside)


def test_a_summary_is_what_follows_from_the_splits() -> None:
    tuned = {"id/test": four(0.8), "ood/a": four(0.3), "ood/b": four(0.5)}
    zero_shot = {"id/test": four(0.6), "ood/a": four(0.4), "ood/b": four(0.7)}
    flat = measure.summary(tuned, zero_shot)
    assert flat["id/test/nll"] == 1.6
    assert {name: flat[f"ood/mean/{name}"] for name in four(0)} == pytest.approx(four(0.4))
    assert flat["gap/top1"] == pytest.approx(0.4)
    assert flat["hmean/top1"] == pytest.approx(2 * 0.8 * 0.4 / 1.2)
    assert flat["gain/ood/top1"] == pytest.approx(0.4 - 0.55)


def directions(seed: int, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(count, WIDTH, generator=generator), dim=1)


def test_the_context_probe_is_the_divergence_from_the_teacher_and_the_students_entropy() -> None:
    teacher, student, contexts, scale = directions(0, 5), directions(1, 5), directions(2, 4), 7.0
    p, q = (
        torch.softmax(scale * features.double() @ contexts.double().T, dim=1).numpy()
        for features in (teacher, student)
    )
    probe = measure.context_probe(teacher, student, contexts, scale)
    assert probe["kl"] == pytest.approx((p * np.log(p / q)).sum() / 5, rel=1e-9)
    assert probe["entropy"] == pytest.approx(-(q * np.log(q)).sum() / 5, rel=1e-9)
    unmoved = measure.context_probe(teacher, teacher.clone(), contexts, 100.0)
    assert unmoved["kl"] == 0.0 < unmoved["entropy"]
    # Templates are much alike: their cosines with an image differ by a few hundredths, so that
    # nothing is seen without CLIP's scale.
    near = F.normalize(teacher + 0.05 * student, dim=1)
    alike = F.normalize(directions(2, 1) + 0.05 * directions(3, 9), dim=1)
    kl = [measure.context_probe(teacher, near, alike, scale)["kl"] for scale in (100.0, 1.0)]
    assert kl[0] > 1000 * kl[1]


def table(path: Path, items: Sequence[Predictions], **options: Any) -> pa.Table:
    """What is read of predictions that were written."""
    write_predictions(path / "deep" / "p.parquet", items, **options)
    return pq.read_table(path / "deep" / "p.parquet")


def rows(table: pa.Table, split: str) -> list[dict[str, object]]:
    return [row for row in table.to_pylist() if row["split"] == split]


def test_predictions_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    items = [random_predictions("id/test", 7), random_predictions("ood/sketch", 5)]
    read = table(tmp_path, items)
    for item in items:
        p = torch.softmax(item.logits.double(), dim=1)
        got = rows(read, item.split)
        assert [row["id"] for row in got] == list(item.ids)
        assert [row["unit"] for row in got] == list(item.units)
        assert [row["label"] for row in got] == item.labels.tolist()
        assert [row["prediction"] for row in got] == item.logits.argmax(dim=1).tolist()
        assert [row["top5"] for row in got] == item.logits.topk(5).indices.tolist()
        assert [row["confidence"] for row in got] == pytest.approx(p.max(1).values.tolist())
        labelled = p[range(len(p)), item.labels].tolist()
        assert [row["p_label"] for row in got] == pytest.approx(labelled)
        assert [row["logits"] for row in got] == item.logits.half().tolist()
    assert {field.name: str(field.type) for field in read.schema} == {
        "split": "dictionary<values=string, indices=int32, ordered=0>",
        "id": "string",
        "unit": "string",
        "label": "int32",
        "prediction": "int32",
        "p_label": "float",
        "confidence": "float",
        "top5": "list<element: int32>",
        "logits": "list<element: halffloat>",
    }
    assert read.schema.metadata[b"carft.predictions"] == b"1"


def test_top5_lists_only_classes_that_can_occur_and_of_equals_the_first(tmp_path: Path) -> None:
    for classes, possible, length in ((3, None, 3), (9, 2, 2), (9, 7, 5)):
        written = table(tmp_path, [random_predictions("ood/x", 4, classes, possible)])
        for top in written["top5"].to_pylist():
            assert len(set(top)) == length
            assert max(top) < (possible or classes)
    item = random_predictions(items=1)
    item.logits[:] = 0.0
    (row,) = table(tmp_path, [item]).to_pylist()
    assert (row["prediction"], row["top5"]) == (0, [0, 1, 2, 3, 4])


def test_logits_are_kept_as_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of 7 items take 7 · 6 · 2 = 84 bytes, and `auto` wants less than the limit."""
    items = [random_predictions(), random_predictions("ood/small", 2)]
    cases = [("auto", 10**6, 9), ("auto", 84, 2), ("always", 0, 9), ("never", 10**6, 0)]
    for logits, limit, stored in cases:
        monkeypatch.setattr(predictions, "LOGITS_LIMIT", limit)
        column = table(tmp_path, items, logits=logits)["logits"]
        assert (column.slice(9 - stored).null_count, column.null_count) == (0, 9 - stored)


def test_logits_beyond_the_range_of_fp16_stay_finite(tmp_path: Path) -> None:
    item = random_predictions(items=1, possible=2)
    item.logits[0, :2] = torch.tensor([1e6, -1e6])
    (row,) = table(tmp_path, [item]).to_pylist()
    assert row["logits"] == [65504.0, -65504.0, *[-math.inf] * 4]


def test_the_same_predictions_give_the_same_bytes_and_leave_nothing_else(tmp_path: Path) -> None:
    items = [random_predictions(), random_predictions("ood/sketch", 5)]
    for name in ("one", "two"):
        write_predictions(tmp_path / name, items)
        write_predictions(tmp_path / name, items)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["one", "two"]


def test_a_failed_write_leaves_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.parquet"
    write_predictions(path, [random_predictions()])
    before = path.read_bytes()

    no_space = OSError("no space left on device")
    monkeypatch.setattr(pq.ParquetWriter, "write_table", failing(no_space))
    with pytest.raises(OSError, match="no space left"):
        write_predictions(path, [random_predictions(items=3)])
    assert (path.read_bytes(), list(tmp_path.iterdir())) == (before, [path])
