"""What an MLflow server is asked before a sweep begins: who it is, and whether it takes runs."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tracking.base import TrackingError
from tracking.mlflow_errors import store_refuses
from tracking.mlflow_probe import client_version, release, server_version
from tracking.where import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

WRITTEN_BY = "carft.written_by"
"""A tag of the experiment: the version of MLflow that wrote to it last."""


def check_version(uri: str) -> None:
    """Ask a server for its version, and wait a few seconds for it.

    Raises TrackingError where its major version is another than ours or its certificate is not
    trusted, ServiceUnreachable where it says nothing. Whatever else it answers is seen to by the
    next request.
    """
    if urlsplit(uri).scheme not in ("http", "https"):
        return  # Databricks has no version of its own
    theirs, ours = server_version(uri), client_version()
    if theirs is not None and release(theirs)[0] != release(ours)[0]:
        raise TrackingError(
            f"MLflow at {without_password(uri)} is version {theirs}, and here is {ours}: their "
            f"major versions must be the same; upgrade the server, after a copy of its database, "
            f"or install mlflow {release(theirs)[0]} here, where carft-sweep takes it"
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
