"""What an MLflow server is asked before a sweep begins: who it is, and whether it takes runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tracking.base import ServiceUnreachable, TrackingError
from tracking.databases import SECONDS
from tracking.mlflow_errors import store_refuses
from tracking.where import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

WRITTEN_BY = "carft.written_by"
"""A tag of the experiment: the version of MLflow that wrote to it last."""


def check_version(uri: str) -> None:
    """Ask a server for its version, and wait a few seconds for it.

    Raises TrackingError where its major version is another than ours, ServiceUnreachable where it
    takes a connection and says nothing. Whatever else it answers is seen to by the next request.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request
    from mlflow.version import VERSION

    try:
        credentials = get_default_host_creds(uri)  # type: ignore[no-untyped-call]
        answer: Any = http_request(  # type: ignore[no-untyped-call]
            credentials, "/version", "GET", timeout=SECONDS, max_retries=0
        )
    except MlflowException as error:
        if "timed out" in str(error):
            raise ServiceUnreachable(
                f"MLflow at {without_password(uri)} takes connections and does not answer within "
                f"{SECONDS} s"
            ) from None
        return
    found = re.fullmatch(r"(\d+)\.\d+\S*", answer.text.strip())
    if answer.status_code == 200 and found and found[1] != VERSION.partition(".")[0]:
        raise TrackingError(
            f"MLflow at {without_password(uri)} is version {found[0]}, and here is {VERSION}: "
            f"their major versions must be the same; upgrade the server, after a copy of its "
            f"database, or install mlflow {found[1]} here, where carft-sweep takes it"
        )


def check_rights(client: MlflowClient, experiment: str) -> None:
    """Write something harmless, since to read an experiment is allowed to many more.

    Raises MLflow's own errors.
    """
    from mlflow.version import VERSION

    client.set_experiment_tag(experiment, WRITTEN_BY, f"mlflow {VERSION}")


def check_artifacts(client: MlflowClient, uri: str, experiment: str) -> None:
    """List the experiment's artifacts where the server keeps them.

    Raises ServiceUnreachable where its store is not there.
    """
    from mlflow.artifacts import list_artifacts
    from mlflow.exceptions import MlflowException

    place = client.get_experiment(experiment).artifact_location
    if not place.startswith("mlflow-artifacts:"):
        return  # the client's own way to the store is seen to when the first file takes it
    try:
        list_artifacts(artifact_uri=place, tracking_uri=uri)
    except (MlflowException, OSError) as error:
        raise store_refuses(uri, str(error)) from None
