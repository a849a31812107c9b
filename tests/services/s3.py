"""A server with the S3 API (moto's), where the tests keep artifacts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from tests.services.processes import HOST, end, environment, free_port, start

KEY_ID, SECRET_KEY = "carft-key", "carft-secret-key"


@dataclass
class S3:
    """The server at `address`. Moto takes any key."""

    address: str
    process: subprocess.Popen[bytes]

    def __post_init__(self) -> None:
        self._numbers = count(1)

    @property
    def environ(self) -> dict[str, str]:
        """What a client of the store needs, by the names of boto3 and MLflow."""
        return {
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL_S3": self.address,
            "MLFLOW_S3_ENDPOINT_URL": self.address,
        }

    def new_bucket(self) -> str:
        name = f"bucket-{next(self._numbers)}"
        self.client().create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str) -> list[str]:
        listed = self.client().list_objects_v2(Bucket=bucket).get("Contents", [])
        return [entry["Key"] for entry in listed]

    def client(self) -> Any:
        import boto3

        keys = {"aws_access_key_id": KEY_ID, "aws_secret_access_key": SECRET_KEY}
        return boto3.client("s3", endpoint_url=self.address, region_name="us-east-1", **keys)


@contextmanager
def running(folder: Path) -> Iterator[S3]:
    """The server for as long as it lasts, with its log in `folder`."""
    port = free_port()
    address = f"http://{HOST}:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", HOST, "-p", str(port)]
    is_up = partial(answers, f"{address}/moto-api/")
    process = start(command, folder / "s3.log", is_up, environ=environment())
    try:
        yield S3(address, process)
    finally:
        end(process)


def answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=2):
            return True
    except (URLError, OSError):
        return False
