"""What an MLflow server is asked before a sweep begins: who it is, and whether it takes runs."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tracking.base import TrackingError
from tracking.mlflow_errors import store_refuses
from tracking.mlflow_probe import ask, client_version
from tracking.where import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

WRITTEN_BY = "carft.written_by"
"""A tag of the experiment: the version of MLflow that wrote to it last."""


def check_version(uri: str) -> None:
    """Ask a server for its version, and wait a few seconds for it.

    Raises TrackingError where its major version is another than ours, and as `ask` does. Whatever
    else it answers is seen to by the next request.
    """
    answer, ours = ask(uri, "/version"), client_version()
    found = re.fullmatch(r"(\d+)\.\d+\S*", answer.text.strip())
    if answer.status == 200 and found and found[1] != ours.partition(".")[0]:
        raise TrackingError(
            f"MLflow at {without_password(uri)} is version {found[0]}, and here is {ours}: "
            "their major versions must be the same; upgrade the server, after a copy of its "
            f"database, or install mlflow {found[1]} here, where carft-sweep takes it"
        )


def check_rights(client: MlflowClient, experiment: str) -> None:
    """Write something harmless, since to read an experiment is allowed to many more.

    Raises MLflow's own errors.
    """
    client.set_experiment_tag(experiment, WRITTEN_BY, f"mlflow {client_version()}")


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
