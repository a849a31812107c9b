"""What an error of MLflow means: the request is wrong, or the store cannot be used for now.

The difference decides whether the spool sets a record aside or waits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tracking import limits
from tracking.base import ServiceUnreachable, TrackingError
from tracking.mlflow_busy import asked_to_wait, is_busy, said_in
from tracking.where import is_server, without_password

# The codes that blame what was told. Anything else may be well a minute later.
_MISTAKES = {
    "ALREADY_EXISTS",
    "BAD_REQUEST",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_FOUND",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
_REFUSED = {"CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "UNAUTHENTICATED"}
_UPLOAD_MISTAKES = {400, 404, 413}


def meaning(uri: str, code: str, text: str, answers: Callable[[], bool]) -> RuntimeError:
    """The error to raise for an MlflowException of this code and text.

    `answers` asks the server something harmless: one that answers it, and failed with a 500
    before, stumbles over the one request and would for ever.
    """
    place = without_password(uri)
    text = _without_passwords(text)
    if "out-of-date database schema" in text:
        return TrackingError(
            f"{place} was made by another version of MLflow: make a copy of it, then run "
            f"`mlflow db upgrade {place}`"
        )
    if code in _REFUSED:
        return ServiceUnreachable(
            f"MLflow at {place} does not let us in: {text}. Set MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN); for 'Invalid Host header' "
            "start the server with --allowed-hosts"
        )
    broken_here = code == "INTERNAL_ERROR" and not is_server(uri)
    if code in _MISTAKES or broken_here or ("too many 500 " in text and answers()):
        return TrackingError(f"MLflow at {place} refuses: {text}")
    return ServiceUnreachable(f"MLflow at {place} does not answer: {text}")


def meaning_of_os_error(uri: str, error: OSError) -> RuntimeError:
    """The error to raise for one of `requests` (an upload) or of a local disk."""
    answer = getattr(error, "response", None)
    message = f"MLflow at {without_password(uri)}: {_without_passwords(str(error))}"
    if getattr(answer, "status_code", None) in _UPLOAD_MISTAKES:
        return TrackingError(message)
    unreachable = ServiceUnreachable(message)
    unreachable.retry_after = said_in(answer)
    return unreachable


@contextmanager
def translated(uri: str, answers: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """MLflow's errors as ours; `answers` is as for `meaning`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        text = limits.cut(str(error.message), 1000)
        meant = meaning(uri, error.error_code, text, answers)
        if isinstance(meant, ServiceUnreachable) and is_busy(text):
            meant.retry_after = asked_to_wait(uri)
        raise meant from error
    except OSError as error:  # requests' errors are OSErrors too
        raise meaning_of_os_error(uri, error) from error


def deleted_experiment(uri: str, name: str, experiment_id: str) -> TrackingError:
    """The error for an experiment in MLflow's bin: its name is taken and it takes no runs."""
    return TrackingError(
        f"the MLflow experiment {name!r} was deleted, and MLflow keeps its name: restore it with "
        f"`MLFLOW_TRACKING_URI={without_password(uri)} mlflow experiments restore "
        f"--experiment-id {experiment_id}`, or name another one in MLFLOW_EXPERIMENT_NAME"
    )


def _without_passwords(text: str) -> str:
    """MLflow quotes whole addresses."""
    return re.sub(r"://[^/@\s]+@", "://", text)
