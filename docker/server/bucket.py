"""Make the bucket of artifacts unless it is there: `python bucket.py NAME`.

The store is MLFLOW_S3_ENDPOINT_URL; boto3 finds the keys where it always does.
"""

from __future__ import annotations

import os
import sys

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def make(name: str) -> bool:
    """Whether the bucket was made now. Raises ClientError or BotoCoreError where it cannot be."""
    store = boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"])
    try:
        store.head_bucket(Bucket=name)
    except ClientError as error:
        if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
            raise
        store.create_bucket(Bucket=name)
        return True
    return False


if __name__ == "__main__":
    try:
        made = make(sys.argv[1])
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"the bucket {sys.argv[1]} cannot be made: {error}")
    sys.stdout.write(f"the bucket {sys.argv[1]} {'was made' if made else 'is there'}\n")
