"""A sweep as a RayJob of KubeRay: the manifest that `kubectl apply` takes.

Field names are those of `ray.io/v1` in KubeRay 1.5.1 and later (ray-operator/apis/ray/v1).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from carft_core.errors import RequestError, unknown
from sweeps.secrets import NAMES, WORKERS
from sweeps.spec.spec import SweepSpec

LONGEST_NAME = 47
"""Of a RayJob: KubeRay makes names of services from it."""
RETRIES = 2
"""A failed job is tried again on a new cluster: `run` goes on with the sweep."""
_GROUP = 10001
"""Added to every container, so that whatever user an image has may write the home."""
_CPUS = 4
_HEAD = {"cpu": "2", "memory": "8Gi"}
_REFERENCE = re.compile(r"([a-z0-9]([-a-z0-9.]*[a-z0-9])?)/([-._a-zA-Z0-9]+)")
_KEPT = 3600


@dataclass(frozen=True)
class Cluster:
    """What the job runs on: pods of its own, or a RayCluster that is there."""

    image: str | None
    home: str
    claim: str
    """The PersistentVolumeClaim of the home."""
    ray_version: str
    memory: str = "16Gi"
    """Of one worker pod."""
    workers: int | None = None
    existing: str | None = None
    """Name of a RayCluster; the rest is then its own."""


def manifest(
    spec: SweepSpec,
    entrypoint: str,
    runtime_env: Mapping[str, Any],
    cluster: Cluster,
    *,
    metadata: Mapping[str, str],
    secrets: Sequence[str] = (),
) -> dict[str, Any]:
    """The RayJob. `secrets` are `NAME=SECRET/KEY`: of each only where it lies is written.

    Raises RequestError for a secret of another form, and where the cluster cannot take them.
    """
    references = [reference(item) for item in secrets]
    job: dict[str, Any] = {
        "entrypoint": entrypoint,
        "runtimeEnvYAML": yaml.safe_dump(dict(runtime_env), sort_keys=True),
        "submissionMode": "HTTPMode",  # other modes give the entrypoint to two shells in turn
        "metadata": dict(metadata),
    }
    if cluster.existing is not None:
        if references:
            raise RequestError("--secret: a cluster that is there has its own environment")
        job["clusterSelector"] = {"ray.io/cluster": cluster.existing}
    else:
        job |= {
            "backoffLimit": RETRIES,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": _KEPT,
            "rayClusterSpec": _cluster(spec, cluster, references),
        }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {
            "name": name_of(spec.name),
            "labels": {"app.kubernetes.io/name": "carft-sweep"},
        },
        "spec": job,
    }


def reference(item: str) -> tuple[str, str, str]:
    """(NAME, secret, key) of `NAME=SECRET/KEY`. Raises RequestError."""
    name, _, place = item.partition("=")
    if name not in NAMES:
        raise RequestError(f"--secret: {unknown('secret', name, NAMES)}")
    found = _REFERENCE.fullmatch(place)
    if found is None:
        raise RequestError(
            f"--secret {name}: for a RayJob say in which Secret of Kubernetes it lies, "
            f"{name}=SECRET/KEY"
        )
    return name, found[1], found[3]


def name_of(sweep: str) -> str:
    """A name that Kubernetes takes: lower-case letters, digits and `-`, a letter first."""
    plain = re.sub(r"[^a-z0-9]+", "-", f"carft-{sweep}".lower())
    return plain[:LONGEST_NAME].strip("-")


def _cluster(
    spec: SweepSpec, cluster: Cluster, references: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    cpus, gpus, replicas = _workers(spec, cluster)
    limits = {"cpu": str(cpus), "memory": cluster.memory}
    if gpus:
        limits["nvidia.com/gpu"] = str(gpus)
    params: dict[str, str] = {}
    if spec.resources.custom:
        # `ray start` reads JSON there, through a shell.
        params["resources"] = f"'{json.dumps(dict(spec.resources.custom))}'"
    of_runs = [one for one in references if one[0] in WORKERS]
    return {
        "rayVersion": cluster.ray_version,
        # Whoever reaches the head may execute code there: the operator makes a token for it.
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # No run is placed beside the driver.
            "rayStartParams": {"dashboard-host": "0.0.0.0", "num-cpus": "0", "num-gpus": "0"},
            "template": _pod("ray-head", cluster, _HEAD, references),
        },
        "workerGroupSpecs": [
            {
                "groupName": "runs",
                "replicas": replicas,
                "minReplicas": replicas,
                "maxReplicas": replicas,
                "rayStartParams": params,
                "template": _pod("ray-worker", cluster, limits, of_runs),
            }
        ],
    }


def _workers(spec: SweepSpec, cluster: Cluster) -> tuple[int, int, int]:
    """(CPUs, GPUs) of a worker pod, and how many pods hold `parallel` runs.

    A pod holds one run, or as many as share its one GPU.
    """
    asked = spec.resources
    gpus = 1.0 if asked.gpus is None else asked.gpus
    runs = round(1 / gpus) if 0 < gpus < 1 else 1
    replicas = cluster.workers or math.ceil((spec.parallel or 1) / runs)
    return (asked.cpus or _CPUS) * runs, math.ceil(gpus), replicas


def _pod(
    name: str,
    cluster: Cluster,
    limits: Mapping[str, str],
    references: Sequence[tuple[str, str, str]],
) -> dict[str, Any]:
    environment = [
        {"name": variable, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}
        for variable, secret, key in references
    ]
    container: dict[str, Any] = {
        "name": name,
        "image": cluster.image,
        "resources": {"requests": dict(limits), "limits": dict(limits)},
        "volumeMounts": [
            {"name": "home", "mountPath": cluster.home},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
        ],
    }
    if environment:
        container["env"] = environment
    return {
        "spec": {
            "securityContext": {"fsGroup": _GROUP},
            "containers": [container],
            "volumes": [
                {"name": "home", "persistentVolumeClaim": {"claimName": cluster.claim}},
                {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            ],
        }
    }
