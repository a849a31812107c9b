"""Questions to MLflow that leave nothing behind: an answer, a schema, an artifact and back."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.base import ServiceUnreachable, TrackingError
from tracking.mlflow_errors import translated, uploading
from tracking.privacy import stay_private
from tracking.where import without_password

SECONDS = 5.0
"""That a server may take for an answer."""
_FOLDER = "carft-sweep-doctor"
_IMPATIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


@dataclass(frozen=True)
class Answer:
    """What a server said, and when, in seconds since 1970."""

    status: int
    headers: Mapping[str, str]
    text: str
    asked: float
    came: float

    def json(self) -> Any:
        """The body as JSON. Raises ValueError."""
        return json.loads(self.text)


def ask(
    uri: str,
    path: str,
    method: str = "GET",
    *,
    headers: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
    as_nobody: bool = False,
) -> Answer:
    """A server's answer, whatever its status, asked as MLflow's client asks: with its credentials
    (unless `as_nobody`), certificates and proxies.

    Raises ServiceUnreachable when nothing answers within SECONDS, TrackingError when TLS fails.
    """
    stay_private()
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import MlflowHostCreds, http_request

    known: Any = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
    nobody = MlflowHostCreds(  # type: ignore[no-untyped-call]
        without_password(uri),
        ignore_tls_verification=known.ignore_tls_verification,
        client_cert_path=known.client_cert_path,
        server_cert_path=known.server_cert_path,
    )
    asked = time.time()
    try:
        answer: Any = http_request(  # type: ignore[no-untyped-call]
            nobody if as_nobody else known,
            path,
            method,
            max_retries=0,
            timeout=SECONDS,
            raise_on_status=False,
            extra_headers=dict(headers or {}),
            json=body,
        )
    except MlflowException as error:
        raise _unanswered(uri, str(error.message)) from None
    return Answer(answer.status_code, answer.headers, answer.text, asked, time.time())


def _unanswered(uri: str, text: str) -> RuntimeError:
    place = without_password(uri)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return TrackingError(
            f"the certificate of {place} is not trusted here: MLFLOW_TRACKING_SERVER_CERT_PATH "
            "names the file of the authority that signed it"
        )
    if "SSLError" in text:
        return TrackingError(f"{place} does not speak TLS as https:// asks for; is it http://?")
    if "timed out" in text:
        return ServiceUnreachable(f"MLflow at {place} does not answer within {SECONDS:g} s")
    return ServiceUnreachable(f"MLflow at {place} does not answer: {text[:300]}")


def server_version(uri: str) -> str | None:
    """The version that a server tells of itself; None where it tells none. Raises as `ask` does."""
    answer = ask(uri, "/version")
    found = re.fullmatch(r"\d+\.\d+(\.\S+)?", answer.text.strip())
    return found[0] if answer.status == 200 and found else None


def client_version() -> str:
    """Of the installed MLflow."""
    from importlib.metadata import version

    return version("mlflow")


def release(version: str) -> tuple[int, ...]:
    """Major and minor, by which two versions are compared."""
    return tuple(int(part) for part in version.split(".")[:2])


def latest_schema() -> str:
    """The revision of a database's tables that the installed MLflow wants."""
    stay_private()
    from mlflow.store.db.utils import _get_latest_schema_revision

    return str(_get_latest_schema_revision())  # type: ignore[no-untyped-call]


def try_artifacts(uri: str, location: str) -> bool:
    """Write a small file below an experiment's `location`, read it, and remove it; no run is made.

    False when it is still there: who may write need not be let delete. The next one of this user
    and machine then takes its place. Raises ServiceUnreachable or TrackingError where the store
    refuses.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    who = f"{getpass.getuser()}@{socket.gethostname()}".encode()
    place = f"{location.rstrip('/')}/{_FOLDER}-{hashlib.sha256(who).hexdigest()[:8]}"
    written = uuid.uuid4().hex
    with _impatient(), translated(uri), uploading(uri), tempfile.TemporaryDirectory() as folder:
        store: Any = get_artifact_repository(place, tracking_uri=uri)
        file, back = Path(folder, "tried.txt"), Path(folder, "back")
        file.write_text(written)
        back.mkdir()
        store.log_artifact(str(file))
        read = Path(store.download_artifacts(file.name, str(back))).read_text()
        if read != written:
            raise TrackingError(f"the artifact store gives back other than it got: {location}")
        return _removed(store)


def _removed(store: Any) -> bool:
    """Whether its files are gone: False where this user may not delete."""
    from mlflow.exceptions import MlflowException
    from requests import HTTPError

    try:
        store.delete_artifacts()
    except (HTTPError, MlflowException) as error:
        if "403" in str(error):
            return False
        raise
    return True


@contextmanager
def _impatient() -> Iterator[None]:
    """MLflow tries again for minutes, and shows a bar, unless told otherwise."""
    before = {name: os.environ.get(name) for name in _IMPATIENT}
    os.environ.update(_IMPATIENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
