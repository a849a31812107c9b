"""Translation of MLflow's errors into those of `tracking.errors`."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from carft_sweep.tracking.database import remove_passwords
from carft_sweep.tracking.errors import (
    AccessDenied,
    RequestFailed,
    ServiceUnreachable,
    TrackingError,
)
from carft_sweep.tracking.location import (
    TRACKING_VARIABLE,
    is_server,
    source_of,
    sqlite_file,
    without_password,
)
from carft_sweep.tracking.ownership import not_writable
from carft_sweep.tracking.store import mlflow_limits

logger = logging.getLogger(__name__)

# The codes that blame the record. Any other failure may be over a minute later.
_MISTAKES = {
    "ALREADY_EXISTS",
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "NOT_FOUND",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}
# MLflow's code for every error of its database but OperationalError: a value that the database
# cannot hold, or a session that broke.
_DOUBTFUL = "BAD_REQUEST"
_OVERLOADED = "QueuePool limit"
"""What SQLAlchemy says when every connection of the server to its database is in use."""
_READ_ONLY = "attempt to write a readonly database"
_REFUSED = {"CUSTOMER_UNAUTHORIZED", "PERMISSION_DENIED", "UNAUTHENTICATED"}
_UPLOAD_MISTAKES = {400, 404, 413}
_UNKNOWN = re.compile(r"endpoint (\S+) failed with error code 404")
"""The text of MLflow's client for a 404 that is not MLflow's own."""
_STORES = {"azure", "boto3", "botocore", "google"}


def translate_error(uri: str, code: str, text: str, answers: Callable[[], bool]) -> RuntimeError:
    """Return this package's error for an MlflowException of this code and text. `answers` tries a
    harmless request: a server that answers it after errors of 500 never takes this record."""
    place = without_password(uri)
    text = remove_passwords(text, uri)
    file = sqlite_file(uri)
    if file is not None and _READ_ONLY in text:
        return AccessDenied(not_writable(file))
    if "out-of-date database schema" in text:
        return TrackingError(
            f"{place} was made by another version of MLflow ({text.partition('.')[0]}). If by a "
            "newer version: pip install -U mlflow. Else make a copy of it, then run "
            f"`mlflow db upgrade {place}`, with user and password in the URL where it needs them"
        )
    if code in _REFUSED:
        return AccessDenied(f"MLflow at {place} denied access: {text}. {_remedy(text)}")
    broken_here = code == "INTERNAL_ERROR" and not is_server(uri)
    if code in _MISTAKES or broken_here or ("too many 500 " in text and answers()):
        return TrackingError(f"MLflow at {place} rejected the request: {text}")
    if code == _DOUBTFUL and _OVERLOADED not in text:
        return RequestFailed(f"MLflow at {place} failed at a request: {text}")
    unknown = _UNKNOWN.search(text)
    if unknown is not None:  # without the page that the client quotes
        return ServiceUnreachable(
            f"what answers at {place} does not know {unknown[1]} (404): check the address in "
            f"{source_of(uri)}, with its path where a proxy has one"
        )
    return ServiceUnreachable(f"MLflow at {place} does not answer: {text}")


def _remedy(text: str) -> str:
    """Return advice for a user whom an MLflow server denied access, chosen by the error's text."""
    if "Invalid Host header" in text:
        return "Start the server with --allowed-hosts that names the host as you write it"
    if "403" in text:
        return (
            "Its administrator must give you the right (EDIT on the experiment), or name another "
            "experiment in MLFLOW_EXPERIMENT_NAME"
        )
    return (
        "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN), "
        f"which are sent to the server in {TRACKING_VARIABLE} alone"
    )


@contextmanager
def translated(uri: str, answers: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn MLflow's errors within the context into this package's, by `translate_error`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        text = mlflow_limits.truncate(str(error.message), 1000)
        logger.debug("MLflow raised %s: %s", error.error_code, text)
        raise translate_error(uri, error.error_code, text, answers) from error
    except OSError as error:  # of an upload by `requests`, or of a local disk
        status = getattr(getattr(error, "response", None), "status_code", None)
        kind = TrackingError if status in _UPLOAD_MISTAKES else ServiceUnreachable
        message = f"MLflow at {without_password(uri)}: {remove_passwords(str(error), uri)}"
        raise kind(message) from error


@contextmanager
def uploading(uri: str) -> Iterator[None]:
    """Turn the artifact store's errors within the context into ours; used within `translated`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except Exception as error:  # each store's client has errors of its own, and no common base
        if isinstance(error, MlflowException):
            is_stores = is_server(uri) and "too many 5" in str(error.message)
        else:
            package = type(error).__module__.partition(".")[0]
            is_stores = isinstance(error, ImportError) or package in _STORES
        if not is_stores:
            raise
        # No record is at fault: the store may accept the same upload later.
        text = remove_passwords(mlflow_limits.truncate(str(error), 300), uri)
        raise ServiceUnreachable(
            f"the artifact store of MLflow at {without_password(uri)} rejected the upload "
            f"({text}). Check the server's --artifacts-destination and its log; where the server "
            "has none, this machine sends files itself, and needs the store's package (pip install "
            '"carft-sweep[cluster]" brings S3\'s) and its keys in the environment'
        ) from error
