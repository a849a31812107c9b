"""Translation of MLflow's errors."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from carft_sweep.tracking.database import remove_passwords
from carft_sweep.tracking.errors import (
    AccessDenied,
    RequestFailed,
    ServiceUnreachable,
    TrackingError,
)
from carft_sweep.tracking.location import (
    TRACKING_VARIABLE,
    is_named,
    is_server,
    source_of,
    sqlite_file,
    without_password,
)
from carft_sweep.tracking.ownership import not_writable
from carft_sweep.tracking.store import mlflow_limits

logger = logging.getLogger(__name__)

# The codes that blame the record. Anything else may be well a minute later.
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
    """Translate an MlflowException of this code and text.

    `answers` sends the server a harmless request: one that answers it, and failed with a 500
    before, fails at the one record and would for ever.
    """
    place = without_password(uri)
    text = remove_passwords(text, uri)
    file = sqlite_file(uri)
    if file is not None and _READ_ONLY in text:
        return AccessDenied(not_writable(file))
    if "out-of-date database schema" in text:
        return _other_schema(place, text)
    if code in _REFUSED:
        return _not_let_in(uri, text)
    broken_here = code == "INTERNAL_ERROR" and not is_server(uri)
    if code in _MISTAKES or broken_here or ("too many 500 " in text and answers()):
        return TrackingError(f"MLflow at {place} rejected the request: {text}")
    if code == _DOUBTFUL and _OVERLOADED not in text:
        return RequestFailed(f"MLflow at {place} failed at a request: {text}")
    unknown = _UNKNOWN.search(text)
    if unknown is not None:
        return ServiceUnreachable(
            f"what answers at {place} does not know {unknown[1]} (404): see to the address in "
            f"{source_of(uri)}, with its path where a proxy has one, and whether the server is "
            "as new as the client"
        )
    return ServiceUnreachable(f"MLflow at {place} does not answer: {text}")


def _other_schema(place: str, text: str) -> TrackingError:
    """Tell an older schema from a newer one, of which MLflow says the same."""
    match = re.search(r"found version (\w+)", text)
    if match is not None and not _is_known(match[1]):
        return TrackingError(
            f"{place} was made by a newer version of MLflow (schema {match[1]}) than the one "
            "here: pip install -U mlflow"
        )
    return TrackingError(
        f"{place} was made by another version of MLflow: make a copy of it, then run "
        f"`mlflow db upgrade {place}`, with user and password in the URL where it needs them"
    )


def _is_known(revision: str) -> bool:
    """Tell whether the installed MLflow has a migration to this schema."""
    from mlflow.store import db_migrations

    versions = Path(db_migrations.__path__[0]) / "versions"
    return not versions.is_dir() or any(versions.glob(f"{revision}_*.py"))


def _not_let_in(uri: str, text: str) -> AccessDenied:
    """Name the remedy for each of the three ways in which a server denies access."""
    if "Invalid Host header" in text:
        remedy = "Start the server with --allowed-hosts that names the host as you write it"
    elif "403" in text:
        remedy = (
            "Its administrator must give you the right (EDIT on the experiment), or name another "
            "experiment in MLFLOW_EXPERIMENT_NAME"
        )
    elif not is_named(uri):
        remedy = (
            "MLFLOW_TRACKING_USERNAME, its password and MLFLOW_TRACKING_TOKEN are sent to the "
            f"server in {TRACKING_VARIABLE} alone: name this one there, or write "
            "http://USER:PASSWORD@HOST"
        )
    else:
        remedy = (
            "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (or MLFLOW_TRACKING_TOKEN)"
        )
    return AccessDenied(f"MLflow at {without_password(uri)} denied access: {text}. {remedy}")


def translate_os_error(uri: str, error: OSError) -> RuntimeError:
    """Translate an error of `requests` (an upload) or of a local disk."""
    answer = getattr(error, "response", None)
    message = f"MLflow at {without_password(uri)}: {remove_passwords(str(error), uri)}"
    if getattr(answer, "status_code", None) in _UPLOAD_MISTAKES:
        return TrackingError(message)
    return ServiceUnreachable(message)


def store_refuses(uri: str, text: str) -> ServiceUnreachable:
    """Make the error of a server that cannot reach the store of its artifacts.

    It blames no record: the store may be back, or admit the server, any time.
    """
    return ServiceUnreachable(
        f"the artifact store of MLflow at {without_password(uri)} does not take what it is given "
        f"({remove_passwords(text, uri)}). See to the server's --artifacts-destination: whether "
        "the bucket is there, the server may write to it, and the store answers; the server's log "
        "has the reason"
    )


@contextmanager
def translated(uri: str, answers: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Raise MLflow's errors as ours; `answers` is as for `translate_error`."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        text = mlflow_limits.truncate(str(error.message), 1000)
        logger.debug("MLflow raised %s: %s", error.error_code, text)
        raise translate_error(uri, error.error_code, text, answers) from error
    except OSError as error:  # requests' errors are OSErrors too
        raise translate_os_error(uri, error) from error


@contextmanager
def uploading(uri: str) -> Iterator[None]:
    """Within `translated`: raise the errors of the artifact store, which MLflow passes on."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        text = mlflow_limits.truncate(str(error.message), 300)
        if is_server(uri) and "too many 5" in str(error.message):
            raise store_refuses(uri, text) from error
        raise
    except ImportError as error:
        raise ServiceUnreachable(
            f"the artifacts of MLflow at {without_password(uri)} go to a store that needs the "
            f'Python package {error.name} here: pip install "carft-sweep[cluster]" brings S3\'s'
        ) from error
    except Exception as error:  # each store's client has errors of its own, and no common base
        if type(error).__module__.partition(".")[0] not in _STORES:
            raise
        text = remove_passwords(mlflow_limits.truncate(str(error), 300), uri)
        raise ServiceUnreachable(
            f"the artifact store of MLflow at {without_password(uri)} does not take what this "
            f"machine gives it ({text}). Keys for it must be in the environment, or the "
            "server started with --artifacts-destination, which then passes it on"
        ) from error


def deleted_experiment(uri: str, name: str, experiment_id: str) -> TrackingError:
    """Make the error for an experiment in MLflow's bin, whose name is still taken."""
    return TrackingError(
        f"the MLflow experiment {name!r} was deleted, and MLflow keeps its name: restore it with "
        f"`MLFLOW_TRACKING_URI={without_password(uri)} mlflow experiments restore "
        f"--experiment-id {experiment_id}`, or name another one in MLFLOW_EXPERIMENT_NAME"
    )
