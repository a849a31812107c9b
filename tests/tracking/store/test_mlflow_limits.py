"""Whatever is told fits what MLflow's own validation accepts."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.entities import Metric as MlflowMetric
from mlflow.utils import validation as untyped

from carft_sweep.tracking.store import mlflow_limits as limits
from carft_sweep.tracking.store.base import DatasetInput, Metric

validation: Any = untyped

TEXT = st.text(max_size=300) | st.from_regex(r"[a-z/.(=@ ]{0,300}", fullmatch=True)


@given(TEXT)
@example("..0")
@example("../a")
def test_mlflow_accepts_every_name(text: str) -> None:
    name = limits.name(text)
    validation._validate_metric_name(name)
    validation._validate_param_name(name)
    validation._validate_tag_name(name)
    assert len(name) <= validation.MAX_ENTITY_KEY_LENGTH


def test_the_names_of_the_metrics_are_left_alone() -> None:
    for name in ("id/val/top1", "ood/imagenet_r/top1", "wise_ft/gap/top1", "carft.state"):
        assert limits.name(name) == name


@given(st.floats(allow_nan=False))
def test_a_float_parameter_can_be_read_back_exactly(value: float) -> None:
    assert float(limits.param(value)) == value


@given(st.lists(st.floats(), max_size=20))
def test_every_value_is_kept_or_told_of(values: list[float]) -> None:
    told = [Metric(f"m{index}", value, index, 1) for index, value in enumerate(values)]
    kept, tags = limits.metrics(told)
    assert len(kept) + len(tags) == len(values)
    assert all(not math.isinf(metric.value) for metric in kept)
    for metric in kept:
        validation._validate_metric(metric.name, metric.value, metric.timestamp, metric.step)
        assert MlflowMetric(metric.name, metric.value, metric.timestamp, metric.step).key


def test_limits_are_not_above_mlflows() -> None:
    assert limits.TAG_LENGTH <= validation.MAX_TAG_VAL_LENGTH
    assert limits.DATASET_DIGEST_LENGTH <= validation.MAX_DATASET_DIGEST_SIZE
    assert limits.DATASET_NAME_LENGTH <= validation.MAX_DATASET_NAME_SIZE


def test_datasets_that_differ_only_beyond_the_digests_limit_are_one() -> None:
    first = DatasetInput("d", "0" * 36 + "a", "/x", "train")
    second = DatasetInput("d", "0" * 36 + "b", "/x", "test")
    assert limits.datasets([first, second, first]) == [
        DatasetInput("d", "0" * 36, "/x", "train,test")
    ]
