"""MLflow's errors, those of the artifact store that it passes on, and what it accepts."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from mlflow.entities import Metric as MlflowMetric
from mlflow.utils import validation as untyped
from requests import HTTPError, Response

from carft_sweep.tracking.errors import RequestFailed, ServiceUnreachable, TrackingError
from carft_sweep.tracking.store import mlflow_limits as limits
from carft_sweep.tracking.store.base import DatasetInput, Metric
from carft_sweep.tracking.store.mlflow_errors import translate_error, translated, uploading

URI = "http://me:hidden@mlflow.lab"


def test_a_store_that_needs_a_package_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)  # as where it is not installed
    expected = r"http://mlflow\.lab .*boto3.*brings S3"
    with pytest.raises(ServiceUnreachable, match=expected), uploading(URI):
        import_module("boto3")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("QueuePool limit of size 5 overflow 10 reached, connection timed", ServiceUnreachable),
        ("(Some) error", RequestFailed),
    ],
)
def test_a_bad_request_is_the_fault_of_the_record_but_for_an_exhausted_pool_of_connections(
    text: str, kind: type[Exception]
) -> None:
    """MLflow says it of every error of its database that it does not know."""
    assert type(translate_error(URI, "BAD_REQUEST", text, lambda: True)) is kind


@pytest.mark.parametrize(
    ("status", "kind"), [(503, ServiceUnreachable), (500, ServiceUnreachable), (413, TrackingError)]
)
def test_an_upload_is_blamed_only_for_its_own_faults(status: int, kind: type[Exception]) -> None:
    answer = Response()
    answer.status_code = status
    with pytest.raises(kind) as caught, translated(URI):
        raise HTTPError("no", response=answer)
    assert type(caught.value) is kind
    with pytest.raises(ServiceUnreachable), translated("sqlite:///x"):
        raise OSError("full")  # as a disk may be
    with pytest.raises(KeyError), uploading(URI):
        raise KeyError("a mistake of ours, and nobody's store")


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


@given(st.floats(allow_nan=False))
def test_a_float_parameter_can_be_read_back_exactly(value: float) -> None:
    assert float(limits.param(value)) == value


@given(st.lists(st.floats(), max_size=20))
def test_every_value_is_kept_or_told_of(values: list[float]) -> None:
    sent = [Metric(f"m{index}", value, index, 1) for index, value in enumerate(values)]
    stored, tags = limits.metrics(sent)
    assert len(stored) + len(tags) == len(values)
    assert all(not math.isinf(metric.value) for metric in stored)
    for metric in stored:
        validation._validate_metric(metric.name, metric.value, metric.timestamp, metric.step)
        assert MlflowMetric(metric.name, metric.value, metric.timestamp, metric.step).key


def test_limits_are_not_above_mlflows_and_leave_metrics_alone_and_make_datasets_one() -> None:
    assert limits.TAG_LENGTH <= validation.MAX_TAG_VAL_LENGTH
    assert limits.DATASET_DIGEST_LENGTH <= validation.MAX_DATASET_DIGEST_SIZE
    assert limits.DATASET_NAME_LENGTH <= validation.MAX_DATASET_NAME_SIZE
    for name in ("id/val/top1", "ood/imagenet_r/top1", "wise_ft/gap/top1", "carft.state"):
        assert limits.name(name) == name
    first = DatasetInput("d", "0" * 36 + "a", "/x", "train")
    second = DatasetInput("d", "0" * 36 + "b", "/x", "test")
    both = DatasetInput("d", "0" * 36, "/x", "train,test")
    assert limits.datasets([first, second, first]) == [both]
