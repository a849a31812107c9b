"""The models of a run measured together: the numbers of a straightforward evaluation of each."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pyarrow.parquet as pq
import pytest
import torch

from carft_sweep.carft_core.data import Source
from carft_sweep.carft_core.data.bank import BANK_GB_ENV
from carft_sweep.carft_core.evaluation import measure as evaluate
from carft_sweep.carft_core.evaluation.measure import measure
from carft_sweep.carft_core.evaluation.metrics import top1
from carft_sweep.carft_core.evaluation.predictions import CLASS_NAMES, Predictions
from carft_sweep.carft_core.models.classifier import Classifier, ImageClassifier
from carft_sweep.carft_core.training.setup import RunSetup
from tests.carft_core.measured_task import OTHER_TASK, measured_task, moved_classifier
from tests.carft_core.random_predictions import write_predictions
from tests.carft_core.stand_ins import watched
from tests.carft_core.trained import Config

pytestmark = pytest.mark.usefixtures("cache")
SPLITS = ("id/val", "id/test", "ood/dark", "ood/pale", "ood/again", OTHER_TASK)
ORDER = ("id/val", "id/test", "id/test_ends", "ood/dark", "ood/pale", "ood/both", "ood/again")


def everything(classifier: Classifier, setup: RunSetup) -> dict[str, Predictions]:
    """All at once, each split predicted by itself, in the order of measuring."""
    made: dict[str, Predictions] = {}
    for name in setup.measured():
        head = setup.other_heads.get(name)
        (made[name],) = evaluate.predict([classifier], name, setup.teacher, head)
    test, dark, pale = (made[name] for name in ("id/test", "ood/dark", "ood/pale"))
    ends = test.take(torch.isin(test.labels, torch.tensor([0, 2])).nonzero()[:, 0])
    logits = evaluate.mask_logits(ends.logits, (0, 2))
    made["id/test_ends"] = replace(ends, split="id/test_ends", logits=logits)
    union: dict[str, Any] = {"ids": [*dark.ids, *pale.ids], "units": [*dark.units, *pale.units]}
    for name in ("labels", "logits", "features"):
        union[name] = torch.cat([getattr(dark, name), getattr(pale, name)])
    made["ood/both"] = Predictions(split="ood/both", **union)
    return {name: made[name] for name in (*ORDER, OTHER_TASK)}


def expected_metrics(classifier: Classifier, setup: RunSetup) -> dict[str, float]:
    ours, theirs = everything(classifier, setup), everything(setup.teacher.classifier, setup)
    metrics = evaluate.summary(
        {name: evaluate.split_metrics(ours[name]) for name in ORDER},
        {name: evaluate.split_metrics(theirs[name]) for name in ORDER},
        outside={"ood/again", "ood/both"},
    )
    teacher = setup.teacher
    for name in ORDER:
        features = theirs[name].features, ours[name].features
        probe = evaluate.context_probe(*features, teacher.w_ctx, teacher.scale)
        metrics |= {f"context/{name}/{key}": value for key, value in probe.items()}
    after, before = (top1(of[OTHER_TASK].logits, of[OTHER_TASK].labels) for of in (ours, theirs))
    metrics |= {f"{OTHER_TASK}/top1": after, "retention/mean/top1": after}
    return metrics | {"retention/gain/top1": after - before}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were read, call by call."""
    return watched(monkeypatch, Source, "views", lambda _, rows, **__: len(rows))


@pytest.mark.parametrize("room", [1, 2**31])
def test_metrics_and_tables_are_those_of_each_model_by_itself(
    toy_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(evaluate, "MEMORY_FOR_MODELS", room)
    setup = measured_task(toy_config())
    classifiers: dict[str, Classifier] = {
        "unmerged": moved_classifier(setup),
        "wise_ft@0": setup.teacher.classifier,
        "wise_ft@0.5": moved_classifier(setup, 1.02),
    }
    models = {label: lambda label=label: classifiers[label] for label in classifiers}
    files = {label: tmp_path / label for label in ("unmerged", "wise_ft@0")}
    measured = measure(models, setup, toy_config(), files)
    assert list(measured) == list(classifiers)
    for label, classifier in classifiers.items():
        assert measured[label] == expected_metrics(classifier, setup), label
    for label, file in files.items():
        made = everything(classifiers[label], setup)
        write_predictions(tmp_path / "expected", [*made.values()])
        table = pq.read_table(file)
        names = json.loads(table.schema.metadata[CLASS_NAMES.encode()])
        assert tuple(names) == setup.data.class_names
        assert table.to_pylist() == pq.read_table(tmp_path / "expected").to_pylist()
        assert list(dict.fromkeys(table["split"].to_pylist())) == [*ORDER, OTHER_TASK]
    assert not (tmp_path / "wise_ft@0.5").exists(), "nobody asked for its predictions"


class OneModel(torch.nn.Linear):
    @property
    def parts(self) -> tuple[torch.nn.Module]:
        return (self,)


def test_models_share_a_quarter_of_what_a_gpu_has_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "on_device", lambda model, _: model)
    for free, loaded in ((0, 1), (4 * 1047, 1), (4 * 1048, 2)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 0))
        waiting: Any = {name: lambda: OneModel(16, 16, bias=False) for name in "abc"}
        assert len(evaluate._load_some(waiting, 24, torch.device("cuda"))) == loaded


def test_each_image_is_read_once_for_all_models_that_fit_into_memory(
    toy_config: Config, reads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(BANK_GB_ENV, "0")  # else each view is made once for good
    setup, config = measured_task(toy_config()), toy_config()
    images = sum(len(split) for split in setup.measured().values())
    classifiers = [moved_classifier(setup, factor) for factor in (1.0, 1.1, 1.2)]
    models: Any = {
        str(number): lambda classifier=classifier: classifier
        for number, classifier in enumerate(classifiers)
    }
    together = measure(models, setup, config, {})
    assert sum(reads) == images
    of_one = sum(tensor.nbytes for tensor in classifiers[0].state_dict().values())
    features = max(map(len, setup.measured().values())) * setup.teacher.w_cls[0].nbytes
    for room, passes in ((of_one + features + 1, 2), (of_one + 1, 3)):
        reads.clear()
        monkeypatch.setattr(evaluate, "MEMORY_FOR_MODELS", room)
        assert (measure(models, setup, config, {}), sum(reads)) == (together, passes * images)
    reads.clear()
    measure({"zero_shot": lambda: setup.teacher.classifier}, setup, config, {})
    assert not reads, "the zero-shot model's features are kept"


def test_a_model_of_two_labels_passes_once(
    toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = measured_task(toy_config())
    measure({"zero_shot": lambda: setup.teacher.classifier}, setup, toy_config(), {})
    classifier = moved_classifier(setup)
    passed = watched(monkeypatch, ImageClassifier, "features", lambda _, images: len(images))
    models = dict.fromkeys(("unmerged", "wise_ft@1"), lambda: classifier)
    both = measure(models, setup, toy_config(), {})
    assert both["unmerged"] == both["wise_ft@1"]
    assert sum(passed) == sum(map(len, setup.measured().values()))


@pytest.mark.parametrize("probe", [True, False])
def test_predictions_stay_in_memory_only_as_long_as_a_derived_set_needs_them(
    toy_config: Config, monkeypatch: pytest.MonkeyPatch, probe: bool
) -> None:
    """Those of `dark` until `pale` has come, six shifts later; of the others one at a time."""
    alive: WeakSet[Predictions] = WeakSet()
    counts: list[int] = []
    made = Predictions.__init__

    def counted(self: Predictions, *args: Any, **fields: Any) -> None:
        made(self, *args, **fields)
        alive.add(self)
        counts.append(len(alive))

    monkeypatch.setattr(Predictions, "__init__", counted)
    config = toy_config({"eval": {"context_probe": probe}})
    setup = measured_task(config, copies=6)
    classifier = moved_classifier(setup)
    measure({"unmerged": lambda: classifier}, setup, config, {})
    # The model's and the zero-shot model's: of two shifts, their parts, and the union.
    assert max(counts) <= 2 * 2 + 2 + 2
    assert not alive


def test_what_no_clip_is_needed_for_is_measured(toy_config: Config, tmp_path: Path) -> None:
    setup = measured_task(toy_config())
    classifier = moved_classifier(setup)
    models, file = {"it": lambda: classifier}, tmp_path / "predictions.parquet"
    whole = measure(models, setup, toy_config(), {})["it"]
    assert not [*tmp_path.rglob("*.parquet")], "without a file nothing is written"
    classifier.clip_features = False
    measured = measure(models, setup, toy_config(), {"it": file})["it"]
    lost = {name for name in whole if name.startswith(("context/", "retention/"))}
    assert lost
    assert measured == {name: value for name, value in whole.items() if name not in lost}
    assert dict.fromkeys(pq.read_table(file)["split"].to_pylist()) == dict.fromkeys(ORDER)
