"""The services of the tests are what they are taken for."""

from __future__ import annotations

import urllib.error
import urllib.request

import psycopg
import pytest

from tests.services.mlflow_server import USER, MlflowServer
from tests.services.postgres import Postgres
from tests.services.s3 import S3


def test_a_database_wants_a_password_and_outlives_its_server(postgres: Postgres) -> None:
    name = postgres.new_database()
    postgres.sql("CREATE TABLE kept (number int); INSERT INTO kept VALUES (1)", name)
    with postgres.away(), pytest.raises(psycopg.OperationalError, match="refused"):
        postgres.sql("SELECT 1")
    assert postgres.sql("SELECT number FROM kept", name) == [(1,)]
    assert postgres.tables(name) == {"kept"}
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.url(name, password="wrong"))


def test_a_bucket_keeps_what_it_is_given(s3: S3) -> None:
    bucket = s3.new_bucket()
    s3.client().put_object(Bucket=bucket, Key="a/b.txt", Body=b"text")
    assert s3.keys(bucket) == ["a/b.txt"]


def test_the_server_has_its_own_database_bucket_and_users(
    mlflow_server: MlflowServer, postgres: Postgres
) -> None:
    assert "experiments" in postgres.tables(mlflow_server.database)
    mlflow_server.post("experiments/create", {"name": "kept"})
    assert ("kept",) in postgres.sql("SELECT name FROM experiments", mlflow_server.database)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{mlflow_server.address}/api/2.0/mlflow/users/get?username={USER}")
