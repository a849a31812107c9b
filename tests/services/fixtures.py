"""The services as fixtures: each is started once a session, when the first test asks for it.

Tests that ask for one run in one process: see `tests/conftest.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.services import mlflow_server as mlflow_servers
from tests.services import postgres as postgres_servers
from tests.services import s3 as s3_servers
from tests.services.mlflow_server import MlflowServer
from tests.services.postgres import Postgres
from tests.services.s3 import S3


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    with postgres_servers.running() as made:
        yield made


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with s3_servers.running(tmp_path_factory.mktemp("s3")) as made:
        yield made


@pytest.fixture(scope="session")
def mlflow_server(
    postgres: Postgres, s3: S3, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MlflowServer]:
    """MLflow's server with passwords in front of both: take an experiment for each test."""
    with mlflow_servers.running(postgres, s3, tmp_path_factory.mktemp("mlflow_server")) as made:
        yield made
