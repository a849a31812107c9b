"""A bucket as a stream of tar: `python bucket_tar.py pack|unpack|empty BUCKET`.

`pack` writes all objects to standard output, `unpack` puts those of standard input into the bucket,
`empty` says whether it is. The store is MLFLOW_S3_ENDPOINT_URL, or Amazon's; boto3 finds the keys
where it always does. An object of any size goes through in pieces, and none through a disk.
"""

from __future__ import annotations

import os
import sys
import tarfile
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import IO, Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def pack(store: Any, bucket: str, target: IO[bytes]) -> int:
    """How many objects there were. One that is deleted meanwhile is left out."""
    count = 0
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for entry in _objects(store, bucket):
            try:
                answer = store.get_object(Bucket=bucket, Key=entry["Key"])
            except store.exceptions.NoSuchKey:
                continue
            member = tarfile.TarInfo(entry["Key"])
            member.size = answer["ContentLength"]
            member.mtime = int(answer["LastModified"].timestamp())
            archive.addfile(member, answer["Body"])
            count += 1
    return count


def unpack(store: Any, bucket: str, source: IO[bytes]) -> int:
    """How many objects were put there."""
    count = 0
    with tarfile.open(fileobj=source, mode="r|") as archive:
        for member in archive:
            body = archive.extractfile(member)
            assert body is not None  # there are only files
            # With nothing but `read`: a stream cannot go back, though it says that it can.
            store.upload_fileobj(SimpleNamespace(read=body.read), bucket, member.name)
            count += 1
    return count


def is_empty(store: Any, bucket: str) -> bool:
    """Whether the bucket has no object."""
    return next(_objects(store, bucket), None) is None


def _objects(store: Any, bucket: str) -> Iterator[Mapping[str, Any]]:
    for page in store.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        yield from page.get("Contents", ())


def main(command: str, bucket: str) -> str | None:
    """What is wrong, if anything."""
    try:
        store = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"))
        if command == "pack":
            count = pack(store, bucket, sys.stdout.buffer)
        elif command == "unpack":
            count = unpack(store, bucket, sys.stdin.buffer)
        else:
            return None if is_empty(store, bucket) else f"the bucket {bucket} is not empty"
    except (BotoCoreError, ClientError) as error:
        return f"the bucket {bucket}: {error}"
    sys.stderr.write(f"the bucket {bucket}: {count} objects\n")
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
