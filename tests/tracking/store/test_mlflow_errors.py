"""MLflow's errors, and those of the artifact store that MLflow only passes on."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest
from requests import HTTPError, Response

from carft_sweep.tracking.errors import RequestFailed, ServiceUnreachable, TrackingError
from carft_sweep.tracking.store.mlflow_errors import translate_error, translated, uploading

URI = "http://me:hidden@mlflow.lab"


def test_a_store_that_needs_a_package_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)  # as where it is not installed
    expected = r"http://mlflow\.lab .*boto3.*brings S3"
    with pytest.raises(ServiceUnreachable, match=expected), uploading(URI):
        import_module("boto3")


def test_an_error_of_nobodys_store_is_not_taken_for_one() -> None:
    with pytest.raises(KeyError), uploading(URI):
        raise KeyError("a mistake of ours")


def test_an_exhausted_pool_of_connections_is_no_fault_of_the_record() -> None:
    text = "QueuePool limit of size 5 overflow 10 reached, connection timed out, timeout 30.00"
    assert type(translate_error(URI, "BAD_REQUEST", text, lambda: True)) is ServiceUnreachable


def test_a_bad_request_may_be_the_fault_of_the_record() -> None:
    """MLflow says it of every error of its database that it does not know."""
    assert type(translate_error(URI, "BAD_REQUEST", "(Some) error", lambda: True)) is RequestFailed


@pytest.mark.parametrize(
    ("status", "kind"), [(503, ServiceUnreachable), (500, ServiceUnreachable), (413, TrackingError)]
)
def test_an_upload_is_blamed_only_for_what_is_its_own_fault(
    status: int, kind: type[Exception]
) -> None:
    answer = Response()
    answer.status_code = status
    with pytest.raises(kind) as caught, translated(URI):
        raise HTTPError("no", response=answer)
    assert type(caught.value) is kind


def test_a_disk_that_is_full_is_no_fault_of_the_record() -> None:
    with pytest.raises(ServiceUnreachable), translated("sqlite:///x"):
        raise OSError("full")
